"""The families there are, each read from its module when it is first asked for: a plan needs one of them."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from types import MappingProxyType

from ridgeline.models.family import Family

MODULES: Mapping[str, str] = MappingProxyType(
    {
        "aquila": "llama:AQUILA",
        "baichuan": "baichuan:BAICHUAN",
        "bailing_moe": "bailing_moe:BAILING_MOE",
        "bloom": "bloom:BLOOM",
        "chatglm": "chatglm:CHATGLM",
        "deepseek_v2": "deepseek_v2:DEEPSEEK_V2",
        "deepseek_v3": "deepseek_v3:DEEPSEEK_V3",
        "deepseek_v32": "indexed:DEEPSEEK_V32",
        "gemma": "gemma:GEMMA",
        "gemma2": "gemma:GEMMA2",
        "glm": "glm4:GLM",
        "glm4": "glm4:GLM4",
        "glm4_moe": "glm4_moe:GLM4_MOE",
        "glm_moe_dsa": "indexed:GLM_MOE_DSA",
        "gpt2": "gpt2:GPT2",
        "gpt_oss": "gpt_oss:GPT_OSS",
        "grok-1": "grok1:GROK1",
        "hunyuan": "hunyuan_large:HUNYUAN",
        "hunyuan_v1_dense": "hunyuan:HUNYUAN_V1_DENSE",
        "hunyuan_v1_moe": "hunyuan:HUNYUAN_V1_MOE",
        "internlm": "internlm:INTERNLM",
        "internlm2": "internlm2:INTERNLM2",
        "internlm3": "internlm3:INTERNLM3",
        "llama": "llama:LLAMA",
        "longcat_flash": "longcat_flash:LONGCAT_FLASH",
        "mamba2": "mamba2:MAMBA2",
        "minicpm": "minicpm:MINICPM",
        "minicpm3": "minicpm3:MINICPM3",
        "minimax_m2": "minimax_m2:MINIMAX_M2",
        "mistral": "mistral:MISTRAL",
        "mixtral": "mixtral:MIXTRAL",
        "nemotron_h": "nemotron_h:NEMOTRON_H",
        "phi3": "phi3:PHI3",
        "phimoe": "phimoe:PHIMOE",
        "plm": "plm:PLM",
        "qwen": "qwen:QWEN",
        "qwen2": "qwen2:QWEN2",
        "qwen2_moe": "qwen2_moe:QWEN2_MOE",
        "qwen3": "qwen3:QWEN3",
        "qwen3_moe": "qwen3_moe:QWEN3_MOE",
        "qwen3_next": "qwen3_next:QWEN3_NEXT",
        "seed_oss": "seed_oss:SEED_OSS",
        "step3p5": "step3p5:STEP3P5",
    }
)
"""Where each family is written down, by Hugging Face's ``model_type``."""

ARCHITECTURES: Mapping[str, str] = MappingProxyType(
    {
        "AquilaForCausalLM": "aquila",
        "AquilaModel": "aquila",
        "BaichuanForCausalLM": "baichuan",
        "BaiChuanForCausalLM": "baichuan",
        "BailingMoeV2ForCausalLM": "bailing_moe",
        "BloomForCausalLM": "bloom",
        "ChatGLMForConditionalGeneration": "chatglm",
        "ChatGLMModel": "chatglm",
        "DeepseekV2ForCausalLM": "deepseek_v2",
        "DeepseekV32ForCausalLM": "deepseek_v32",
        "DeepseekV3ForCausalLM": "deepseek_v3",
        "Gemma2ForCausalLM": "gemma2",
        "GemmaForCausalLM": "gemma",
        "Glm4ForCausalLM": "glm4",
        "Glm4MoeForCausalLM": "glm4_moe",
        "GlmForCausalLM": "glm",
        "GlmMoeDsaForCausalLM": "glm_moe_dsa",
        "GPT2LMHeadModel": "gpt2",
        "GptOssForCausalLM": "gpt_oss",
        "Grok1ModelForCausalLM": "grok-1",
        "HunYuanDenseV1ForCausalLM": "hunyuan_v1_dense",
        "HunYuanForCausalLM": "hunyuan",
        "HunYuanMoEV1ForCausalLM": "hunyuan_v1_moe",
        "InternLM2ForCausalLM": "internlm2",
        "InternLM3ForCausalLM": "internlm3",
        "InternLMForCausalLM": "internlm",
        "LlamaForCausalLM": "llama",
        "LongcatFlashForCausalLM": "longcat_flash",
        "Mamba2ForCausalLM": "mamba2",
        "MiniCPM3ForCausalLM": "minicpm3",
        "MiniCPMForCausalLM": "minicpm",
        "MiniMaxM2ForCausalLM": "minimax_m2",
        "MistralForCausalLM": "mistral",
        "MixtralForCausalLM": "mixtral",
        "NemotronHForCausalLM": "nemotron_h",
        "Phi3ForCausalLM": "phi3",
        "PhimoeForCausalLM": "phimoe",
        "PhiMoEForCausalLM": "phimoe",
        "PLMForCausalLM": "plm",
        "Qwen2ForCausalLM": "qwen2",
        "Qwen2MoeForCausalLM": "qwen2_moe",
        "Qwen3ForCausalLM": "qwen3",
        "Qwen3MoeForCausalLM": "qwen3_moe",
        "Qwen3NextForCausalLM": "qwen3_next",
        "QWenLMHeadModel": "qwen",
        "SeedOssForCausalLM": "seed_oss",
        "Step3p5ForCausalLM": "step3p5",
    }
)
"""The family of each class that models are published under."""

MODEL_TYPES: Mapping[str, str] = MappingProxyType({**{name: name for name in MODULES}, "kimi_k2": "deepseek_v3"})
"""The family of each ``model_type``."""

BORROWED: Mapping[str, str] = MappingProxyType({"internlm3": "LlamaForCausalLM"})
"""The class under which transformers saves a ``model_type`` that has none of its own there."""

EARLIER: Mapping[str, str] = MappingProxyType({"HunYuanMoEV1ForCausalLM": "hunyuan"})
"""The ``model_type`` beside a class in files older than its own one."""


class _Families(Mapping[str, Family]):
    def __getitem__(self, name: str) -> Family:
        module, constant = MODULES[name].split(":")
        return getattr(import_module(f"ridgeline.models.families.{module}"), constant)

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)

    def __len__(self) -> int:
        return len(MODULES)


FAMILIES: Mapping[str, Family] = _Families()
