"""Linear attention and state spaces: one fused projection, a short convolution, a scan, a gated norm, the way back.

Source:
    megatron-core 0.16.1, ssm/gated_delta_net.py and ssm/mamba_mixer.py. Kernels that save their inputs and a state for
    each chunk of positions: fla's chunked gated delta rule (chunks of 64) and mamba_ssm's chunked scan.
"""

from collections.abc import Iterator

from ridgeline.core.flops import mixer_flops_per_token
from ridgeline.core.model import GatedDeltaNet, Mamba2
from ridgeline.parallel.ops.attention import out_op
from ridgeline.parallel.ops.sizes import Sizes
from ridgeline.parallel.ops.stream import column_comms
from ridgeline.parallel.ops.words import Comm, Op, Saved

DELTA_CHUNK = 64  # positions, of fla's chunk_gated_delta_rule


def delta_net_ops(mixer: GatedDeltaNet, sizes: Sizes) -> Iterator[Op]:
    """From the layer's normed input to its output before the residual."""
    keys, values, heads = mixer.key_width // sizes.tp, mixer.value_width // sizes.tp, mixer.value_heads // sizes.tp
    states = heads * mixer.key_head_dim * mixer.value_head_dim * sizes.tokens // DELTA_CHUNK
    flops = sizes.tokens * mixer_flops_per_token(mixer, sizes.seq_len, "causal") / sizes.tp
    yield from _scan_ops(2 * keys + values, gates=values, small=2 * heads, states=states, flops=flops, sizes=sizes)
    yield out_op(sizes.tokens * values, values, sizes)


def mamba_ops(mixer: Mamba2, sizes: Sizes) -> Iterator[Op]:
    """From the layer's normed input to its output before the residual."""
    width, heads = mixer.width // sizes.tp, mixer.heads // sizes.tp
    groups = 2 * mixer.groups * mixer.state // sizes.tp
    states = width * mixer.state * sizes.tokens // mixer.chunk
    flops = sizes.tokens * mixer_flops_per_token(mixer, sizes.seq_len, "causal") / sizes.tp
    yield from _scan_ops(width + groups, gates=width, small=heads, states=states, flops=flops, sizes=sizes)
    yield out_op(sizes.tokens * width, width, sizes)


def _scan_ops(mixed: int, *, gates: int, small: int, states: int, flops: float, sizes: Sizes) -> Iterator[Op]:
    """Up to the gated norm: ``mixed`` channels are convolved, ``gates`` multiply the output, ``small`` steer it."""
    tokens, width = sizes.tokens, sizes.width
    columns = mixed + gates + small
    fused, convolved, output = tokens * columns * width, tokens * mixed * width, tokens * gates * width
    yield Op(
        "in_proj",
        gemms=((tokens, sizes.hidden, columns),),
        saved=(Saved("in_input", sizes.own_tokens * sizes.hidden * width, "layernorm", for_weight=True),),
        comms=(*column_comms(sizes), *_sequence_comms(fused, sizes)),
        forward_work_bytes=fused,
        backward_work_bytes=2 * fused + columns * sizes.hidden * width,
    )
    # The convolution's input is a view of the projection, which keeps its gates alive with it.
    yield Op("conv1d", moved_bytes=3 * convolved, saved=(Saved("in_proj", fused),), backward_work_bytes=convolved)
    yield Op(
        "scan",
        attention_flops=flops,
        moved_bytes=convolved + output,
        saved=(Saved("convolved", convolved), Saved("states", states * 4)),
        forward_work_bytes=output,
        backward_work_bytes=convolved + output + states * 4,
    )
    yield Op(
        "gated_norm",
        moved_bytes=3 * output,
        saved=(Saved("scanned", output), Saved("rstd", tokens * 4), Saved("context", output, for_weight=True)),
        comms=tuple(_sequence_comms(output, sizes)),
        backward_work_bytes=2 * output,
    )


def _sequence_comms(size: int, sizes: Sizes) -> Iterator[Comm]:
    """A scan needs the whole sequence: cp ranks trade positions for heads before it, and back after it."""
    if sizes.cp > 1:
        for phase in ("F", "B"):
            yield Comm(phase, "all_to_all", "cp", size)
