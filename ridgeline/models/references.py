"""What MindSpeed-LLM trains, and how: the rows of its tables of models, each with a preset and its script's layout."""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from ridgeline.core.data_files import read_data
from ridgeline.core.frozen import frozen


@frozen(kw_only=True)
class Reference:
    """A row of the tables, with what the launch script of its model says.

    Attributes:
        table: ``dense``, ``moe`` or ``ssm``.
        family: As the table has it; so is ``size``.
        listed: Sequence length and cluster, nodes x devices, as the table has them; the script may say others.
        model: The preset of this size, or None.
        layers: How many layers the script has, if not the preset's.
        reason: Why there is no preset.
        seq_len: The script's, in tokens; so are the fields below.
        devices: Of a node.
        layout: The fields of a job's layout that are not the default, as ``ridgeline import`` reads them.
        script: Its path below ``examples``, and its commit.
    """

    table: str
    family: str
    size: str
    listed: str
    model: str | None = None
    layers: int | None = None
    reason: str | None = None
    seq_len: int
    nodes: int
    devices: int
    layout: Mapping[str, Any]
    mbs: int
    gbs: int
    script: str


@cache
def references() -> tuple[Reference, ...]:
    """Every row, in the order of the tables.

    Source:
        Ascend/MindSpeed-LLM@9fc95c62 docs/pytorch/models, and the newest scripts of each row.
    """
    rows = read_data(__file__, ".", "references")
    return tuple(Reference(**{**row, "layout": MappingProxyType(row["layout"])}) for row in rows)


def references_of(name: str) -> tuple[Reference, ...]:
    """The rows of a preset."""
    return tuple(row for row in references() if row.model == name)
