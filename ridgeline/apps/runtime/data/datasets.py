"""Training, validation and test samples of Megatron-core's ``GPTDataset`` over one corpus or a blend of several."""

import hashlib
import json
import shutil
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import attrs
import numpy as np
import torch.distributed as dist
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.blended_megatron_dataset_config import (
    convert_split_vector_to_split_matrix,
    parse_and_normalize_split,
)
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from torch.utils.data import Dataset

from ridgeline.apps.runtime.data.indexed import Corpus, sequence_lengths, with_suffix
from ridgeline.apps.runtime.data.rank_zero import check_visible, on_rank_zero
from ridgeline.core.errors import DataError, LoweringError

SPLITS = ("train", "valid", "test")


@attrs.frozen(kw_only=True)
class WeightedCorpus:
    """A corpus and its share of a blend, in samples; shares are relative."""

    corpus: Corpus
    weight: float = 1.0


@attrs.frozen(kw_only=True)
class SharedBlend:
    """One blend cut into training, validation and test by ``split``, relative shares of each corpus's sequences."""

    corpora: tuple[WeightedCorpus, ...]
    split: tuple[float, float, float] = (0.969, 0.03, 0.001)


@attrs.frozen(kw_only=True)
class SeparateBlends:
    """A blend of its own for each split; an empty one gives none."""

    train: tuple[WeightedCorpus, ...] = ()
    valid: tuple[WeightedCorpus, ...] = ()
    test: tuple[WeightedCorpus, ...] = ()


@attrs.frozen(kw_only=True)
class Samples:
    """Samples to build of each split; 0 builds none."""

    train: int
    valid: int = 0
    test: int = 0


@attrs.frozen(kw_only=True, eq=False)
class Datasets:
    """Samples by index, as many as were asked for or a few more; None where none were."""

    train: Dataset | None
    valid: Dataset | None
    test: Dataset | None


@attrs.frozen(kw_only=True)
class _Tokens:
    """What Megatron-core asks of a tokenizer here. Corpora hold no padding: ``pad`` is no id, nor an ``eod`` of -1."""

    eod: int
    vocab_size: int
    pad: int = -2

    @property
    def unique_identifiers(self) -> OrderedDict[str, object]:
        return OrderedDict(eod=self.eod, vocab_size=self.vocab_size)


def build_datasets(
    blend: SharedBlend | SeparateBlends,
    *,
    samples: Samples,
    seq_len: int,
    seed: int,
    eod: int,
    vocab_size: int,
    cache: Path,
    group: dist.ProcessGroup | None = None,
) -> Datasets:
    """Build the datasets on every rank; the sample indices are computed and written by rank 0 alone.

    The indices stand in a folder of ``cache`` named by the digest of all that decides them, the size and time of
    change of the corpora included; it has that name only once it is complete.

    Args:
        blend: What the samples are drawn from.
        samples: How many of each split.
        seq_len: Tokens of a sample; one more is read, for the last label.
        seed: Of the order of documents and samples.
        eod: Id that ends a document.
        vocab_size: Ids of the model.
        cache: Folder on storage all ranks share.
        group: A group that moves objects through host memory (gloo); None takes the default one.

    Raises:
        DataError: A split has fewer tokens than one sample needs, or the cache is not shared or not writable.
        LoweringError: No process group is initialised, which Megatron-core needs also where one rank is alone.
    """
    if not dist.is_initialized():
        raise LoweringError("build_datasets needs an initialised process group, also at world_size=1")
    wanted = [getattr(samples, name) for name in SPLITS]
    if not any(wanted):
        return Datasets(train=None, valid=None, test=None)
    identity = {
        "seq_len": seq_len,
        "seed": seed,
        "eod": eod,
        "vocab_size": vocab_size,
        "samples": wanted,
        "blend": attrs.asdict(blend, value_serializer=_with_stamp),
    }

    def open_folder() -> tuple[Path, Path]:
        _check_sizes(blend, wanted, seq_len=seq_len)
        return _open_folder(cache, json.dumps(identity, indent=2, default=str))

    folder, final = on_rank_zero(open_folder, group=group)
    check_visible(folder / "source.json", what="data.cache", group=group)
    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=seq_len,
        tokenizer=cast(Any, _Tokens(eod=eod, vocab_size=vocab_size)),  # its annotation is wider than what it reads
        path_to_cache=str(folder),
        reset_position_ids=False,  # packing.py restarts positions, in one pass
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        **_blend_arguments(blend, wanted),
    )
    if config.split_matrix is not None:
        # A split nobody wants may be empty, and Megatron never ends counting the epochs of an empty one.
        shares = [share if count else None for share, count in zip(config.split_matrix, wanted, strict=True)]
        config.split_matrix = cast(Any, shares)  # its annotation lacks the None it is documented to hold
    built = BlendedMegatronDatasetBuilder(GPTDataset, wanted, lambda: True, config).build()
    dist.barrier(group)
    on_rank_zero(lambda: _publish(folder, final), group=group)
    return Datasets(**dict(zip(SPLITS, built, strict=True)))


def _blend_arguments(blend: SharedBlend | SeparateBlends, wanted: Sequence[int]) -> dict[str, Any]:
    if isinstance(blend, SharedBlend):
        return {"blend": _megatron_blend(blend.corpora), "split": _split_text(blend)}
    each = [
        _megatron_blend(getattr(blend, name)) if count else None for name, count in zip(SPLITS, wanted, strict=True)
    ]
    return {"blend_per_split": each}


def _megatron_blend(corpora: Sequence[WeightedCorpus]) -> tuple[list[str], list[float] | None]:
    prefixes = [str(weighted.corpus.prefix) for weighted in corpora]
    return prefixes, [weighted.weight for weighted in corpora] if len(corpora) > 1 else None


def _split_text(blend: SharedBlend) -> str:
    return ",".join(
        np.format_float_positional(share) for share in blend.split
    )  # Megatron reads digits and points, no exponents


def _check_sizes(blend: SharedBlend | SeparateBlends, wanted: Sequence[int], *, seq_len: int) -> None:
    """Refuse a corpus with too little for one sample of a wanted split: Megatron would repeat it, or never end."""
    for index, (name, count) in enumerate(zip(SPLITS, wanted, strict=True)):
        if count == 0:
            continue
        if isinstance(blend, SharedBlend):
            share = convert_split_vector_to_split_matrix(parse_and_normalize_split(_split_text(blend)))[index]
            corpora, (begin, end) = blend.corpora, share or (0.0, 0.0)
            way_out = f"give {name} a larger share of split={_split_text(blend)}, "
        else:
            corpora, (begin, end), way_out = getattr(blend, name), (0.0, 1.0), ""
        if not corpora:
            raise DataError(
                f"data: {count} {name} samples are wanted, but no corpus is given for {name}; add one, or want none"
            )
        for corpus in (weighted.corpus for weighted in corpora):
            lengths = sequence_lengths(with_suffix(corpus.prefix, ".idx"), corpus.sequences)
            part = lengths[round(begin * corpus.sequences) : round(end * corpus.sequences)]
            if (tokens := int(part.sum(dtype=np.int64))) < seq_len + 1:
                raise DataError(
                    f"data {str(corpus.prefix)!r}: its {name} part has {tokens} tokens in {len(part)} of "
                    f"{corpus.sequences} sequences, one sample of seq_len={seq_len} needs {seq_len + 1}; "
                    f"{way_out}shorten seq_len or add data"
                )


def _with_stamp(instance: object, field: object, value: object) -> object:
    """A corpus is what its files were when it was opened: their size and time of change are part of its identity."""
    if isinstance(instance, Corpus) and isinstance(value, Path):
        stats = [with_suffix(value, suffix).stat() for suffix in (".idx", ".bin")]
        return [str(value), *((stat.st_size, stat.st_mtime_ns) for stat in stats)]
    return value


def _open_folder(cache: Path, identity: str) -> tuple[Path, Path]:
    """The folder of the sample indices, and the one it becomes when they are complete; one and the same if they are."""
    final = cache / hashlib.sha256(identity.encode()).hexdigest()[:32]
    if final.is_dir():
        return final, final
    folder = cache / f".{final.name}.{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True)
        (folder / "source.json").write_text(identity + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"data.cache={str(cache)!r}: cannot be written: {error.strerror or error}; "
            "choose another folder or free some room"
        ) from error
    return folder, final


def _publish(folder: Path, final: Path) -> None:
    """Give complete indices their name. Arrays already mapped stay valid through the move."""
    if folder == final:
        return
    try:
        folder.rename(final)
    except OSError:
        if not final.is_dir():
            raise
        shutil.rmtree(folder, ignore_errors=True)  # another job was faster, with the same indices
