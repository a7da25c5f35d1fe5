"""The families there are."""

from collections.abc import Mapping
from types import MappingProxyType

from ridgeline.models.families.llama import LLAMA
from ridgeline.models.families.mixtral import MIXTRAL
from ridgeline.models.families.qwen2 import QWEN2
from ridgeline.models.families.qwen3 import QWEN3
from ridgeline.models.families.qwen3_moe import QWEN3_MOE
from ridgeline.models.family import Family

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": LLAMA,
        "mixtral": MIXTRAL,
        "qwen2": QWEN2,
        "qwen3": QWEN3,
        "qwen3_moe": QWEN3_MOE,
    }
)
