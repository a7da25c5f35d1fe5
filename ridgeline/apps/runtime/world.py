"""The ranks that were started, found in the environment, and the process group they form."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import attrs
import torch
from torch import distributed
from torch.distributed import (  # documented, yet in no __all__
    HashStore,  # pyright: ignore[reportPrivateImportUsage]
    PrefixStore,  # pyright: ignore[reportPrivateImportUsage]
    Store,  # pyright: ignore[reportPrivateImportUsage]
    rendezvous,  # pyright: ignore[reportPrivateImportUsage]
)

from ridgeline.core.errors import Problem, SpecError
from ridgeline.core.job import Job
from ridgeline.kernels.capabilities import Capabilities

RENDEZVOUS_SECONDS = 300


@attrs.frozen(kw_only=True)
class World:
    """Where this process stands among those that were started together."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


@attrs.frozen(kw_only=True, eq=False)
class Ranks:
    """The process group of a world.

    Attributes:
        world: Which of the ranks this is.
        host_group: A group whose collectives go through host memory.
    """

    world: World
    host_group: distributed.ProcessGroup


class RankFailedError(RuntimeError):
    """A rank of several failed, for the reason that is its cause.

    Attributes:
        first: No other had failed before, so that this is where it began.
    """

    def __init__(self, *, first: bool) -> None:
        super().__init__("a rank failed")
        self.first = first


def current_world(environment: Mapping[str, str]) -> World:
    """The world of the process group if there is one, else of the environment."""
    if distributed.is_initialized():
        return World(rank=distributed.get_rank(), world_size=distributed.get_world_size())
    return world_of(environment)


def world_of(environment: Mapping[str, str]) -> World:
    """The world that torchrun's variables tell; a process started alone is one of its own.

    Raises:
        SpecError: A variable is missing or no number.

    Example:
        >>> world_of({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
        World(rank=5, world_size=8, local_rank=1)
        >>> world_of({})
        World(rank=0, world_size=1, local_rank=0)
    """
    if "WORLD_SIZE" not in environment and "RANK" not in environment:
        return World()
    values: dict[str, int] = {}
    problems = []
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        text = environment.get(name, "0" if name == "LOCAL_RANK" else "")
        if text.isdecimal():
            values[name] = int(text)
        else:
            way_out = "start the ranks with torchrun, or unset RANK and WORLD_SIZE for one process"
            problems.append(Problem(name, text, "must be a number in the environment", way_out))
    if problems:
        raise SpecError(problems)
    return World(rank=values["RANK"], world_size=values["WORLD_SIZE"], local_rank=values["LOCAL_RANK"])


def check_world(world: World, job: Job) -> None:
    """Refuse a number of processes that is not the job's.

    Raises:
        SpecError: They differ.
    """
    cluster = job.cluster
    if world.world_size != cluster.world_size:
        size = f"nodes={cluster.nodes} * devices_per_node={cluster.devices_per_node} = {cluster.world_size}"
        start = f"start {cluster.world_size} (see ridgeline launch), or --cluster.nodes and --cluster.devices-per-node"
        raise SpecError(Problem("world_size", world.world_size, f"processes were started, the job has {size}", start))


@contextmanager
def joined(world: World, capabilities: Capabilities, *, timeout: timedelta = timedelta(minutes=30)) -> Iterator[Ranks]:
    """Form the process group of a world; a group that exists already is used, and left as it is.

    Args:
        world: Of this process.
        capabilities: Of the device whose backend carries the collectives.
        timeout: Of a collective.

    Raises:
        RankFailedError: Whatever was raised inside, where there are other ranks.
    """
    if distributed.is_initialized():
        yield Ranks(world=world, host_group=_host_group(capabilities))
        return
    store = _store(world)
    try:
        distributed.init_process_group(
            capabilities.backend,
            store=PrefixStore("ranks", store),
            rank=world.rank,
            world_size=world.world_size,
            timeout=timeout,
        )
        yield Ranks(world=world, host_group=_host_group(capabilities))
    except Exception as error:
        if world.world_size == 1:
            distributed.destroy_process_group()
            raise
        # The group stays: others may be gone, and leaving it together would wait for them.
        raise RankFailedError(first=_is_first(store)) from error
    distributed.destroy_process_group()


def any_rank(flag: bool, ranks: Ranks) -> bool:
    """Whether a flag is set on any rank; all ranks call it and get one answer."""
    if ranks.world.world_size == 1:
        return flag
    box = torch.tensor([int(flag)])
    distributed.all_reduce(box, op=distributed.ReduceOp.MAX, group=ranks.host_group)
    return bool(box.item())


def _store(world: World) -> Store:
    if world.world_size == 1:
        return HashStore()  # no port, so none can be in use
    store, _, _ = next(iter(rendezvous("env://", timeout=timedelta(seconds=RENDEZVOUS_SECONDS))))
    return store


def _is_first(store: Store) -> bool:
    try:
        return store.add("failed", 1) == 1
    except Exception:  # whoever kept the store is gone, so another failed before
        return False


def _host_group(capabilities: Capabilities) -> distributed.ProcessGroup:
    group = distributed.group.WORLD if capabilities.backend == "gloo" else distributed.new_group(backend="gloo")
    assert isinstance(group, distributed.ProcessGroup)
    return group
