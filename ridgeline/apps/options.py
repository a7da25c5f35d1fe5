"""How a verb takes the fields of a job: as raw tokens, which ``ridgeline.apps.overrides`` reads."""

from typing import Annotated, TypeAlias

from cyclopts import Parameter

Overrides: TypeAlias = Annotated[
    str,
    Parameter(name="FIELD", allow_leading_hyphen=True, help="Any field of the job: --layout.tp 8, for short --tp 8."),
]
