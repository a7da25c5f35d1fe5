"""How a job is laid out over devices: the degrees of the mesh, the pipeline's stages and its schedule."""

from typing import Literal

from ridgeline.core.fields import at_least, check_spec, degree, many
from ridgeline.core.frozen import frozen

Placement = Literal["loop", "v"]
"""Which pipeline rank owns which stage: in a loop rank s % pp owns stage s; in a V every other chunk runs backwards."""

INTERLEAVED = ("interleaved_1f1b", "zb_vpp")
"""Schedules of ``vpp`` > 1 chunks a rank."""

V_SHAPED = ("zb_v", "dualpipe_v", "dualpipe_v_split")
"""Schedules of two chunks a rank in a V, so that the first rank owns both ends of the model."""


@frozen(kw_only=True)
class Layout:
    """Parallel degrees; dp follows from the cluster: ``dp = world_size / (tp*cp*pp)``.

    Attributes:
        tp, pp, vpp, cp: Degrees; ``vpp`` is the number of model chunks per pipeline rank, 1 when not interleaved.
        ep, etp: Expert parallel and expert tensor parallel degrees.
        sp: Sequence parallel over the tp axis.
        cp_algorithm: How attention sees the whole sequence when ``cp > 1``: keys and values go round (``ring``), heads
            change places (``ulysses``), groups of ``ulysses`` ranks do that and their keys and values go round between
            the groups (``hybrid``), or all keys and values are gathered (``kv_allgather``).
        ulysses: Ranks of a group of ``hybrid``; cp/ulysses groups are a ring.
        repeat_kv: Repeat keys and values for all heads before heads change places, though there are enough of them.
        stages: Layers of each stage in model order, ``pp*vpp`` counts; None splits evenly.
        noop_layers: Positions of identity layers, in the numbering that counts them.
        schedule: The order of forwards and backwards. Of those in a V, ``zb_v`` and ``dualpipe_v``, each rank has two
            chunks, which ``vpp`` does not count.
        slices: Parts of each sequence that ``seq1f1b`` sends through the pipeline one by one.
        microbatch_group_size: Microbatches a rank runs on one chunk before the next; None means ``pp``.
        vocab_multiple: The vocabulary is padded to a multiple of ``tp * vocab_multiple``.
        order: Axes of the mesh from the fastest to the slowest varying.
    """

    tp: int = degree()
    pp: int = degree()
    vpp: int = degree()
    cp: int = degree()
    ep: int = degree()
    etp: int = degree()
    sp: bool = False
    cp_algorithm: Literal["ring", "ulysses", "hybrid", "kv_allgather"] = "ring"
    ulysses: int = degree()
    repeat_kv: bool = False
    stages: tuple[int, ...] | None = many(None)
    noop_layers: tuple[int, ...] = many()
    schedule: (
        Literal[
            "1f1b",
            "interleaved_1f1b",
            "gpipe",
            "zb_h1",
            "zb_2p",
            "zb_v",
            "zb_vpp",
            "dualpipe_v",
            "dualpipe_v_split",
            "seq1f1b",
        ]
        | None
    ) = None
    slices: int = degree()
    microbatch_group_size: int | None = at_least(1, default=None)
    vocab_multiple: int = degree()
    order: str = "tp-cp-ep-dp-pp"
    __attrs_post_init__ = check_spec

    @property
    def schedule_name(self) -> str:
        """The schedule asked for; by default interleaved when there are several chunks."""
        return self.schedule or ("interleaved_1f1b" if self.vpp > 1 else "1f1b")

    @property
    def context_degrees(self) -> tuple[int, int]:
        """How many of the cp ranks pass keys and values on, and how many exchange heads."""
        match self.cp_algorithm:
            case "ring":
                return self.cp, 1
            case "ulysses":
                return 1, self.cp
            case "hybrid":
                return self.cp // self.ulysses, self.ulysses
            case "kv_allgather":
                return 1, 1

    @property
    def placement(self) -> Placement:
        """Which pipeline rank owns which stage."""
        return "v" if self.schedule in V_SHAPED else "loop"

    @property
    def chunks(self) -> int:
        """Stages of a pipeline rank: two in a V, else ``vpp``."""
        return 2 if self.placement == "v" else self.vpp
