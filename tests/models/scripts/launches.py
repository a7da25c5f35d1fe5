"""Launch scripts in the manner of those people have."""

LLAMA2_7B = r"""#!/bin/bash
export CUDA_DEVICE_MAX_CONNECTIONS=1
source /usr/local/Ascend/ascend-toolkit/set_env.sh   # never run

NPUS_PER_NODE=8
NNODES=1
NODE_RANK=${1:-0}
WORLD_SIZE=$(($NPUS_PER_NODE*$NNODES))
DATA_PATH="corpus/enwiki"
TP=1
PP=2

DISTRIBUTED_ARGS="
    --nproc_per_node $NPUS_PER_NODE \
    --nnodes $NNODES \
    --node_rank $NODE_RANK
"
GPT_ARGS="
    --tensor-model-parallel-size ${TP} \
    --pipeline-model-parallel-size ${PP} \
    --sequence-parallel \
    --num-layers 32 --hidden-size 4096 --ffn-hidden-size 11008 --num-attention-heads 32 \
    --seq-length 4096 --max-position-embeddings 4096 \
    --micro-batch-size 1 --global-batch-size 128 \
    --vocab-size 32000 --make-vocab-size-divisible-by 1 \
    --normalization RMSNorm --position-embedding-type rope --swiglu \
    --disable-bias-linear --untie-embeddings-and-output-weights \
    --use-flash-attn --use-fused-rmsnorm \
    --lr 1.25e-6 --lr-decay-style cosine --train-iters 2000 --lr-warmup-fraction 0.01 \
    --use-distributed-optimizer --overlap-grad-reduce --reset-position-ids \
    --bf16
"
if [ "$DEBUG" = "1" ]; then
    OUTPUT="--log-interval 1"
else
    OUTPUT="--log-interval 100"
fi
cat <<EOF
torchrun nothing.py --tensor-model-parallel-size 64
EOF
torchrun $DISTRIBUTED_ARGS pretrain_gpt.py \
    $GPT_ARGS $OUTPUT \
    --data-path $DATA_PATH --split 949,50,1 \
    --distributed-backend nccl \
    | tee logs/train.log
"""

QWEN3_MOE = r"""
NPUS_PER_NODE=8
NNODES=2
WORLD_SIZE=$((NPUS_PER_NODE * NNODES))
MOE_ARGS=(
    --num-experts 128       # of each layer
    --moe-router-topk 8
    --moe-ffn-hidden-size 768
    --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 0.001
    --norm-topk-prob --moe-token-dispatcher-type alltoall_seq --moe-grouped-gemm
)
MODEL_ARGS=(
    --num-layers 48 --hidden-size 2048 --ffn-hidden-size 6144 --num-attention-heads 32
    --group-query-attention --num-query-groups 4 --kv-channels 128 --qk-layernorm
    --rotary-base 1000000 --norm-epsilon 1e-6 --padded-vocab-size 151936 --max-position-embeddings 40960
    --normalization RMSNorm --position-embedding-type rope --swiglu --disable-bias-linear
    --untie-embeddings-and-output-weights --seq-length 4096 --micro-batch-size 1 --global-batch-size 256
)
python -m torch.distributed.launch --nproc_per_node=$NPUS_PER_NODE --nnodes ${NNODES} $basepath/pretrain_gpt.py \
    "${MODEL_ARGS[@]}" ${MOE_ARGS[@]} --pipeline-model-parallel-size 2 --expert-model-parallel-size 8 \
    --expert-tensor-parallel-size 1 --recompute-granularity full --recompute-method uniform --recompute-num-layers 1 \
    --swap-optimizer --brand-new-flag 3 --bf16
"""
