"""How the page looks, by day and by night. Colours are Okabe and Ito's, which colour-blind eyes tell apart."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1a1a1a; --soft: #5a5a5a; --rule: #c8c8c8; --panel: #f5f5f4;
  --alarm: #b3261e; --good: #00664b; --grey: #9a9a9a; --dim: #6e6e6e; }
@media (prefers-color-scheme: dark) { :root { --paper: #161616; --ink: #ececec; --soft: #a8a8a8; --rule: #444;
  --panel: #212121; --alarm: #ff8a80; --good: #5bd6b0; --grey: #8a8a8a; --dim: #b5b5b5; } }
* { box-sizing: border-box; }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 1120px; padding: 24px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { border-top: 1px solid var(--rule); font-size: 19px; margin: 36px 0 8px; padding-top: 18px; }
p { margin: 0 0 10px; } p.soft, caption, .soft { color: var(--soft); }
ul.cards { display: grid; gap: 10px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); list-style: none;
  margin: 18px 0; padding: 0; }
ul.cards li { background: var(--panel); border-radius: 6px; padding: 10px 14px; }
ul.cards b { display: block; font-size: 20px; font-weight: 600; } ul.cards span { color: var(--soft); font-size: 13px; }
span.alarm, ul.cards .alarm { color: var(--alarm); font-weight: 600; } ul.cards .good { color: var(--good); }
.wide, .picture { margin: 10px 0 18px; overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; width: 100%; }
caption { padding: 4px 0; text-align: left; }
th, td { border-bottom: 1px solid var(--rule); padding: 3px 8px; text-align: left; vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; } tbody th { font-weight: 400; }
.number { text-align: right; white-space: nowrap; } td:has(.bar) { min-width: 110px; width: 18%; }
.bar { border-radius: 2px; display: block; height: 12px; margin-top: 4px; }
.bars .bar { height: 7px; margin-top: 2px; }
ul.legend { display: flex; flex-wrap: wrap; font-size: 13px; gap: 4px 18px; list-style: none; margin: 6px 0;
  padding: 0; }
.swatch { border-radius: 2px; display: inline-block; height: 11px; margin-right: 6px; width: 11px; }
svg { display: block; font: 12px system-ui, sans-serif; height: auto; min-width: 720px; width: 100%; }
svg text { fill: var(--ink); } svg text.soft { fill: var(--soft); } svg text.bold { font-weight: 600; }
svg text.on-dark { fill: #fff; } svg text.on-light { fill: #111; } svg text.alarm { fill: var(--alarm); }
svg rect { stroke: var(--paper); stroke-width: .75; } svg .ground { fill: var(--panel); stroke: none; }
svg .grid { stroke: var(--rule); stroke-width: .75; } svg .axis { stroke: var(--soft); stroke-width: 1; }
svg .capacity { stroke: var(--alarm); stroke-dasharray: 5 4; stroke-width: 1.5; }
svg .roof { fill: none; stroke: var(--ink); stroke-width: 1.75; }
svg .leader { stroke: var(--grey); stroke-width: .75; } svg circle { stroke: var(--paper); stroke-width: 1; }
.fill-params, .fill-always, .fill-left, .fill-F, .fill-time, .fill-intra, .fill-gemm {
  background: #0072B2; fill: #0072B2; }
.fill-grads { background: #56B4E9; fill: #56B4E9; }
.fill-optimizer, .fill-I { background: #CC79A7; fill: #CC79A7; }
.fill-activations, .fill-right, .fill-B, .fill-attention { background: #E69F00; fill: #E69F00; }
.fill-work { background: #F0E442; fill: #F0E442; }
.fill-allowance { background: #B8B04A; fill: #B8B04A; }
.fill-buffers, .fill-W { background: #009E73; fill: #009E73; }
.fill-links, .fill-inter, .fill-dp { background: #D55E00; fill: #D55E00; }
.fill-fragments, .fill-R { background: var(--grey); fill: var(--grey); }
.fill-runtime, .fill-update { background: var(--dim); fill: var(--dim); }
.later { fill-opacity: .62; }
details { margin: 10px 0; } summary { cursor: pointer; } pre { background: var(--panel); border-radius: 6px;
  font-size: 12.5px; overflow-x: auto; padding: 12px; }
li { margin: 2px 0; } footer { border-top: 1px solid var(--rule); color: var(--soft); font-size: 13px; margin-top: 36px;
  padding-top: 10px; }
@media print { body { max-width: none; } details > * { display: block; } }
"""
