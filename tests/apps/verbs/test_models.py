"""The list of published models, and one of them shown."""

from pathlib import Path

import msgspec
import pytest

from ridgeline.apps.cli import run
from ridgeline.core.codec import loads
from ridgeline.core.model import ModelSpec
from ridgeline.models.zoo import model_names, model_preset

DOCS = Path(__file__).parents[3] / "docs" / "models.md"


def test_the_table_in_the_docs_is_what_the_command_writes(capsys):
    assert run(["models", "--markdown"]) == 0
    assert capsys.readouterr().out == DOCS.read_text()


def test_every_model_is_listed_as_json(capsys):
    assert run(["models", "--json"]) == 0
    entries = {entry["name"]: entry for entry in msgspec.json.decode(capsys.readouterr().out)}
    assert tuple(entries) == model_names()
    main = entries["deepseek-v3"]["parameters"] - entries["deepseek-v3"]["prediction_parameters"]
    assert main == 671_026_419_200  # arXiv 2412.19437 says 671B, the hub's files hold this without their last layer
    assert "MLA" in entries["deepseek-v3"]["traits"]
    assert [row["layout"] for row in entries["aquila2-34b"]["references"]] == [{"tp": 8, "pp": 2, "sp": True}]


@pytest.mark.parametrize("words", [["show", "gemma-2-9b"], ["gemma-2-9b"]])
def test_a_model_is_shown_as_a_spec_and_a_drawing(capsys, words):
    assert run(["models", *words, "--format", "yaml"]) == 0
    out, err = capsys.readouterr()
    assert loads(out, ModelSpec, format="yaml") == model_preset("gemma-2-9b")
    assert "layers 0, 2, 4, 6 and so on, 21 in all, 198.2M parameters each" in err
    assert "attention: 16 heads of 256 over 8 key-value heads, window 4,096, soft-cap 50" in err


def test_a_model_is_shown_with_the_layouts_of_launch_scripts(capsys):
    assert run(["models", "show", "llama3.1-405b"]) == 0
    err = capsys.readouterr().err
    stages = "stages 7 8 8 8 8 8 8 7"
    assert f"MindSpeed-LLM trains 62 layers of it at 8,192 on 8 x 8: tp 8, pp 8, sp, {stages}, mbs 1, gbs 512\n" in err
    assert "MindSpeed-LLM trains it at 131,072 on 36 x 16: tp 16, pp 9, cp 4, sp" in err


def test_show_needs_one_name(capsys):
    assert run(["models", "show"]) == 2
    assert "models='show': must be one name; write: ridgeline models show NAME" in capsys.readouterr().err
