"""Every published model, against transformers' own class for it where there is one."""

import re
from datetime import date

import pytest

from ridgeline.core.errors import SpecError
from ridgeline.core.model import Moe
from ridgeline.core.params import model_params, mtp_params, num_active_params, num_params
from ridgeline.models.families.table import BORROWED
from ridgeline.models.hf_config import family_of, hf_config_of, model_from_hf
from ridgeline.models.zoo import model_names, model_preset, preset_of
from tests.models.examples import REMOTE
from tests.models.transformers_models import built, size_of, transformers_config, unused_params

# What may differ between a published config and the one written for the same spec: no part of the architecture.
NOT_IN_A_SPEC = {"bos_token_id", "eos_token_id", "pad_token_id", "dtype", "qkv_bias", "use_qk_norm"}
NOT_IN_A_SPEC |= {"max_window_layers", "shared_expert_intermediate_size", "attention_dropout", "residual_dropout"}
NOT_IN_A_SPEC |= {"attn_pdrop", "embd_pdrop", "resid_pdrop", "unk_token_id", "eod_token_id", "sep_token_id"}
# What decides nothing where a window sleeps, and what trains a model from its beginning.
UNDECIDED = {"max_window_layers", "sliding_window", "use_sliding_window"}
UNDECIDED |= {"initializer_range", "attention_dropout", "embedding_dropout", "output_dropout", "residual_dropout"}
# Of one size of Bloom, what all sizes have in common.
UNDECIDED |= {"apply_residual_connection_post_layernorm", "hidden_dropout", "layer_norm_epsilon", "slow_but_exact"}
YARN = {"beta_fast", "beta_slow", "mscale", "mscale_all_dim"}
# A file of a published repository, a paper, a checkpoint that only Megatron-LM reads, or a launch script.
SOURCE = re.compile(r"[\w.-]+/[\w.-]+/(config\.json|release)|arXiv \d{4}\.\d{5}, table [\d.]+|[\w/.-]+\.sh")
KNOWN = [name for name in model_names() if model_preset(name).family not in REMOTE]


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_equal_transformers(name: str):
    """A preset holds exactly as many parameters as the transformers model built from the published config."""
    family = family_of(preset_of(name).config)
    assert preset_of(name).config["architectures"][0] in (*family.architectures, BORROWED.get(family.name))
    assert built(name).architecture == BORROWED.get(family.name, family.architectures[0])
    spec = model_preset(name)
    beyond = sum(param.elements for param in mtp_params(spec))  # not in transformers' class
    buffers = sum(param.elements for _, param in model_params(spec) if not param.trains and param.place == "layer")
    assert built(name).num_params - unused_params(spec) == num_params(spec) - beyond - buffers


@pytest.mark.parametrize("name", KNOWN)
def test_the_written_config_is_the_published_one(name: str):
    """transformers reads the config we write for a preset as it reads the published one."""
    spec = model_preset(name)
    published = transformers_config(preset_of(name).config).to_dict()
    written = transformers_config(hf_config_of(spec)).to_dict()
    ignored = set(NOT_IN_A_SPEC)
    if all(isinstance(run.block.feed_forward, Moe) for run in spec.blocks) and "mlp_only_layers" in hf_config_of(spec):
        ignored.add("intermediate_size")  # the width of dense layers, of which there are none
    if "head_dim" not in preset_of(name).config and "head_dim" in hf_config_of(spec):
        ignored.add("head_dim")
        assert written["head_dim"] == published["hidden_size"] // published["num_attention_heads"]
    if "seq_length" in hf_config_of(spec) and "seq_length" not in preset_of(name).config:
        ignored.add("seq_length")  # of Bloom's training, where transformers has no limit
    if spec.family == "minicpm3":  # transformers 5.20 asks for what later versions divide
        table = published["rope_parameters"]
        table["factor"] = spec.max_position / table["original_max_position_embeddings"]
    if (older := published.pop("attention_head_dim", None)) is not None:  # Nemotron-H's first name for it
        assert older == written["head_dim"]
    published["architectures"] = written["architectures"]  # some were published under a class with another name
    for config in (published, written):
        rope = config.get("rope_parameters") or {}
        rope.pop("type", None)  # transformers 4's name for rope_type
        if rope.get("rope_type") == "dynamic":  # which has none of these, and Hunyuan's files do
            config["rope_parameters"] = {key: value for key, value in rope.items() if key not in YARN}
    if isinstance(experts := published.get("moe_topk"), list):  # of every layer
        (published["moe_topk"],) = set(experts)
    # Beyond what is written transformers' class has none: fields that only the published code has.
    differing = {key for key in written if published.get(key) != written[key]}
    assert differing <= ignored


@pytest.mark.parametrize("name", model_names())
def test_a_preset_comes_back_from_its_config(name: str):
    """Spec to config to spec is the identity."""
    spec = model_preset(name)
    assert model_from_hf(hf_config_of(spec), name=name) == spec


@pytest.mark.parametrize("name", model_names())
def test_a_preset_says_where_it_comes_from(name: str):
    """Source, date and copies are recorded, and no field is both held and called unsourced."""
    preset = preset_of(name)
    assert SOURCE.fullmatch(preset.source)
    assert date.fromisoformat(preset.retrieved) <= date.today()
    assert preset.copies
    assert not set(preset.unsourced) & set(preset.config)
    decisive = {field.name for field in family_of(preset.config).fields}
    assert set(preset.unsourced) & decisive <= UNDECIDED


SIZES = """
aquila-7b                     7,295,537,152   7,295,537,152
aquila2-34b                  34,233,796,608  34,233,796,608
aquila2-7b                    7,655,698,432   7,655,698,432
baichuan-13b                 13,264,901,120  13,264,901,120
baichuan-7b                   7,000,559,616   7,000,559,616
baichuan2-13b                13,896,668,160  13,896,668,160
baichuan2-7b                  7,505,973,248   7,505,973,248
bloom                       176,247,271,424 176,247,271,424
bloom-560m                      559,214,592     559,214,592
bloom-7b1                     7,069,016,064   7,069,016,064
chatglm3-6b                   6,243,584,000   6,243,584,000
codellama-13b                13,016,028,160  13,016,028,160
codellama-34b                33,743,970,304  33,743,970,304
codellama-7b                  6,738,546,688   6,738,546,688
codeqwen1.5-7b-chat           7,250,284,544   7,250,284,544
deepseek-coder-v2-base      235,741,434,880  21,375,800,320
deepseek-llm-7b-base          6,910,365,696   6,910,365,696
deepseek-math-7b-base         6,910,365,696   6,910,365,696
deepseek-r1                 682,636,487,424  37,552,297,472
deepseek-r1-distill-llama-70b  70,553,706,496  70,553,706,496
deepseek-r1-distill-llama-8b   8,030,261,248   8,030,261,248
deepseek-r1-distill-qwen-1.5b   1,777,088,000   1,777,088,000
deepseek-r1-distill-qwen-14b  14,770,033,664  14,770,033,664
deepseek-r1-distill-qwen-32b  32,763,876,352  32,763,876,352
deepseek-r1-distill-qwen-7b   7,615,616,512   7,615,616,512
deepseek-v2                 235,741,434,880  21,375,800,320
deepseek-v2-lite             15,706,484,224   2,661,150,208
deepseek-v2.5               235,741,434,880  21,375,800,320
deepseek-v3                 682,636,487,424  37,552,297,472
deepseek-v3.2               683,501,971,712  38,403,822,336
gemma-2-27b                  27,227,128,320  27,227,128,320
gemma-2-2b                    2,614,341,888   2,614,341,888
gemma-2-9b                    9,241,705,984   9,241,705,984
gemma-2b                      2,506,172,416   2,506,172,416
gemma-7b                      8,537,680,896   8,537,680,896
glm-4-9b-chat                 9,399,951,360   9,399,951,360
glm-4.5                     356,785,898,816  33,632,266,144
glm-4.5-air                 109,227,310,848  13,424,129,664
glm-5                       753,864,139,008  41,784,728,832
glm-5.2                     753,329,940,480  41,250,530,304
gpt-oss-120b                116,829,156,672   5,711,982,912
gpt-oss-20b                  20,914,757,184   4,187,440,704
gpt2                            124,439,808     124,439,808
gpt2-medium                     354,823,168     354,823,168
gpt3-125m                       125,226,240     125,226,240
gpt3-175b                   174,604,259,328 174,604,259,328
gpt3-2.7b                     2,651,553,280   2,651,553,280
gpt3-350m                       355,871,744     355,871,744
gpt3-6.7b                     6,658,404,352   6,658,404,352
gpt3-760m                       760,300,032     760,300,032
grok-1                      315,684,820,992  83,756,587,008
hunyuan-a13b-instruct        80,393,183,232  12,747,448,320
hunyuan-a52b-instruct       388,701,405,440  51,322,077,440
hunyuan-a52b-pretrain       388,698,128,640  51,318,800,640
hy-mt2-7b                     7,504,568,320   7,504,568,320
internlm-65b                 66,454,298,624  66,454,298,624
internlm-7b                   7,321,948,160   7,321,948,160
internlm2-20b                19,861,149,696  19,861,149,696
internlm2-7b                  7,737,708,544   7,737,708,544
internlm2.5-1.8b-chat         1,889,110,016   1,889,110,016
internlm2.5-20b              19,861,149,696  19,861,149,696
internlm2.5-20b-chat         19,861,149,696  19,861,149,696
internlm2.5-7b                7,737,708,544   7,737,708,544
internlm3-8b-instruct         8,804,241,408   8,804,241,408
kimi-k2                     1,026,408,232,448  32,861,500,928
ling-1t                     999,705,328,640  51,054,427,136
ling-flash-2.0              102,889,705,216   6,152,277,760
ling-mini-2.0                16,255,643,392   1,432,973,056
llama-13b                    13,015,864,320  13,015,864,320
llama-30b                    32,528,943,616  32,528,943,616
llama-65b                    65,285,660,672  65,285,660,672
llama-7b                      6,738,415,616   6,738,415,616
llama2-13b                   13,015,864,320  13,015,864,320
llama2-70b                   68,976,648,192  68,976,648,192
llama2-7b                     6,738,415,616   6,738,415,616
llama3-70b                   70,553,706,496  70,553,706,496
llama3-8b                     8,030,261,248   8,030,261,248
llama3.1-405b               405,853,388,800 405,853,388,800
llama3.1-70b                 70,553,706,496  70,553,706,496
llama3.1-8b                   8,030,261,248   8,030,261,248
llama3.2-1b                   1,235,814,400   1,235,814,400
llama3.2-3b                   3,212,749,824   3,212,749,824
llama3.3-70b                 70,553,706,496  70,553,706,496
longcat-flash-chat          560,664,980,480  27,954,818,048
magistral-small-2506         23,572,403,200  23,572,403,200
mamba2-2.7b                   2,702,599,680   2,702,599,680
mamba2-8b-3t-4k               8,236,999,680   8,236,999,680
mamba2-hybrid-8b-3t-4k        8,654,517,248   8,654,517,248
minicpm-2b-128k               3,007,736,064   3,007,736,064
minicpm-2b-sft-bf16           2,724,880,896   2,724,880,896
minicpm-moe-8x2b             13,873,291,776   4,318,142,976
minicpm3-4b                   4,073,875,968   4,073,875,968
minimax-m2                  228,689,764,864  11,030,553,088
minimax-m2.7                228,689,764,864  11,030,553,088
mistral-7b-v0.1               7,241,732,096   7,241,732,096
mistral-7b-v0.3               7,248,023,552   7,248,023,552
mixtral-8x22b               140,620,634,112  39,152,031,744
mixtral-8x7b                 46,702,792,704  12,879,925,248
nemotron-h-8b-base-8k         8,100,852,736   8,100,852,736
phi-3.5-mini-instruct         3,821,079,552   3,821,079,552
phi-3.5-moe-instruct         41,873,153,344   6,640,999,744
phi-4-mini-instruct           3,836,021,760   3,836,021,760
plm-1.8b-base                 1,825,458,176   1,825,458,176
qwen-14b                     14,167,290,880  14,167,290,880
qwen-1_8b                     1,836,828,672   1,836,828,672
qwen-72b                     72,287,920,128  72,287,920,128
qwen-7b                       7,721,324,544   7,721,324,544
qwen1.5-0.5b                    463,987,712     463,987,712
qwen1.5-1.8b                  1,836,828,672   1,836,828,672
qwen1.5-110b                111,209,914,368 111,209,914,368
qwen1.5-14b-chat             14,167,290,880  14,167,290,880
qwen1.5-32b-chat             32,512,218,112  32,512,218,112
qwen1.5-4b-chat               3,950,369,280   3,950,369,280
qwen1.5-72b-chat             72,287,920,128  72,287,920,128
qwen1.5-7b-chat               7,721,324,544   7,721,324,544
qwen1.5-moe-a2.7b            14,315,784,192   2,689,173,504
qwen2-0.5b                      494,032,768     494,032,768
qwen2-1.5b                    1,543,714,304   1,543,714,304
qwen2-57b-a14b               57,408,658,944  14,249,270,784
qwen2-72b                    72,706,203,648  72,706,203,648
qwen2-7b                      7,615,616,512   7,615,616,512
qwen2.5-0.5b                    494,032,768     494,032,768
qwen2.5-1.5b                  1,543,714,304   1,543,714,304
qwen2.5-14b                  14,770,033,664  14,770,033,664
qwen2.5-32b                  32,763,876,352  32,763,876,352
qwen2.5-3b                    3,085,938,688   3,085,938,688
qwen2.5-72b                  72,706,203,648  72,706,203,648
qwen2.5-7b                    7,615,616,512   7,615,616,512
qwen2.5-coder-7b              7,615,616,512   7,615,616,512
qwen2.5-math-1.5b             1,543,714,304   1,543,714,304
qwen2.5-math-72b             72,706,203,648  72,706,203,648
qwen2.5-math-7b               7,615,616,512   7,615,616,512
qwen3-0.6b                      596,049,920     596,049,920
qwen3-1.7b                    1,720,574,976   1,720,574,976
qwen3-14b                    14,768,307,200  14,768,307,200
qwen3-235b-a22b             235,093,634,560  22,190,763,520
qwen3-30b-a3b                30,532,122,624   3,353,032,704
qwen3-32b                    32,762,123,264  32,762,123,264
qwen3-4b                      4,022,468,096   4,022,468,096
qwen3-8b                      8,190,735,360   8,190,735,360
qwen3-coder-480b-a35b       480,154,875,392  35,474,765,312
qwen3-coder-next             79,674,391,296   3,874,929,408
qwen3-next-80b-a3b-thinking  79,674,391,296   3,874,929,408
qwq-32b                      32,763,876,352  32,763,876,352
qwq-32b-preview              32,763,876,352  32,763,876,352
ring-1t                     999,705,328,640  51,054,427,136
ring-flash-2.0              102,889,705,216   6,152,277,760
seed-oss-36b-instruct        36,151,104,512  36,151,104,512
step-3.5-flash              197,800,427,328  11,987,323,968
yi-1.5-34b                   34,388,917,248  34,388,917,248
yi-1.5-6b                     6,061,035,520   6,061,035,520
yi-1.5-9b                     8,829,407,232   8,829,407,232
yi-34b                       34,388,917,248  34,388,917,248
yi-6b                         6,061,035,520   6,061,035,520
yi-9b                         8,829,407,232   8,829,407,232
"""


def test_every_size_and_its_parameters():
    """Total and active parameters of every published size; a changed figure here is a changed model."""
    lines = [
        f"{name:27} {num_params(spec):>15,} {num_active_params(spec):>15,}"
        for name, spec in ((name, model_preset(name)) for name in model_names())
        if size_of(name) == name
    ]
    assert lines == SIZES.strip().splitlines()


@pytest.mark.parametrize("name", [name for name in model_names() if size_of(name) != name])
def test_a_variant_has_the_parameters_of_its_size(name: str):
    """Instruct, base and later models of a size hold what the size holds; Mixtral-8x22B-Instruct has more tokens."""
    more_tokens = 2 * 768 * 6144 if name == "mixtral-8x22b-instruct" else 0
    assert num_params(model_preset(name)) == num_params(model_preset(size_of(name))) + more_tokens


def test_base_and_instruct_differ_where_they_were_published_to():
    """Qwen2.5-14B and its instruct model differ in length and epsilon, Qwen3-8B and its base in length."""
    base, instruct = model_preset("qwen2.5-14b"), model_preset("qwen2.5-14b-instruct")
    assert (base.max_position, base.norm_eps) == (131072, 1e-5)
    assert (instruct.max_position, instruct.norm_eps) == (32768, 1e-6)
    assert model_preset("qwen3-8b").max_position == 40960
    assert model_preset("qwen3-8b-base").max_position == 32768


def test_an_unknown_preset_is_refused_with_a_near_match():
    """A misspelt name gets the nearest one."""
    with pytest.raises(SpecError, match=r"model='qwen25-7b': unknown preset; did you mean 'qwen2\.5-7b'\?"):
        model_preset("qwen25-7b")
