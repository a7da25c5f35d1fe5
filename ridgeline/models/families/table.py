"""The families there are."""

from collections.abc import Mapping
from types import MappingProxyType

from ridgeline.models.families.deepseek_v2 import DEEPSEEK_V2
from ridgeline.models.families.deepseek_v3 import DEEPSEEK_V3
from ridgeline.models.families.gemma import GEMMA, GEMMA2
from ridgeline.models.families.glm4_moe import GLM4_MOE
from ridgeline.models.families.gpt_oss import GPT_OSS
from ridgeline.models.families.indexed import DEEPSEEK_V32, GLM_MOE_DSA
from ridgeline.models.families.llama import LLAMA
from ridgeline.models.families.minimax_m2 import MINIMAX_M2
from ridgeline.models.families.mistral import MISTRAL
from ridgeline.models.families.mixtral import MIXTRAL
from ridgeline.models.families.qwen2 import QWEN2
from ridgeline.models.families.qwen2_moe import QWEN2_MOE
from ridgeline.models.families.qwen3 import QWEN3
from ridgeline.models.families.qwen3_moe import QWEN3_MOE
from ridgeline.models.families.qwen3_next import QWEN3_NEXT
from ridgeline.models.family import Family

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "deepseek_v2": DEEPSEEK_V2,
        "deepseek_v3": DEEPSEEK_V3,
        "deepseek_v32": DEEPSEEK_V32,
        "gemma": GEMMA,
        "gemma2": GEMMA2,
        "glm4_moe": GLM4_MOE,
        "glm_moe_dsa": GLM_MOE_DSA,
        "gpt_oss": GPT_OSS,
        "llama": LLAMA,
        "minimax_m2": MINIMAX_M2,
        "mistral": MISTRAL,
        "mixtral": MIXTRAL,
        "qwen2": QWEN2,
        "qwen2_moe": QWEN2_MOE,
        "qwen3": QWEN3,
        "qwen3_moe": QWEN3_MOE,
        "qwen3_next": QWEN3_NEXT,
    }
)
