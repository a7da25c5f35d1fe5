"""How a verb takes the fields of a job: as raw tokens, which ``ridgeline.apps.overrides`` reads."""

from typing import Annotated, TypeAlias

from cyclopts import Parameter

from ridgeline.apps.overrides import ALIASES

SHORT = " ".join(f"--{name.replace('_', '-')}" for name in ALIASES)

Overrides: TypeAlias = Annotated[
    str,
    Parameter(
        name="FIELD",
        allow_leading_hyphen=True,
        help=f"Any field of the job, as --layout.tp 8. The commonest have short names: {SHORT}.",
    ),
]
