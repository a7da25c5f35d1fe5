"""Raw text to a corpus: the bytes of Megatron-LM's tool, for any format and number of workers, or nothing at all."""

import io
import json
import os
import resource
import signal
from collections.abc import Sequence
from pathlib import Path

import attrs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ridgeline.apps.runtime.data.encode import Encoder, encode_block
from ridgeline.apps.runtime.data.prepare import encode_blocks, prepare_pretrain
from ridgeline.apps.runtime.data.reading import find_files, read_blocks
from ridgeline.core.errors import DataError

indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")
libraries = pytest.importorskip("megatron.core.tokenizers.text.libraries.huggingface_tokenizer")


def megatron_tool(path: Path, prefix: Path, *, tokenizer: Path, append_eod: bool, special_tokens: bool = False) -> None:
    """The loop of NVIDIA/Megatron-LM core_v0.16.1 tools/preprocess_data.py, with Megatron's tokenizer and builder."""
    encoder = libraries.HuggingFaceTokenizer(str(tokenizer), include_special_tokens=special_tokens)
    dtype = indexed_dataset.DType.optimal_dtype(encoder.vocab_size)
    builder = indexed_dataset.IndexedDatasetBuilder(f"{prefix}_text_document.bin", dtype=dtype)
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            text = json.loads(line)["text"]
            doc_ids, sentence_lens = [], []
            for sentence in text if isinstance(text, list) else [text]:
                sentence_ids = encoder.text_to_ids(sentence)
                if len(sentence_ids) > 0:
                    doc_ids.extend(sentence_ids)
                    sentence_lens.append(len(sentence_ids))
            if len(doc_ids) > 0 and append_eod:
                doc_ids.append(encoder.eod)
                sentence_lens[-1] += 1
            builder.add_document(doc_ids, sentence_lens)
    builder.finalize(f"{prefix}_text_document.idx")


def both(prefix: Path) -> tuple[bytes, bytes]:
    """The bytes of the two files."""
    files = [prefix.with_name(f"{prefix.name}_text_document{suffix}") for suffix in (".bin", ".idx")]
    return files[0].read_bytes(), files[1].read_bytes()


def write_lines(path: Path, texts: Sequence[object]) -> Path:
    lines = (json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts))
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("append_eod", [True, False])
@pytest.mark.parametrize("begins", [True, False], ids=["with <s>", "plain"])
def test_bytes_are_those_of_megatrons_tool(
    append_eod: bool, begins: bool, documents: list[str], tokenizer_folder: Path, tmp_path: Path
) -> None:
    """Empty documents, lists of sentences, special tokens in the text, tokenizers that add their own: all the same."""
    tokenizer = tokenizer_folder
    if begins:
        hf = AutoTokenizer.from_pretrained(str(tokenizer_folder))
        hf.add_special_tokens({"bos_token": "<s>"})
        template = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", hf.bos_token_id)])
        hf.backend_tokenizer.post_processor = template
        tokenizer = tmp_path / "begins"
        hf.save_pretrained(str(tokenizer))
    texts = [*documents, documents[:3], [], ["", documents[0], ""], ["", ""]]
    lines = write_lines(tmp_path / "a.jsonl", texts)
    megatron_tool(lines, tmp_path / "theirs", tokenizer=tokenizer, append_eod=append_eod, special_tokens=begins)
    prepared = prepare_pretrain(
        [lines], tmp_path / "ours", tokenizer=tokenizer, append_eod=append_eod, special_tokens=begins, workers=1
    )
    assert both(tmp_path / "ours") == both(tmp_path / "theirs")
    assert (AutoTokenizer.from_pretrained(str(tokenizer))("a")["input_ids"][0] == 400) == begins
    assert prepared.corpus.prefix == tmp_path / "ours_text_document"
    assert prepared.corpus.documents == len(texts)
    assert prepared.corpus.dtype == "uint16"
    assert prepared.source_bytes == lines.stat().st_size


def test_a_large_vocabulary_is_stored_in_int32_as_megatron_does(tmp_path: Path) -> None:
    """From 65,500 tokens on, the ids take four bytes."""
    words = Tokenizer(WordLevel({"</s>": 0, **{f"token{i}": i for i in range(1, 65_500)}}, unk_token="</s>"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(str(tmp_path / "large"))
    lines = write_lines(tmp_path / "a.jsonl", ["token17", "token3 token65499"])
    megatron_tool(lines, tmp_path / "theirs", tokenizer=tmp_path / "large", append_eod=True)
    assert prepare_pretrain([lines], tmp_path / "ours", tokenizer=tmp_path / "large").corpus.dtype == "int32"
    assert both(tmp_path / "ours") == both(tmp_path / "theirs")


def test_every_format_gives_the_same_corpus(documents: list[str], tokenizer_folder: Path, tmp_path: Path) -> None:
    """jsonl, Parquet, Arrow and a folder of parts in order give one and the same corpus."""
    table = pa.table({"text": documents})
    pq.write_table(table, tmp_path / "b.parquet")
    with pa.ipc.new_stream(tmp_path / "c.arrow", table.schema) as writer:
        writer.write_table(table)
    parts = tmp_path / "parts"
    parts.mkdir()
    write_lines(parts / "0.jsonl", documents[:20])
    (parts / "1.json").write_text(json.dumps([{"text": text} for text in documents[20:]]))
    inputs = [write_lines(tmp_path / "a.jsonl", documents), tmp_path / "b.parquet", tmp_path / "c.arrow", parts]
    for i, source in enumerate(inputs):
        prepare_pretrain([source], tmp_path / f"o{i}", tokenizer=tokenizer_folder / "tokenizer.json")
    assert len({both(tmp_path / f"o{i}") for i in range(len(inputs))}) == 1


def test_any_number_of_workers_gives_the_same_bytes(
    documents: list[str], tokenizer_folder: Path, tmp_path: Path
) -> None:
    """Two processes and this one agree over many blocks, and the progress bar ends full."""
    lines = write_lines(tmp_path / "a.jsonl", documents * 80)
    drawn = io.StringIO()
    prepare_pretrain([lines], tmp_path / "one", tokenizer=tokenizer_folder, workers=1)
    prepare_pretrain(
        [lines],
        tmp_path / "two",
        tokenizer=tokenizer_folder,
        workers=2,
        progress=Console(file=drawn, force_terminal=True, width=100),
    )
    assert lines.stat().st_size > 1 << 20
    assert both(tmp_path / "one") == both(tmp_path / "two")
    size = f"{lines.stat().st_size / 1e6:.1f}"
    assert f"{size}/{size} MB" in drawn.getvalue()


def test_a_worker_names_the_broken_line_and_nothing_stays(
    documents: list[str], tokenizer_folder: Path, tmp_path: Path
) -> None:
    """A fault deep in a file stops all workers, comes with its line, and leaves no file."""
    lines = write_lines(tmp_path / "a.jsonl", documents * 100)
    with lines.open("a") as file:
        file.write('{"text": "no end\n')
    with pytest.raises(DataError, match=r"a\.jsonl line 6001: expected one JSON object"):
        prepare_pretrain([lines], tmp_path / "out" / "c", tokenizer=tokenizer_folder, workers=2)
    assert list((tmp_path / "out").iterdir()) == []


def test_few_blocks_are_under_way_at_once(documents: list[str], tokenizer_folder: Path, tmp_path: Path) -> None:
    """The reader never runs further ahead of the writer than the window, whatever the size of the file."""
    lines = write_lines(tmp_path / "a.jsonl", documents)
    (file,) = find_files([lines]).files
    (block,) = read_blocks(file, text_key="text")
    taken = 0

    def many():
        nonlocal taken
        for _ in range(64):
            taken += 1
            yield block

    encoder = encoder_of(tokenizer_folder)
    ahead = [taken - given for given, _ in enumerate(encode_blocks(many(), encoder, workers=2), start=1)]
    assert taken == 64
    assert max(ahead) < 8


def encoder_of(folder: Path) -> Encoder:
    return Encoder(
        tokenizer=folder / "tokenizer.json",
        special_tokens=False,
        split_special_tokens=False,
        eod=0,
        text_key="text",
        dtype="uint16",
    )


def test_a_tokenizer_written_in_python_gives_the_same_as_in_rust(
    tokenizer_folder: Path, tmp_path: Path, documents: list[str]
) -> None:
    """The path by transformers and the path by its Rust backend agree block by block."""
    (file,) = find_files([write_lines(tmp_path / "a.jsonl", documents)]).files
    (block,) = read_blocks(file, text_key="text")
    fast = encoder_of(tokenizer_folder)
    assert encode_block(block, fast) == encode_block(block, attrs.evolve(fast, tokenizer=tokenizer_folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": ""}\n\n', r"a\.jsonl: no text was found; expected at least one document that is not empty"),
        (
            '{"text": "a"}\n{"text": "b \\ud800"}\n',
            r"a\.jsonl line 2: expected Unicode text, found the lone surrogate U\+D800",
        ),
    ],
)
def test_text_that_gives_no_tokens_is_refused(
    content: str, message: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    """Input without any token, or that no tokenizer takes, is an error, and nothing is written."""
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        prepare_pretrain([tmp_path / "a.jsonl"], tmp_path / "out" / "c", tokenizer=tokenizer_folder)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_tokenizer_without_end_of_document_is_refused_unless_none_is_wanted(
    documents: list[str], tokenizer_folder: Path, tmp_path: Path
) -> None:
    """The error lists what could end a document; naming it, or asking for no end, works."""
    alone = tmp_path / "alone.json"
    alone.write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    lines = write_lines(tmp_path / "a.jsonl", documents)
    with pytest.raises(
        DataError, match=r"alone\.json': names no end-of-sequence token .* its special tokens: '<\|endoftext\|>'"
    ):
        prepare_pretrain([lines], tmp_path / "c", tokenizer=alone)
    with pytest.raises(DataError, match=r"eod_token='<eod>' is not in its vocabulary"):
        prepare_pretrain([lines], tmp_path / "c", tokenizer=alone, eod_token="<eod>")
    prepare_pretrain([lines], tmp_path / "named", tokenizer=alone, eod_token="<|endoftext|>")
    prepare_pretrain([lines], tmp_path / "folder", tokenizer=tokenizer_folder)
    assert both(tmp_path / "named") == both(tmp_path / "folder")
    bare = prepare_pretrain([lines], tmp_path / "bare", tokenizer=alone, append_eod=False)
    assert bare.corpus.tokens == len(both(tmp_path / "named")[0]) // 2 - sum(map(bool, documents))


def test_arguments_that_make_no_sense_are_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    """Workers below one and a key that would be a path are named."""
    lines = write_lines(tmp_path / "a.jsonl", ["a"])
    with pytest.raises(DataError, match="workers=0: must be >= 1"):
        prepare_pretrain([lines], tmp_path / "c", tokenizer=tokenizer_folder, workers=0)
    with pytest.raises(DataError, match="text_key='a/b': names the output files"):
        prepare_pretrain([lines], tmp_path / "c", tokenizer=tokenizer_folder, text_key="a/b")


def test_a_full_disk_is_one_clear_error(tokenizer_folder: Path, documents: list[str], tmp_path: Path) -> None:
    """Where the system refuses to write more, the output is named and nothing stays."""
    lines = write_lines(tmp_path / "a.jsonl", documents * 30)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(
            DataError, match=r"output_prefix='.*/out/c_text_document': cannot be written: File too large"
        ):
            prepare_pretrain([lines], tmp_path / "out" / "c", tokenizer=tokenizer_folder, workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert os.listdir(tmp_path / "out") == []
