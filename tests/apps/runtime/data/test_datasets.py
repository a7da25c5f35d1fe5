"""Samples for training: Megatron-core's builder, called plainly, is the judge."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ridgeline.apps.runtime.data.datasets import Samples, SeparateBlends, SharedBlend, WeightedCorpus, build_datasets
from ridgeline.apps.runtime.data.indexed import Corpus, corpus_writer, open_corpus
from ridgeline.core.errors import DataError, LoweringError
from tests.pool import Pool

EOD = 0
SIZES = {"train": 50, "valid": 7, "test": 3}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two corpora of 200 and 90 documents of 5 to 40 tokens, ids below and from 1,000 on."""
    folder = tmp_path_factory.mktemp("corpora")
    random = np.random.default_rng(3)
    return [
        str(write(folder / "low", random, documents=200, first_id=1).prefix),
        str(write(folder / "high", random, documents=90, first_id=1000).prefix),
    ]


def write(prefix: Path, random: np.random.Generator, *, documents: int, first_id: int) -> Corpus:
    with corpus_writer(prefix, dtype="uint16") as output:
        for _ in range(documents):
            ids = random.integers(first_id, first_id + 900, random.integers(5, 40)).astype("uint16")
            ids[-1] = EOD
            output.append(ids.tobytes(), np.int32(len(ids)).tobytes(), np.int32(1).tobytes())
    return open_corpus(prefix)


def blend_of(prefixes: Sequence[str], weights: Sequence[float]) -> tuple[WeightedCorpus, ...]:
    return tuple(
        WeightedCorpus(corpus=open_corpus(Path(prefix)), weight=weight)
        for prefix, weight in zip(prefixes, weights, strict=True)
    )


def rows(dataset, count: int | None = None) -> list[list[int]] | None:
    """Tokens and last label of each sample."""
    if dataset is None:
        return None
    return [[*dataset[i]["tokens"].tolist(), int(dataset[i]["labels"][-1])] for i in range(count or len(dataset))]


def shared(
    prefixes: list[str], weights: list[float], cache: str, sizes: dict[str, int]
) -> dict[str, list[list[int]] | None]:
    """What our builder gives for one blend cut by a split."""
    blend = SharedBlend(corpora=blend_of(prefixes, weights), split=(0.8, 0.15, 0.05))
    built = build_datasets(
        blend, samples=Samples(**sizes), seq_len=16, seed=11, eod=EOD, vocab_size=2000, cache=Path(cache)
    )
    return {name: rows(getattr(built, name)) for name in SIZES}


def plain(prefixes: list[str], weights: list[float] | None, cache: str) -> dict[str, list[list[int]] | None]:
    """What Megatron's own builder gives, called with nothing of ours."""
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    tokenizer = SimpleNamespace(unique_identifiers={"class": "plain"}, eod=EOD, pad=-1, vocab_size=2000)
    config = GPTDatasetConfig(
        random_seed=11, sequence_length=16, blend=(prefixes, weights), split="80,15,5", path_to_cache=cache,
        tokenizer=tokenizer, reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False,
    )  # fmt: skip
    built = BlendedMegatronDatasetBuilder(GPTDataset, list(SIZES.values()), lambda: True, config).build()
    return {name: rows(dataset) for name, dataset in zip(SIZES, built, strict=True)}


def test_samples_of_one_corpus_are_those_of_megatron(ranks: Pool, corpora: list[str], tmp_path: Path) -> None:
    """The same tokens in the same order for all three splits."""
    (ours,) = ranks.run(shared, 1, corpora[:1], [1.0], str(tmp_path / "a"), SIZES)
    (theirs,) = ranks.run(plain, 1, corpora[:1], None, str(tmp_path / "b"))
    assert ours == theirs
    assert all(len(ours[name]) >= count for name, count in SIZES.items())


def test_samples_of_a_blend_are_those_of_megatron_in_their_shares(
    ranks: Pool, corpora: list[str], tmp_path: Path
) -> None:
    """The same tokens in the same order, seven of ten from the first corpus, and all ranks agree."""
    ours, other = ranks.run(shared, 2, corpora, [7.0, 3.0], str(tmp_path / "a"), SIZES)
    (theirs,) = ranks.run(plain, 1, corpora, [0.7, 0.3], str(tmp_path / "b"))
    assert ours == other == theirs
    from_low = sum(max(row) < 1000 for row in ours["train"][:50])
    assert from_low == 35


def test_the_second_run_finds_the_indices(ranks: Pool, corpora: list[str], tmp_path: Path) -> None:
    """Indices stand in one folder under their final name; a second run adds nothing and gives the same."""
    (first,) = ranks.run(shared, 1, corpora, [7.0, 3.0], str(tmp_path), SIZES)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    (again,) = ranks.run(shared, 1, corpora, [7.0, 3.0], str(tmp_path), SIZES)
    assert first == again
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    (folder,) = tmp_path.iterdir()
    assert not folder.name.startswith(".")
    assert json.loads((folder / "source.json").read_text())["seq_len"] == 16


def test_changed_data_under_the_same_name_gives_new_indices(ranks: Pool, tmp_path: Path) -> None:
    """Megatron's own cache goes by the path alone and would read the new file by the old index."""
    prefix = tmp_path / "c"
    write(prefix, np.random.default_rng(1), documents=100, first_id=1)
    ranks.run(shared, 1, [str(prefix)], [1.0], str(tmp_path / "cache"), SIZES)
    os.remove(f"{prefix}.bin")
    os.remove(f"{prefix}.idx")
    write(prefix, np.random.default_rng(2), documents=60, first_id=1000)
    (ours,) = ranks.run(shared, 1, [str(prefix)], [1.0], str(tmp_path / "cache"), SIZES)
    assert min(token for row in ours["train"] for token in row if token != EOD) >= 1000
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_split_nobody_wants_may_be_empty(ranks: Pool, tmp_path: Path) -> None:
    """Of six documents the test share holds none, over which Megatron would count epochs for ever."""
    corpora = [str(write(tmp_path / "six", np.random.default_rng(4), documents=6, first_id=1).prefix)]
    none_wanted = {"train": 20, "valid": 0, "test": 0}
    (ours,) = ranks.run(shared, 1, corpora, [1.0], str(tmp_path / "cache"), none_wanted, timeout=60)
    assert len(ours["train"]) >= 20
    assert ours["valid"] is ours["test"] is None
    (none,) = ranks.run(shared, 1, corpora, [1.0], str(tmp_path / "cache"), dict.fromkeys(SIZES, 0))
    assert none == {"train": None, "valid": None, "test": None}


def separate(low: str, high: str, cache: str) -> dict[str, list[list[int]] | None]:
    blend = SeparateBlends(train=blend_of([low, high], [1.0, 1.0]), valid=blend_of([high], [1.0]))
    built = build_datasets(
        blend, samples=Samples(train=20, valid=5), seq_len=16, seed=11, eod=EOD, vocab_size=2000, cache=Path(cache)
    )
    return {name: rows(getattr(built, name)) for name in SIZES}


def test_each_split_may_have_a_blend_of_its_own(ranks: Pool, corpora: list[str], tmp_path: Path) -> None:
    """Training from both corpora in halves, validation from one, no test."""
    (ours,) = ranks.run(separate, 1, *corpora, str(tmp_path))
    sources = Counter(max(row) < 1000 for row in ours["train"][:20])
    assert sources == {True: 10, False: 10}
    assert all(min(token for token in row if token) >= 1000 for row in ours["valid"])
    assert ours["test"] is None


def many(prefixes: list[str], cache: str) -> list[int]:
    """Blends of up to eight corpora in awkward shares and sizes; the length of each."""
    lengths = []
    for k in range(2, 9):
        for size in (1, 2, 3, 5, 17, 64):
            blend = SeparateBlends(train=blend_of((prefixes * 4)[:k], [1 / (i + 1) ** 2 for i in range(k)]))
            built = build_datasets(
                blend, samples=Samples(train=size), seq_len=8, seed=1, eod=EOD, vocab_size=2000, cache=Path(cache)
            )
            dataset = built.train
            lengths.append(len(dataset) - size)
            rows(dataset, size)
    return lengths


def test_blends_of_any_size_hold_what_was_asked_for(ranks: Pool, corpora: list[str], tmp_path: Path) -> None:
    """No share is too small for the builder, and no dataset shorter than the run."""
    (surplus,) = ranks.run(many, 1, corpora, str(tmp_path))
    assert min(surplus) >= 0


def refused(
    prefixes: list[str], cache: str, seq_len: int, split: tuple[float, float, float], sizes: dict[str, int]
) -> str:
    blend = SharedBlend(corpora=blend_of(prefixes, [1.0] * len(prefixes)), split=split)
    try:
        build_datasets(
            blend, samples=Samples(**sizes), seq_len=seq_len, seed=1, eod=EOD, vocab_size=2000, cache=Path(cache)
        )
    except DataError as error:
        return str(error)
    return "built"


def test_too_little_data_is_refused_on_every_rank(ranks: Pool, corpora: list[str], tmp_path: Path) -> None:
    """The corpus, its split, what it has and what a sample needs are named; Megatron would repeat it or hang."""
    long = r"low': its train part has \d+ tokens in 160 of 200 sequences, one sample of seq_len=100000 needs 100001"
    valid = r"its valid part has 0 tokens in 0 of 200 sequences, .*give valid a larger share of split=0.999,0.001,0."
    test = r"its test part has 0 tokens .* split=1.,0.00001,0."
    cases = [
        (100_000, (0.8, 0.1, 0.1), {"train": 1}, long),
        (64, (0.999, 0.001, 0.0), {"train": 1, "valid": 1}, valid),
        (64, (1.0, 0.00001, 0.0), {"train": 1, "test": 1}, test),
    ]
    for seq_len, split, sizes, message in cases:
        first, second = ranks.run(refused, 2, corpora, str(tmp_path), seq_len, split, sizes)
        assert first == second
        with pytest.raises(DataError, match=message):
            raise DataError(first)
    assert list(tmp_path.iterdir()) == []


def test_a_split_without_a_corpus_is_refused(ranks: Pool, tmp_path: Path) -> None:
    """Wanting samples of an empty blend is an error, not a mock dataset."""
    (message,) = ranks.run(refused, 1, [], str(tmp_path), 8, (1.0, 0.0, 0.0), {"train": 4})
    assert "4 train samples are wanted, but no corpus is given for train" in message


def test_a_process_group_is_needed(corpora: list[str], tmp_path: Path) -> None:
    """Megatron's blend asks for a rank also where there is one only; that is said before it fails."""
    blend = SharedBlend(corpora=blend_of(corpora, [1.0, 1.0]))
    with pytest.raises(LoweringError, match="initialised process group"):
        build_datasets(blend, samples=Samples(train=1), seq_len=8, seed=1, eod=EOD, vocab_size=2000, cache=tmp_path)
