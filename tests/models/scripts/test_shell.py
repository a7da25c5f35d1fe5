"""Shell scripts as data, against bash itself."""

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.core.errors import SpecError
from ridgeline.models.scripts.shell import training_command
from tests.models.scripts.launches import LLAMA2_7B, QWEN3_MOE

PIECES = st.sampled_from(
    (
        *("$A", "${A}", "${B[@]}", '"${B[@]}"', '"$A"', "'$A'", "x", '"x y"', "$((N*2 + 1))", "${C:-d e}", "p$A"),
        *('"$N"q', "\\\n  ", "${B[1]}", "${#B[@]}", '""'),
    )
)


@settings(max_examples=25, deadline=None)
@given(words=st.lists(PIECES, max_size=6), flag=st.sampled_from(["--a b", "--a  b c ", "--a"]))
def test_words_are_those_of_bash(words, flag):
    """The arguments that bash would pass are the arguments read."""
    head = f"A='{flag}'\nN=3\nB=(--one 'two three'  # a note\n four)\n"
    tail = " ".join(words)
    script = f"torchrun() {{ shift; printf '<%s>' \"$@\"; }}\n{head}torchrun pretrain_gpt.py {tail}\n"
    judged = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    read = training_command(f"{head}torchrun pretrain_gpt.py {tail}\n", source="s").arguments
    assert judged == ("".join(f"<{word}>" for word in read) or "<>")


def test_the_launcher_is_read():
    """Variables, arrays, arithmetic, defaults, an if and a here-document lead to the one command."""
    dense, moe = (training_command(text, source="s") for text in (LLAMA2_7B, QWEN3_MOE))
    assert dict(dense.launcher) == {"nproc_per_node": "8", "nnodes": "1", "node_rank": "0"}
    assert dict(moe.launcher) == {"nproc_per_node": "8", "nnodes": "2"}
    assert dense.arguments[:2] == ("--tensor-model-parallel-size", "1")
    assert dense.arguments[-2:] == ("--distributed-backend", "nccl")


@settings(deadline=None)
@given(st.text("ab$(){}\"'`\\\n=#;|<> ", max_size=40))
def test_no_text_breaks_the_reader(text):
    """Whatever a file holds, the answer is that it starts no training."""
    with pytest.raises(SpecError, match="looked for torchrun"):
        training_command(text, source="notes.txt")
