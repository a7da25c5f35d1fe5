"""Generation, judged by transformers on the same weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ridgeline.apps.runtime.engine import Cache, continued, new_cache, next_logits, open_engine
from ridgeline.apps.runtime.generate import chat, generate
from ridgeline.apps.runtime.next_token import Sampling
from ridgeline.apps.runtime.text_model import open_text_model, pieces, reply
from ridgeline.checkpoint.io.convert import import_hf
from ridgeline.checkpoint.io.hf import hf_weights
from ridgeline.core.errors import DataError, RidgelineError
from ridgeline.models.hf_config import model_from_hf, read_hf_config
from ridgeline.models.hf_names import hf_shapes
from tests.checkpoint.hf_models import CONFIGS, random_model
from tests.models.examples import EXAMPLES
from tests.pool import Pool

PROMPT = [5, 99, 3, 77, 5, 42]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)


def save_model(folder: Path, family: str, **changes: Any) -> transformers.PreTrainedModel:
    """A random model of wide logits, whose likeliest tokens are far apart."""
    model = random_model(family, initializer_range=0.3, **changes)
    model.save_pretrained(folder)
    return model


def save_tokenizer(folder: Path, *, template: str | None = TEMPLATE) -> None:
    """A tokenizer of single bytes, and the special tokens of a chat."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_ = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    bytes_.pre_tokenizer, bytes_.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytes_,
        eos_token="<end>",
        additional_special_tokens=["<user>", "<assistant>", "<system>", "<bot>"],
    )
    fast.chat_template = template
    fast.save_pretrained(folder)


def greedy(model: transformers.PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """What transformers puts after a prompt."""
    with torch.no_grad():
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    return out[0, len(prompt) :].tolist()


def continue_in_rank(folder: str, prompt: list[int], count: int) -> Any:
    """Greedy tokens, and the logits after each prefix with the cache and without."""
    model = model_from_hf(read_hf_config(folder))
    with open_engine(model, hf_weights(folder, model)) as engine:
        tokens = list(continued(engine, prompt, Sampling(max_tokens=count)))
        cache, differences = new_cache(engine), []
        for end in range(len(prompt), len(prompt) + 8):
            so_far = (prompt + tokens)[:end]
            with_cache, without = next_logits(engine, so_far, cache), next_logits(engine, so_far, Cache(64))
            differences.append(float((with_cache - without).abs().max() / without.abs().max()))
        # Another text with the same beginning: what is not shared is forgotten.
        other = [*prompt[:4], 8, 9]
        expected = next_logits(engine, other, Cache(64))
        differences.append(float((next_logits(engine, other, cache) - expected).abs().max() / expected.abs().max()))
        sampling = Sampling(max_tokens=12, temperature=1.0, top_p=0.9, seed=3)
        drawn = [list(continued(engine, prompt, sampling)) for _ in range(2)]
        stopped = list(continued(engine, prompt, Sampling(max_tokens=count), stop={tokens[4]}))
    return tokens, differences, drawn, stopped


@pytest.mark.parametrize("family", CONFIGS)
def test_greedy_equals_transformers(ranks: Pool, tmp_path: Path, family: str) -> None:
    """The likeliest tokens are transformers'; logits are the same without the cache; a seed repeats its draws."""
    model = save_model(tmp_path, family)
    expected = greedy(model, PROMPT, 40)

    ((tokens, differences, drawn, stopped),) = ranks.run(continue_in_rank, 1, str(tmp_path), PROMPT, 40)

    assert tokens == expected
    assert len(set(expected)) > 5  # else any engine would do
    assert max(differences) < 1e-5
    assert drawn[0] == drawn[1]
    assert drawn[0] != tokens[:12]
    assert stopped == tokens[: tokens.index(tokens[4])]


SHARED_CHOICE = {**EXAMPLES["glm_moe_dsa"], "indexer_types": ["full"] + ["shared"] * 2, "num_hidden_layers": 3}


@pytest.mark.parametrize("config", [EXAMPLES["hunyuan"], SHARED_CHOICE], ids=["keys and values", "choice"])
def test_what_layers_share_is_remembered(ranks: Pool, tmp_path: Path, config: dict[str, Any]) -> None:
    """A layer that takes what another made still has what it needs of earlier tokens."""
    config = {**config, "vocab_size": 100}
    generator = torch.Generator().manual_seed(2)
    shapes = hf_shapes(model_from_hf(config))
    tensors = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ((tokens, differences, *_),) = ranks.run(continue_in_rank, 1, str(tmp_path), PROMPT, 20)
    assert len(set(tokens)) > 3
    assert max(differences) < 1e-5


def limits_in_rank(folder: str) -> list[str]:
    """What an engine says of prompts that it cannot read, and how far it goes."""
    model, told = model_from_hf(read_hf_config(folder)), []
    with open_engine(model, hf_weights(folder, model)) as engine:
        for prompt in ([], [1] * 64, [1, 131]):
            try:
                next(continued(engine, prompt, Sampling()))
            except RidgelineError as error:
                told.append(str(error))
        told.append(str(len(list(continued(engine, [1] * 60, Sampling())))))
    return told


def test_limits(ranks: Pool, tmp_path: Path) -> None:
    """Empty, too long and foreign prompts are refused by name, and no text grows beyond what the model can hold."""
    save_model(tmp_path, "Llama")
    assert ranks.run(limits_in_rank, 1, str(tmp_path))[0] == [
        "prompt='': must hold at least one token",
        "prompt=64: tokens leave no room in model.max_position=64; use at most 63",
        "prompt=131: must be below model.vocab_size=131; use the model's own tokenizer",
        "4",
    ]


def write_in_rank(folder: str, checkpoint: str, prompt: str) -> Any:
    """The same text from a published folder and from a checkpoint, and a conversation."""
    sampling = Sampling(max_tokens=20)
    texts = [list(generate(folder, prompt, sampling)), list(generate(checkpoint, prompt, sampling, tokenizer=folder))]
    questions, told = iter(["hi", "and?", None]), []
    conversation = chat(folder, lambda: next(questions), told.append, sampling, system="be brief")
    with open_text_model(folder) as model:
        fresh = ["".join(reply(model, conversation[:length], sampling)) for length in (2, 4)]
    return texts, conversation, told, fresh


def test_text(ranks: Pool, tmp_path: Path) -> None:
    """Text from a folder equals transformers' and a checkpoint's; a conversation does not depend on its cache."""
    folder = tmp_path / "hf"
    model = save_model(folder, "Qwen3", vocab_size=261, max_position_embeddings=256)
    save_tokenizer(folder)
    import_hf(folder, tmp_path / "checkpoint")
    ((texts, conversation, told, fresh),) = ranks.run(
        write_in_rank, 1, str(folder), str(tmp_path / "checkpoint"), "How ü"
    )

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = greedy(model, tokenizer.encode("How ü"), 20)
    until = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else 20
    assert "".join(texts[0]) == tokenizer.decode(ids[:until], skip_special_tokens=True)
    assert texts[0] == texts[1]
    assert [message["role"] for message in conversation] == ["system", "user", "assistant", "user", "assistant"]
    assert [message["content"] for message in conversation[2::2]] == fresh
    assert "".join(told) == "".join(fresh)


class Letters:
    """A tokenizer of bytes."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")


@pytest.mark.parametrize("text", ["plain", "Grüße, 世界 🙂!", ""])
def test_pieces_are_whole_characters(text: str) -> None:
    """However characters are cut into tokens, each piece is whole text, and together they are all of it."""
    parts = list(pieces(Letters(), [*text.encode(), 300]))
    assert "".join(parts) == text
    assert all("\ufffd" not in part for part in parts)


def test_a_text_cut_in_a_character_is_shown_as_it_is() -> None:
    """Bytes that end in the middle of a character are shown as the tokenizer shows them."""
    assert "".join(pieces(Letters(), "aü".encode()[:2])) == "a\ufffd"


def refusals_in_rank(folder: str, bare: str) -> list[str]:
    """What is said of a tokenizer without a template, and of a model without a tokenizer."""
    told = []
    try:
        with open_text_model(folder) as model:
            next(reply(model, [{"role": "user", "content": "hi"}], Sampling()))
    except DataError as error:
        told.append(str(error))
    try:
        list(generate(bare, "x", Sampling()))
    except DataError as error:
        told.append(str(error))
    return told


def test_what_cannot_talk_says_so(ranks: Pool, tmp_path: Path) -> None:
    """A tokenizer without a chat template, and a checkpoint that names no tokenizer, are refused by name."""
    folder = tmp_path / "hf"
    save_model(folder, "Llama", vocab_size=261)
    save_tokenizer(folder, template=None)
    import_hf(folder, tmp_path / "bare")
    told = ranks.run(refusals_in_rank, 1, str(folder), str(tmp_path / "bare"))[0]
    assert "has no chat template, so the model was not made to chat" in told[0]
    assert told[1] == f"tokenizer=None: {tmp_path}/bare says of none; give the tokenizer's folder"
