"""Every flag of MindSpeed-LLM and Megatron-LM we know, as one table: how many values it takes, and its fate in a job.

A name as the table spells it: ``name`` is a switch, ``name=`` takes a value, ``name*`` takes any number of words.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

from ridgeline.core.frozen import frozen

Fate: TypeAlias = Literal["mapped", "approximated", "no effect", "not expressible", "not understood"]


@frozen
class Flag:
    """What becomes of a flag. ``note`` is the field it sets, or the reason. ``many``: any number of words follow."""

    takes: Literal["nothing", "one", "many"]
    fate: Fate
    note: str


_GROUPS: tuple[tuple[Fate, str, str], ...] = (
    ("mapped", "layout.tp", "tensor-model-parallel-size="),
    ("mapped", "layout.pp", "pipeline-model-parallel-size="),
    ("mapped", "layout.vpp", "num-layers-per-virtual-pipeline-stage= num-virtual-stages-per-pipeline-rank="),
    ("mapped", "layout.cp", "context-parallel-size="),
    ("mapped", "layout.cp_algorithm", "context-parallel-algo= cp-comm-type*"),
    ("mapped", "layout.ulysses", "ulysses-degree-in-cp= hierarchical-context-parallel-sizes*"),
    ("mapped", "layout.repeat_kv", "kv-head-repeat-before-uly-alltoall"),
    ("mapped", "layout.ep", "expert-model-parallel-size="),
    ("mapped", "layout.etp", "expert-tensor-parallel-size="),
    ("mapped", "layout.ep, layout.etp", "moe-tp-extend-ep"),
    ("mapped", "layout.sp", "sequence-parallel"),
    ("mapped", "layout.stages", "num-layer-list= pipeline-model-parallel-layout="),
    ("mapped", "layout.noop_layers", "noop-layers="),
    ("mapped", "layout.schedule", "schedules-method= dualpipev-dw-detach enable-seq1f1b"),
    ("mapped", "layout.slices", "seq1f1b-splits="),
    ("approximated", "layout.slices are as long as each other", "seq1f1b-balance-method="),
    ("mapped", "comm.moe_fb_overlap", "moe-fb-overlap overlap-moe-expert-parallel-comm"),
    ("mapped", "memory.recompute_when", "recompute-in-advance recompute-in-bubble"),
    ("mapped", "layout.microbatch_group_size", "microbatch-group-size-per-virtual-pipeline-stage="),
    ("mapped", "layout.vocab_multiple", "make-vocab-size-divisible-by="),
    ("mapped", "layout.order", "use-tp-pp-dp-mapping"),
    ("mapped", "batch.seq_len", "seq-length="),
    ("mapped", "batch.mbs", "micro-batch-size="),
    ("mapped", "batch.gbs", "global-batch-size="),
    ("mapped", "batch.packing", "reset-position-ids reset-attention-mask"),
    ("mapped", "model.vocab_size", "vocab-size="),
    ("approximated", "model.vocab_size, padding included", "padded-vocab-size="),
    ("mapped", "model.hidden", "hidden-size="),
    ("mapped", "model.max_position", "max-position-embeddings="),
    ("mapped", "model.norm_eps", "norm-epsilon="),
    ("mapped", "model.tied_embeddings", "untie-embeddings-and-output-weights"),
    ("mapped", "model.init_std", "init-method-std="),
    ("mapped", "model.mtp", "mtp-num-layers="),
    ("mapped", "model.blocks", "num-layers= first-k-dense-replace= moe-layer-freq="),
    ("mapped", "mixer.heads", "num-attention-heads="),
    ("mapped", "mixer.kv_heads", "num-query-groups= group-query-attention"),
    ("mapped", "mixer.head_dim", "kv-channels="),
    ("mapped", "mixer.qkv_bias", "add-qkv-bias"),
    ("mapped", "mixer.qkv_bias, mixer.out_bias, mlp.bias", "disable-bias-linear"),
    ("mapped", "mixer.out_bias", "add-dense-bias"),
    ("mapped", "mixer.qk_norm", "qk-layernorm"),
    ("mapped", "mixer.window", "window-size="),
    ("mapped", "mixer.rope.base", "rotary-base="),
    ("mapped", "mixer.rope.scaling", """
        rotary-seq-len-interpolation-factor= rope-scaling-type= rope-scaling-factor= low-freq-factor=
        high-freq-factor= rope-scaling-original-max-position-embeddings= original-max-position-embeddings=
        beta-fast= beta-slow= rope-scaling-mscale= rope-scaling-mscale-all-dim= use-rope-scaling
    """),
    ("mapped", "mixer of kind latent_attention", """
        multi-latent-attention q-lora-rank= kv-lora-rank= qk-head-dim= qk-pos-emb-head-dim= v-head-dim=
        qk-nope-head-dim= qk-rope-head-dim=
    """),
    ("mapped", "feed_forward.ffn_hidden", "ffn-hidden-size= moe-ffn-hidden-size= moe-intermediate-size="),
    ("mapped", "feed_forward.activation", "swiglu gelu-tanh squared-relu"),
    ("mapped", "the model's norm", "normalization="),
    ("mapped", "mixer.rope", "position-embedding-type= use-rotary-position-embeddings"),
    ("mapped", "moe.experts", "num-experts="),
    ("mapped", "moe.topk", "moe-router-topk="),
    ("mapped", "moe.normalize_topk", "norm-topk-prob moe-router-pre-softmax"),
    ("mapped", "moe.aux_loss", "moe-aux-loss-coeff= moe-router-load-balancing-type="),
    ("mapped", "moe.z_loss", "moe-z-loss-coeff="),
    ("mapped", "moe.shared_ffn, moe.shared_gate", """
        n-shared-experts= moe-shared-expert-intermediate-size= shared-expert-gate
    """),
    ("mapped", "moe.capacity_factor, moe.pad_to_capacity", """
        moe-expert-capacity-factor= moe-pad-expert-input-to-capacity
    """),
    ("mapped", "moe.drop", "moe-token-drop-policy="),
    ("mapped", "moe.expert_bias_rate", "moe-router-bias-update-rate="),
    ("mapped", "objective.indexer_loss", "indexer-loss-coeff="),
    ("mapped", "mixer.indexer", "enable-dsa-indexer index-head-dim= index-n-heads* index-topk="),
    ("mapped", "mixer.indexer.shared", "index-topk-freq= index-skip-topk-offset="),
    ("mapped", "moe.zero_experts", "num-zero-experts="),
    ("mapped", "model.norm", "add-rmsnorm-offset apply-layernorm-1p"),
    ("mapped", "model.embedding_norm", "embed-layernorm"),
    ("mapped", "model.learned_positions", "no-position-embedding"),
    ("mapped", "model.logit_softcap", "output-logit-softcapping="),
    ("mapped", "model.head_bias", "add-output-layer-bias"),
    ("mapped", "model.embedding_scale", "scale-emb="),
    ("mapped", "model.residual_scale", "scale-depth="),
    ("mapped", "model.logit_scale", "dim-model-base="),
    ("mapped", "block.norms", "post-norm"),
    ("mapped", "mixer.softcap", "attn-logit-softcapping="),
    ("mapped", "moe.score", "moe-router-score-function="),
    ("mapped", "moe.groups, moe.group_topk", "moe-router-num-groups= moe-router-group-topk="),
    ("mapped", "moe.topk_scale", "moe-router-topk-scaling-factor="),
    ("mapped", "moe.expert_bias", "moe-router-enable-expert-bias"),
    ("mapped", "moe.aux_per_sequence", "seq-aux"),
    ("mapped", "moe.device_aux_loss, moe.comm_aux_loss", """
        moe-device-level-aux-loss-coeff= moe-comm-aux-loss-coeff=
    """),
    ("mapped", "mixer.rope.interleaved", "rotary-interleaved use-glm-rope"),
    ("mapped", "mixer.rope.share", "rotary-percent= partial-rotary-factor="),
    ("mapped", "precision.params", "bf16 fp16"),
    ("mapped", "precision.grads", "grad-reduce-in-bf16 accumulate-allreduce-grads-in-fp32 o2-gradient"),
    ("mapped", "precision.masters", "reuse-fp32-param"),
    ("mapped", "precision.moments", "o2-optimizer"),
    ("mapped", "memory.loss_chunk", "loss-compute-mode= loss-chunk-size="),
    ("mapped", "memory.swap_optimizer", "swap-optimizer"),
    ("mapped", "memory.swap_attention", "swap-attention"),
    ("mapped", "memory.recompute", """
        recompute-granularity= recompute-method= recompute-num-layers= recompute-modules* recompute-activations
        recompute-activation-function recompute-activation-function-num-layers= recompute-norm
        recompute-norm-num-layers= enable-recompute-layers-per-pp-rank moe-zero-memory= moe-layer-recompute
    """),
    ("mapped", "memory.distributed_optimizer", "use-distributed-optimizer"),
    ("mapped", "comm.overlap_grad_reduce", "overlap-grad-reduce"),
    ("mapped", "comm.overlap_param_gather", "overlap-param-gather"),
    ("mapped", "comm.moe_dispatcher", "moe-token-dispatcher-type="),
    ("mapped", "comm.moe_overlap", """
        moe-shared-expert-overlap moe-alltoall-overlap-comm moe-allgather-overlap-comm moe-permutation-async-comm
    """),
    ("mapped", "comm.p2p", "no-overlap-p2p-communication"),
    ("mapped", "comm.tp_overlap", "use-ascend-mc2 use-ascend-coc"),
    ("mapped", "optimizer", "lr= min-lr= weight-decay= adam-beta1= adam-beta2= adam-eps= clip-grad="),
    ("mapped", "optimizer.lr_schedule", "lr-decay-style= lr-decay-iters= lr-wsd-decay-iters= lr-wsd-decay-style="),
    ("mapped", "optimizer.warmup_steps", "lr-warmup-iters= lr-warmup-fraction="),
    ("mapped", "objective.per_token", "calculate-per-token-loss"),
    ("mapped", "objective.mtp_loss", "mtp-loss-scaling-factor="),
    ("mapped", "objective.dropout", "hidden-dropout* attention-dropout="),
    ("mapped", "objective", """
        stage= is-instruction-dataset is-pairwise-dataset dpo-loss-type= dpo-beta= dpo-label-smoothing=
    """),
    ("mapped", "objective.padded", "no-pad-to-seq-lengths variable-seq-lengths"),
    ("mapped", "adapter", "lora-r= lora-alpha= lora-target-modules* qlora"),
    ("mapped", "data.sources", "data-path*"),
    ("mapped", "data.split", "split*"),
    ("mapped", "data.tokenizer", "tokenizer-name-or-path* tokenizer-model*"),
    ("mapped", "run.steps", "train-iters="),
    ("mapped", "run.output", "save*"),
    ("mapped", "run", "save-interval= log-interval= eval-interval= eval-iters= seed= async-save"),
    ("mapped", "profile", """
        profile profile-step-start= profile-step-end= profile-ranks* profile-level= profile-with-cpu profile-with-stack
        profile-with-memory profile-record-shapes profile-save-path=
    """),
    ("mapped", "run.deterministic", "npu-deterministic use-deter-comp"),
    ("no effect", "Ridgeline chooses its kernels", """
        use-flash-attn use-fused-rmsnorm use-fused-swiglu no-rope-fusion use-fused-rotary-pos-emb
        no-masked-softmax-fusion transformer-impl= no-gradient-accumulation-fusion gemm-gradient-accumulation-fusion
        moe-grouped-gemm moe-permute-fusion no-bias-dropout-fusion no-bias-gelu-fusion no-bias-swiglu-fusion
        attention-backend= use-fused-moe-token-permute-and-unpermute use-triton-gdn use-fused-ring-attention-update
        use-triton-mhc use-fused-mhc use-triton-swiglu-limit shape-order= sparse-mode= attention-mask-type=
        cp-attention-mask-type= attention-softmax-in-fp32 distributed-backend= moe-use-legacy-grouped-gemm
    """),
    ("no effect", "the router works in fp32", """
        router-gating-in-fp32 topk-softmax-in-fp32 moe-router-fusion
    """),
    ("no effect", "Ridgeline has one model code", """
        use-mcore-models use-legacy-models spec* model-type-hf= ai-framework=
    """),
    ("no effect", "where its own checkpoints lie; see init.hf and init.checkpoint", """
        load* ckpt-format= mg-save-dir* hf-cfg-dir* no-load-optim no-load-rng no-save-optim no-save-rng* finetune
        exit-on-missing-checkpoint output-prefix* enable-hf2mg-convert enable-mg2hf-convert ckpt-fully-parallel-load
    """),
    ("no effect", "how its data is read", """
        tokenizer-type= tokenizer-not-use-fast tokenizer-padding-side= handler-name* vocab-file* merge-file*
        num-workers= workers= no-shared-storage* no-shuffle dataloader-type= no-create-attention-mask-in-dataloader
        data-cache-path* mock-data cut-max-seqlen eod-mask-loss
    """),
    ("no effect", "how it logs, profiles and manages its processes", """
        log-throughput tensorboard-dir* manual-gc manual-gc-interval* profile-export-type= profile-data-simplification
        use-pytorch-profiler distributed-timeout-minutes= disable-gloo-group* no-check-for-nan-in-loss-and-grad
        local-rank= enable-high-availability enable-hbmfault-repair hccl-op-mode= log-params-norm
        log-num-zeros-in-grad tensorboard-log-interval= timing-log-level= moe-per-layer-logging
    """),
    ("no effect", "it scales the loss of fp16", """
        initial-loss-scale= loss-scale= min-loss-scale= loss-scale-window= hysteresis=
    """),
    ("no effect", "of generation, not of training", "max-new-tokens= max-batch-size= enable-thinking="),
    ("not expressible", "how fine-tuning data is prepared", """
        prompt-type= pack neat-pack padded-samples pad-to-multiple-of= fix-sub-seq-length=
    """),
    ("not expressible", "these adapters", """
        lora-fusion lora-ckpt-filter lora-load* lu-lora-final-layer-index= lu-lora-lr= lu-lora-lr-ratio=
    """),
    ("not expressible", "swapping to the host", "swap-optimizer-times= mla-swap-core-attn-out swap-modules="),
    ("not expressible", "the storage of weights and states", """
        fp8-format= fp8-recipe= fp8-reuse-quantized-weight qat-scheme=
        params-dtype= main-grads-dtype= exp-avg-dtype= exp-avg-sq-dtype=
    """),
    ("not expressible", "recomputing parts of a layer", "recompute-mla-up-proj"),
    ("not expressible", "a router that does not work in fp32", "moe-router-dtype="),
    ("not expressible", "how experts order their tokens", """
        moe-unperm2-mem-optim moe-unperm2-mem-optim-swap moe-apply-probs-on-input
    """),
    ("not expressible", "products and exchanges of experts as one kernel", """
        moe-alltoall-mc2 moe-bmm-mc2 moe-enable-deepep moe-deepep-num-sms= moe-flex-dispatcher-backend=
        moe-experts-pipeline-degree= use-pipe-experts pipe-experts-multi-data= pipe-experts-multi-stream
        moe-hierarchical-alltoallv delay-wgrad-compute
    """),
    ("not expressible", "experts that move between ranks, or are on several", """
        enable-expert-placement expert-placement-freq= enable-fine-grained-expert-placement
        fine-grained-expert-placement-thre= balanced-moe-experts balanced-moe-hot-expert-num=
        trans-hot-expert-group-num=
    """),
    ("not expressible", "experts made of a dense model, or of latents", """
        moe-use-upcycling moe-upcycling-granularity= moe-latent-size=
    """),
    ("not expressible", "padding that only products in fp8 want", """
        moe-router-padding-for-fp8 moe-router-padding-for-quantization
    """),
    ("not expressible", "overlapped and fused communication", """
        coc-fused-kernel coc-parallel-num= tp-2d tp-x= tp-y= use-cp-send-recv-overlap
        mla-up-proj-tp-overlap tp-comm-overlap cp-window-size=
    """),
    ("not expressible", "recomputing experts layer by layer", """
        moe-zero-memory-num-layers= moe-zerc moe-adaptive-recompute-activation moe-adaptive-recompute-activation-scale=
    """),
    ("not expressible", "a gate for each element of shared experts", "shared-expert-gate-output-dimension="),
    ("not expressible", "chunked logits", "output-layer-slice-num= mtp-mem-efficient-logits*"),
    ("not expressible", "MTP's module", "mtp-spec*"),
    ("not expressible", "how latent attention is computed", "mla-fa-without-pad mla-mm-split enable-mla-absorb"),
    ("not expressible", "scaled latent attention", """
        enable-mla-scale-kv-lora enable-mla-scale-q-lora no-enable-linear-qkv
    """),
    ("not expressible", "this router", """
        moe-input-jitter-eps= moe-revert-type-after-topk fix-router input-jitter
        n-hash-layers= moe-router-force-load-balancing moe-router-force-biased= moe-router-topk-limited-devices=
    """),
    ("not expressible", "sparse attention", """
        index-share-for-mtp-iteration
        use-sparse-flash-attn use-fused-lightning-indexer no-use-sparse-c8-indexer use-fused-lightning-indexer-loss
    """),
    ("not expressible", "compressed attention and hyper-connections", """
        kv-compress compress-ratios* compress-rope-theta= enable-mhc hc-mult= o-groups= o-lora-rank=
    """),
    ("not expressible", "linear attention and state space layers", """
        full-attention-interval= linear-key-head-dim= linear-num-key-heads= linear-num-value-heads=
        linear-value-head-dim= mamba-chunk-size= mamba-d-conv= mamba-expand= mamba-head-dim= mamba-num-groups=
        mamba-state-dim=
    """),
    ("not expressible", "these positions", """
        apply-rope-no-in-complex longrope-freqs-type=
        long-factor= short-factor= long-mscale= short-mscale= dynamic-factor= rope-factor= original-seq-len=
        square-alibi-mask fill-neg-inf
    """),
    ("not expressible", "this activation", "swiglu-limit= fc-type="),
    ("not expressible", "this norm", "input-embeds-norm init-norm-weight-in-fp32 rmsnorm-weight-in-fp32"),
    ("not expressible", "windows that change from layer to layer", """
        interleave-sliding-window= sliding-window-size= sliding-window=
    """),
    ("not expressible", "scales of embeddings, scores and logits", """
        embedding-multiplier-scale= output-multiplier-scale= query-pre-attn-scalar=
    """),
    ("not expressible", "sharing between layers", "cla-share-factor= share-kvstates enable-share-memory"),
    ("not expressible", "this bias", "skip-bias-add"),
    ("not expressible", "this optimizer", "optimizer= start-weight-decay= end-weight-decay= weight-decay-incr-style="),
    ("not expressible", "a length in samples", """
        train-samples= lr-decay-samples= lr-warmup-samples= rampup-batch-size*
    """),
    ("not expressible", "a data file for each split", "train-data-path* valid-data-path* test-data-path*"),
)  # fmt: skip


def _rows() -> Iterator[tuple[str, Flag]]:
    takes: Mapping[str, Literal["one", "many"]] = {"=": "one", "*": "many"}
    for fate, note, names in _GROUPS:
        for name in names.split():
            yield name.rstrip("=*"), Flag(takes.get(name[-1], "nothing"), fate, note)


FLAGS: Mapping[str, Flag] = MappingProxyType(dict(_rows()))
"""Known flags by name, without their dashes."""

NEUTRAL: Mapping[str, str] = MappingProxyType(
    {"cp-window-size": "1", "optimizer": "adam", "shared-expert-gate-output-dimension": "1", "moe-router-dtype": "fp32"}
)
"""Flags without a word in a job, each with the value by which it changes nothing."""


def is_neutral(name: str, value: str) -> bool:
    """Whether a flag with this value asks for nothing.

    Example:
        >>> is_neutral("cp-window-size", "1"), is_neutral("cp-window-size", "2"), is_neutral("optimizer", "adam")
        (True, False, True)
    """
    neutral = NEUTRAL.get(name)
    try:
        return neutral is not None and float(value) == float(neutral)
    except ValueError:
        return value == neutral
