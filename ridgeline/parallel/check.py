"""Rules between specs: whatever passes is accepted by megatron-core 0.16.1, and every fault of a job comes at once.

Each rule is a generator of problems over a job. A rule that needs ``dp`` is left out where the degrees do not divide
the world, so that one fault is not reported many times.

Source:
    megatron-core 0.16.1: transformer/transformer_config.py and model_parallel_config.py (``__post_init__``),
    parallel_state.py (``initialize_model_parallel``, ``RankGenerator``), pipeline_parallel/schedules.py,
    transformer/transformer_block.py (``_checkpointed_forward``), transformer/moe/, optimizer_param_scheduler.py.
"""

from collections.abc import Callable, Iterator

from ridgeline.core.errors import PlanError, Problem
from ridgeline.core.job import Job
from ridgeline.parallel.rules import comm, layout, memory, pipeline, training

Rule = Callable[[Job], Iterator[Problem]]


def check_job(job: Job) -> None:
    """Refuse a job that cannot be planned.

    Raises:
        PlanError: Every rule broken, with its way out.
    """
    problems = job_problems(job)
    if problems:
        raise PlanError(problems)


def job_problems(job: Job) -> tuple[Problem, ...]:
    """Every rule between specs that a job breaks."""
    rules = RULES if layout.dp_exists(job) else tuple(rule for rule in RULES if rule not in NEEDS_DP)
    return tuple(problem for rule in rules for problem in rule(job))


RULES: tuple[Rule, ...] = (
    layout.world,
    layout.mesh,
    layout.tensor_parallel,
    layout.expert_parallel,
    layout.context_parallel,
    layout.sequence,
    layout.batch,
    pipeline.stages,
    pipeline.schedule,
    pipeline.microbatches,
    memory.recompute,
    memory.recompute_when,
    memory.stored_states,
    training.adapters,
    training.learning_rate,
    comm.overlap,
    comm.dispatch,
    layout.neighbours,
)
NEEDS_DP: frozenset[Rule] = frozenset((layout.mesh, layout.batch, pipeline.microbatches))
