"""FLOPs of every family's example, against torch's count over transformers' own model."""

import attrs
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from ridgeline.core.flops import forward_flops_per_token
from ridgeline.models.hf_config import model_from_hf
from tests.models.examples import EXAMPLES, REMOTE

SEQ_LEN = 8
# transformers scores all positions, chosen or not; its complex rope needs even strides.
OVER_ALL = {"index_topk": SEQ_LEN, "kv_lora_rank": 14}
# A scan's chunks of products are no part of the formula; equal shares of zero experts are no whole number here.
NOT_COUNTED = {"qwen3_next", "mamba2", "nemotron_h", "longcat_flash"}


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - REMOTE - NOT_COUNTED))
def test_a_forward_counts_what_torch_counts(name):
    """To the operation, with attention over the whole sequence."""
    config = {**EXAMPLES[name], **{key: value for key, value in OVER_ALL.items() if key in EXAMPLES[name]}}
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), **eager).eval()
    spec = attrs.evolve(model_from_hf(config), mtp=0)  # transformers has no multi-token prediction
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(SEQ_LEN)[None])
    assert counter.get_total_flops() == SEQ_LEN * forward_flops_per_token(spec, SEQ_LEN, attention="full")
