"""A model that continues tokens: the modules that train, on one rank, with a cache of keys and values.

Legend: ``s`` = new positions, ``t`` = all so far, ``b`` = 1 sample, ``g`` = key-value heads, ``d`` = head_dim.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import attrs
import torch

from ridgeline.apps.runtime.next_token import Sampling, choose_token
from ridgeline.apps.runtime.world import World, joined
from ridgeline.checkpoint.io.initial import load_weights
from ridgeline.checkpoint.io.weights import Weights
from ridgeline.core.errors import Problem, SpecError
from ridgeline.core.job import Batch, Job, Memory, Precision
from ridgeline.core.model import ModelSpec
from ridgeline.kernels.capabilities import DeviceName
from ridgeline.kernels.device import open_device
from ridgeline.kernels.runtime.load import load_kernel
from ridgeline.models.program import lower
from ridgeline.models.runtime.model import build_chunk, build_config, in_precision
from ridgeline.models.runtime.sequences import Sequences, rotary_tables, turns_alike
from ridgeline.parallel.clusters import cluster_preset
from ridgeline.parallel.plan import plan
from ridgeline.parallel.runtime.groups import process_groups

PREFILL = 512
"""Tokens of a prompt that go through the model at once, which bounds the memory of their logits."""


@attrs.frozen(kw_only=True, eq=False)
class Engine:
    """A model ready to continue tokens.

    Attributes:
        spec: What it is.
        module: Gives logits of tokens.
        device: Where it is.
        dtype: Of its weights and activations.
    """

    spec: ModelSpec
    module: torch.nn.Module
    device: torch.device
    dtype: torch.dtype


@attrs.frozen(eq=False)
class Cache:
    """The tokens a model has read, and every layer's keys and values of them.

    Attributes:
        tokens: In order.
        capacity: Positions at most.
        layers: Of each layer its keys and values, (room for t, b, g, d), which grow as they fill.
        filled: Of each layer how many positions it has.
        states: Of each recurrent layer its last inputs and its memory.
    """

    capacity: int
    tokens: list[int] = attrs.field(factory=list)
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = attrs.field(factory=dict)
    filled: dict[int, int] = attrs.field(factory=dict)
    states: dict[int, tuple[torch.Tensor, torch.Tensor]] = attrs.field(factory=dict)

    def extend(self, layer: int, key_sbgd: torch.Tensor, value_sbgd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append a layer's keys and values, and give all so far."""
        begin = self.filled.get(layer, 0)
        end = begin + len(key_sbgd)
        keys, values = self.layers.get(layer, (key_sbgd[:0], value_sbgd[:0]))
        if end > len(keys):
            room = min(self.capacity, max(end, 2 * len(keys)))
            keys, values = _grown(keys, begin, room), _grown(values, begin, room)
            self.layers[layer] = keys, values
        keys[begin:end], values[begin:end] = key_sbgd, value_sbgd
        self.filled[layer] = end
        return keys[:end], values[:end]

    def state(self, layer: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """What a recurrent layer remembered."""
        return self.states.get(layer, (None, None))

    def remember(self, layer: int, inputs_bwc: torch.Tensor, memory: torch.Tensor) -> None:
        """Keep what a recurrent layer needs of the tokens so far."""
        self.states[layer] = inputs_bwc, memory

    def keep(self, length: int) -> None:
        """Forget all but the first ``length`` tokens; a recurrent memory knows no way back: then all."""
        if self.states and length < len(self.tokens):
            length = 0
            self.states.clear()
        del self.tokens[length:]
        for layer in self.filled:
            self.filled[layer] = length


@contextmanager
def open_engine(
    spec: ModelSpec, weights: Weights, *, device: DeviceName = "cpu", dtype: str = "fp32"
) -> Iterator[Engine]:
    """Build a model on one rank of its own and read its weights.

    Args:
        spec: The model.
        weights: Where they are read from.
        device: What it runs on.
        dtype: Of weights and activations, ``fp32`` or ``bf16``.

    Raises:
        CheckpointError: The weights are damaged.
        LoweringError: The model or the device is beyond this runtime.
    """
    program = lower(plan(_job(spec, device, dtype)), 0)
    kernels = {op: load_kernel(op, name) for op, name in program.kernels}
    opened = open_device(device)
    target = opened.torch_device(0)
    with (
        joined(World(), opened.capabilities),
        opened.bridge(),
        process_groups(program.job.layout, world_size=1, seed=program.job.run.seed),
    ):
        config = build_config(program)
        with target:
            module = build_chunk(program, 0, config, kernels)
        load_weights(program, [module], weights)
        yield Engine(spec=spec, module=in_precision(config, module).eval(), device=target, dtype=config.params_dtype)


def new_cache(engine: Engine) -> Cache:
    """An empty cache for as many positions as the model can hold."""
    return Cache(engine.spec.max_position)


def continued(
    engine: Engine, prompt: Sequence[int], sampling: Sampling, *, stop: Collection[int] = (), cache: Cache | None = None
) -> Iterator[int]:
    """The tokens that follow a prompt, one by one, up to one of ``stop``, which is not given.

    Args:
        engine: The model.
        prompt: Token ids, at least one.
        sampling: How to choose them.
        stop: Ids that end a text.
        cache: Of an earlier call: what the prompt begins with and it has read is not read again.

    Raises:
        SpecError: The prompt is empty, too long, or has an id that is no token.
    """
    cache = new_cache(engine) if cache is None else cache
    check_prompt(engine, prompt)
    generator = torch.Generator().manual_seed(sampling.seed)
    tokens = list(prompt)
    for _ in range(min(sampling.max_tokens, cache.capacity - len(prompt))):
        token = choose_token(next_logits(engine, tokens, cache), sampling, generator)
        if token in stop:
            return
        tokens.append(token)
        yield token


def next_logits(engine: Engine, tokens: Sequence[int], cache: Cache) -> torch.Tensor:
    """The logits of what follows tokens, (vocabulary,); afterwards the cache holds just these tokens.

    Of tokens that the cache holds already all but the last one are not read again, unless positions of a longer text
    turn otherwise, as they may by LongRoPE and dynamic scaling.
    """
    if not turns_alike(engine.spec, len(cache.tokens), len(tokens)):
        cache.keep(0)
    same = next((i for i, (a, b) in enumerate(zip(tokens, cache.tokens, strict=False)) if a != b), len(cache.tokens))
    begin = min(same, len(tokens) - 1)
    cache.keep(begin)
    begin = len(cache.tokens)
    logits_bsv = torch.empty(0)
    for start in range(begin, len(tokens), PREFILL):
        logits_bsv = _logits(engine, tokens[start : start + PREFILL], cache, longest=len(tokens))
    return logits_bsv[0, -1]


def check_prompt(engine: Engine, prompt: Sequence[int]) -> None:
    """Raise unless the model can read a prompt and has room for a token more."""
    longest = engine.spec.max_position
    if not prompt:
        raise SpecError(Problem("prompt", "", "must hold at least one token"))
    if len(prompt) >= longest:
        way_out = f"use at most {longest - 1}"
        raise SpecError(
            Problem("prompt", len(prompt), f"tokens leave no room in model.max_position={longest}", way_out)
        )
    if (highest := max(prompt)) >= engine.spec.vocab_size:
        rule = f"must be below model.vocab_size={engine.spec.vocab_size}"
        raise SpecError(Problem("prompt", highest, rule, "use the model's own tokenizer"))


def _grown(x_tbgd: torch.Tensor, filled: int, room: int) -> torch.Tensor:
    """The same with more room."""
    grown = x_tbgd.new_empty(room, *x_tbgd.shape[1:])
    grown[:filled] = x_tbgd[:filled]
    return grown


@torch.no_grad()
def _logits(engine: Engine, tokens: Sequence[int], cache: Cache, *, longest: int) -> torch.Tensor:
    """Read tokens after those in the cache, of a text of ``longest``: (b, s, vocabulary)."""
    begin = len(cache.tokens)
    cache.tokens.extend(tokens)
    positions_bs = torch.arange(begin, len(cache.tokens), device=engine.device).unsqueeze(0)
    tables = rotary_tables(engine.spec, positions_bs, longest=longest, dtype=engine.dtype)
    return engine.module(
        input_ids=torch.tensor([list(tokens)], device=engine.device),
        position_ids=positions_bs,
        attention_mask=None,
        packed_seq_params=Sequences(tables=tables, cache=cache),
    )


def _job(spec: ModelSpec, device: DeviceName, dtype: str) -> Job:
    """A job of one rank, of which only the model, the device and the dtype matter."""
    cluster = cluster_preset("cpu", devices_per_node=1)
    return Job(
        model=spec,
        cluster=attrs.evolve(cluster, chip=attrs.evolve(cluster.chip, device=device)),
        batch=Batch(seq_len=spec.max_position),
        precision=Precision(params=dtype),  # pyright: ignore[reportArgumentType]  checked by the spec itself
        memory=Memory(distributed_optimizer=False),
    )
