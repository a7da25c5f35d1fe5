"""``ridgeline diff``: compare two jobs field by field."""

import sys

from ridgeline.apps.reading import read_job
from ridgeline.core.diff import diff as changes_of


def diff(left: str, right: str, /) -> int:
    """Compare two jobs field by field, left -> right. Exit code 0: equal, 1: different.

    Args:
        left: A job file, a preset or a model folder.
        right: Another.
    """
    changes = changes_of(read_job(left).job, read_job(right).job)
    for change in changes:
        sys.stdout.write(f"{change}\n")
    return 1 if changes else 0
