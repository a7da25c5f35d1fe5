"""What ``ridgeline plan --verify-rank`` prints."""

import sys

from ridgeline.core.errors import Problem, SpecError
from ridgeline.models.program import lower
from ridgeline.models.runtime import verify
from ridgeline.parallel.plan import Plan


def verify_rank(plan: Plan, rank: int) -> int:
    """Build a rank and tell whether every parameter is as planned; the exit code."""
    world_size = plan.mesh.world_size
    if not 0 <= rank < world_size:
        raise SpecError(Problem("--verify-rank", rank, f"must be 0 .. {world_size - 1}, the ranks of the job"))
    verified = verify.verify_rank(lower(plan, rank))
    wrong = verified.differences
    sys.stdout.write(
        f"rank {rank} of {world_size}, {verified.program.coords}: {len(verified.built)} parameters, "
        f"{verified.elements:,} elements, built in {verified.seconds:.1f} s; "
        f"{f'{len(wrong)} are not' if wrong else 'all names and shapes are'} as planned\n"
    )
    sys.stdout.writelines(f"{line}\n" for line in wrong)
    return 1 if wrong else 0
