"""A small tokenizer and documents that are not easy: many scripts, line breaks, quotes, and some that are empty."""

import random
from pathlib import Path

import pytest

from ridgeline.apps.runtime.data.bpe import train_bpe

WORDS = [
    *("the", "mountain", "ridge", "a", "path", "of", "stone", "and", "light", "we", "walk", "on", "until", "evening"),
    *("山", "道", "石", "光", "Übergang", "naïve", "дорога", "🏔️", "e=mc²", "tab\there", "line\nbreak", "back\\slash"),
    *('"quoted"', "<|endoftext|>", "wind", "water", "snow", "cloud", "summit", "valley", "風", "水", "雪"),
]


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Sixty texts of 0 to 120 words; every ninth is empty."""
    pick = random.Random(5)
    return ["" if i % 9 == 4 else " ".join(pick.choices(WORDS, k=pick.randint(1, 120))) for i in range(60)]


@pytest.fixture(scope="session")
def tokenizer_folder(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 400 tokens, end of document 0."""
    folder = tmp_path_factory.mktemp("tokenizer")
    text = folder / "text.txt"
    text.write_text("\n".join(documents), encoding="utf-8")
    return train_bpe([text], vocab_size=400, out=folder / "bpe").path
