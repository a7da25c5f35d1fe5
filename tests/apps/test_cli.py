"""The command line: verbs, exit codes, and one clear message for every error."""

import importlib

import pytest

from ridgeline.apps.cli import DATA_VERBS, VERBS, module_of, run
from ridgeline.apps.edges import edge
from ridgeline.models.jobs import preset
from ridgeline.models.zoo import model_names


def outcome(capsys, *tokens):
    code = run(tokens)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_help_names_every_verb(capsys):
    """With what it is for; no verb is loaded for it."""
    code, out, _ = outcome(capsys, "--help")
    assert code == 0
    for name, text in VERBS:
        assert f" {name} " in out
        assert " ".join(text.split()[:3]) in out


def test_every_verb_exists():
    """Each import string of the table leads to a function whose help can be printed."""
    modules = [(module_of(name), module_of(name)) for name, _ in VERBS] + [("data", name) for name, _ in DATA_VERBS]
    for module, name in modules:
        verb = getattr(importlib.import_module(f"ridgeline.apps.verbs.{module}"), name)
        assert verb.__doc__


@pytest.mark.parametrize("verb", [name for name, _ in VERBS])
def test_every_verb_has_help(capsys, verb):
    """Options and arguments with a sentence each."""
    code, out, err = outcome(capsys, verb, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: ridgeline {verb}" in out
    module = importlib.import_module(f"ridgeline.apps.verbs.{module_of(verb)}")
    first_line = getattr(module, module_of(verb)).__doc__.splitlines()[0]
    assert first_line in " ".join(out.split())


def test_verbs_do_not_load_torch_when_imported():
    """A verb's file names its runtime as text."""
    import subprocess
    import sys

    names = {module_of(name) for name, _ in VERBS} | {"data"}
    imports = "".join(f"import ridgeline.apps.verbs.{name}\n" for name in names)
    program = "import sys\n" + imports
    check = "print([m for m in ('torch', 'numpy', 'megatron', 'transformers') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program + check], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["plan", "qwen2.5-7"], "SpecError: job='qwen2.5-7': is no preset, and no job file (.toml, .yaml, .json)"),
        (["plan", "no/such.toml"], "SpecError: file='no/such.toml': cannot be read: No such file or directory"),
        (["plan", "qwen2.5-7b", "--tpp", "8"], "SpecError: --tpp='8': unknown option; did you mean 'tp'?"),
        (["plan", "qwen2.5-7b", "--layout.tpp", "8"], "SpecError: layout.tpp='8': unknown field; did you mean 'tp'?"),
        (["plan", "qwen2.5-7b", "--tp", "3"], "PlanError: layout.tp*cp*pp=3: must divide world_size=8"),
        (["plan", "qwen2.5-7b", "--seq-len", "200000"], "PlanError: batch.seq_len=200000: must be <= model."),
        (["plan", "qwen2.5-7b", "--cluster", "atlas"], "SpecError: cluster='atlas': unknown; did you mean"),
        (["plan"], 'ridgeline: Command "plan" parameter JOB requires an argument.'),
        (["pln"], 'ridgeline: Unknown command "pln". Did you mean "plan"?'),
        (["models", "qwen2.5-7"], "SpecError: model='qwen2.5-7': unknown preset; did you mean 'qwen2.5-7b'?"),
        (["models", "--format", "xml"], "SpecError: --format='xml': unknown;"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message_and_code_2(capsys, monkeypatch, tokens, message):
    """On stderr, without a traceback, naming the field, the value and the way out."""
    monkeypatch.delenv("RIDGELINE_DEBUG", raising=False)
    code, out, err = outcome(capsys, *tokens)
    assert code == 2
    assert out == ""
    assert err.startswith(message)
    assert "Traceback" not in err


def test_all_faults_of_a_job_come_together(capsys):
    """A line each."""
    code, _, err = outcome(capsys, "plan", "qwen2.5-7b", "--layout.tpp", "8", "--gbs", "0", "--run.step", "3")
    assert code == 2
    paths = {line.removeprefix("SpecError: ").split("=")[0] for line in err.splitlines()}
    assert paths == {"layout.tpp", "batch.gbs", "run.step"}


def test_debug_shows_where_an_error_came_from(capsys, monkeypatch):
    """The message stays the last line."""
    monkeypatch.setenv("RIDGELINE_DEBUG", "1")
    _, _, err = outcome(capsys, "plan", "nothing")
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("SpecError: job='nothing'")


def test_diff_tells_equal_from_different(capsys, tmp_path):
    """Code 0 and no line for equal jobs, in whatever format; 1 and a line a field otherwise."""
    from ridgeline.core.codec import dumps

    job = preset("qwen3-0.6b")
    for format in ("toml", "yaml", "json"):
        (tmp_path / f"a.{format}").write_text(dumps(job, format=format))
    assert outcome(capsys, "diff", str(tmp_path / "a.toml"), str(tmp_path / "a.yaml")) == (0, "", "")
    assert outcome(capsys, "diff", str(tmp_path / "a.json"), "qwen3-0.6b") == (0, "", "")
    code, out, _ = outcome(capsys, "diff", "qwen3-0.6b", "qwen3-1.7b")
    assert code == 1
    assert "model.hidden: 1024 -> 2048\n" in out


def test_models_lists_and_shows(capsys):
    """Every preset with its size, and one as a spec that reads back."""
    from ridgeline.core.codec import loads
    from ridgeline.core.model import ModelSpec

    _, out, _ = outcome(capsys, "models")
    assert [line.split()[0] for line in out.splitlines()] == list(model_names())
    assert "46.70B, 12.88B active" in out
    for format in ("toml", "yaml", "json"):
        _, out, _ = outcome(capsys, "models", "mixtral-8x7b", "--format", format)
        assert loads(out, ModelSpec, format=format).name == "mixtral-8x7b"


def test_version_names_what_matters(capsys):
    """Without importing any of it."""
    code, out, _ = outcome(capsys, "version")
    assert code == 0
    assert {"ridgeline", "torch", "torch_npu", "megatron-core", "cann"} <= {
        line.split()[0] for line in out.splitlines()
    }


def test_an_edge_is_found_by_name():
    """As the verbs name them."""
    assert edge("math:gcd")(12, 18) == 6
