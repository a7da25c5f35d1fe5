"""The families there are."""

from collections.abc import Mapping
from types import MappingProxyType

from ridgeline.models.families.deepseek_v2 import DEEPSEEK_V2
from ridgeline.models.families.deepseek_v3 import DEEPSEEK_V3
from ridgeline.models.families.llama import LLAMA
from ridgeline.models.families.mixtral import MIXTRAL
from ridgeline.models.families.qwen2 import QWEN2
from ridgeline.models.families.qwen3 import QWEN3
from ridgeline.models.families.qwen3_moe import QWEN3_MOE
from ridgeline.models.family import Family

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "deepseek_v2": DEEPSEEK_V2,
        "deepseek_v3": DEEPSEEK_V3,
        "llama": LLAMA,
        "mixtral": MIXTRAL,
        "qwen2": QWEN2,
        "qwen3": QWEN3,
        "qwen3_moe": QWEN3_MOE,
    }
)
