"""The operations of one microbatch on one rank, read alike by memory, time and collectives.

Source:
    megatron-core 0.16.1: tensor_parallel/layers.py (a column-parallel linear saves its input as it came, gathered or
    not, and gathers it again for the weight's gradient), tensor_parallel/cross_entropy.py (saves an fp32 softmax),
    transformer/mlp.py and transformer/moe (an expert's activation is scaled by its tokens' weights, which saves it),
    transformer/moe/token_dispatcher.py. Kernels that save as little as their gradient needs: an RMSNorm its input and
    fp32 rstd, SwiGLU its input, attention q, k, v, its output and two fp32 statistics of 8 lanes a row
    (npu_fusion_attention), rotary positions nothing but their tables.
"""

from ridgeline.parallel.ops.block import block_ops
from ridgeline.parallel.ops.ends import embedding_ops, head_ops
from ridgeline.parallel.ops.mtp import mtp_ops
from ridgeline.parallel.ops.sizes import Sizes, sizes_of
from ridgeline.parallel.ops.words import Comm, Op, Saved, deferred, kept

__all__ = [
    "Comm",
    "Op",
    "Saved",
    "Sizes",
    "block_ops",
    "deferred",
    "embedding_ops",
    "head_ops",
    "kept",
    "mtp_ops",
    "sizes_of",
]
