"""How a job is laid out over devices: the degrees of the mesh, the pipeline's stages and its schedule."""

from typing import Literal

from ridgeline.core.fields import at_least, check_spec, degree, many
from ridgeline.core.frozen import frozen


@frozen(kw_only=True)
class Layout:
    """Parallel degrees; dp follows from the cluster: ``dp = world_size / (tp*cp*pp)``.

    Attributes:
        tp, pp, vpp, cp: Degrees; ``vpp`` is the number of model chunks per pipeline rank, 1 when not interleaved.
        ep, etp: Expert parallel and expert tensor parallel degrees.
        sp: Sequence parallel over the tp axis.
        cp_algorithm: How attention sees the whole sequence when ``cp > 1``.
        stages: Layers of each stage in model order, ``pp*vpp`` counts; None splits evenly.
        noop_layers: Positions of identity layers, in the numbering that counts them.
        schedule: The order of forwards and backwards.
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
    cp_algorithm: Literal["ring", "ulysses", "kv_allgather"] = "ring"
    stages: tuple[int, ...] | None = many(None)
    noop_layers: tuple[int, ...] = many()
    schedule: Literal["1f1b", "interleaved_1f1b"] | None = None
    microbatch_group_size: int | None = at_least(1, default=None)
    vocab_multiple: int = degree()
    order: str = "tp-cp-ep-dp-pp"
    __attrs_post_init__ = check_spec

    @property
    def schedule_name(self) -> str:
        """The schedule asked for; by default interleaved when there are several chunks."""
        return self.schedule or ("interleaved_1f1b" if self.vpp > 1 else "1f1b")
