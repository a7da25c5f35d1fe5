"""Options of the command line as changes to a job's plain data."""

from typing import Literal

import attrs
import pytest
from hypothesis import given, settings

from ridgeline.apps.overrides import ALIASES, Override, apply_overrides, parse_overrides, read_value
from ridgeline.core.codec import structure, unstructure
from ridgeline.core.errors import SpecError
from ridgeline.core.job import FullRecompute, Job, LrSchedule, SelectiveRecompute, Source
from ridgeline.models.jobs import job_of, preset
from tests.strategies import jobs

BASE = {"model": "qwen3-0.6b", "cluster": "cpu", "batch": {"seq_len": 512, "gbs": 8}}


def job_with(*tokens, base=None):
    return job_of(apply_overrides(base or BASE, parse_overrides(tokens)))


def test_any_field_is_an_option():
    """By its dotted path, with = or without, dashes or underscores, and in any order."""
    job = job_with(
        *["--layout.tp", "2", "--batch.seq-len=256", "--optimizer.lr", "1e-4", "--run.async_save", "--run.seed", "7"],
        *["--cluster.devices-per-node", "4", "--layout.stages", "20,8", "--run.save-every", "none", "--name", "12"],
        *["--data.split", "1,0,0", "--layout.sp", "true", "--memory.distributed-optimizer", "false"],
    )
    assert (job.layout.tp, job.batch.seq_len, job.optimizer.lr, job.run.seed) == (2, 256, 1e-4, 7)
    assert (job.run.async_save, job.run.save_every, job.name) == (True, None, "12")
    assert (job.cluster.devices_per_node, job.layout.stages, job.data.split) == (4, (20, 8), (1.0, 0.0, 0.0))
    assert (job.layout.sp, job.memory.distributed_optimizer) == (True, False)


def test_short_names_stand_for_fields():
    """The short option and the dotted one say the same, and each alias is a field."""
    assert job_with("--tp", "2", "--gbs", "16", "--steps=5") == job_with(
        "--layout.tp", "2", "--batch.gbs", "16", "--run.steps", "5"
    )
    for path in ALIASES.values():
        section, name = path.split(".")
        assert name in attrs.fields_dict(type(getattr(preset("qwen3-0.6b"), section)))


def test_a_named_table_comes_before_its_fields():
    """``--nodes 2 --cluster cpu`` is a cpu cluster of two nodes, in either order."""
    tokens = ("--nodes", "2", "--cluster", "atlas-800t-a2")
    assert job_with(*tokens) == job_with(*tokens[2:], *tokens[:2])
    assert job_with(*tokens).cluster.world_size == 16


def test_fields_change_within_a_named_model():
    """The rest of the preset stays."""
    job = job_with("--model.tied-embeddings", "false")
    assert not job.model.tied_embeddings
    assert job.model.hidden == preset("qwen3-0.6b").model.hidden


def test_a_word_names_a_kind():
    """A member of a union is chosen by its kind, and its fields are then options like others."""
    assert job_with("--memory.recompute", "full").memory.recompute == FullRecompute()
    block = job_with("--memory.recompute.method", "block", "--memory.recompute", "full")
    assert block.memory.recompute == FullRecompute(method="block")
    saved = {**BASE, "memory": {"recompute": {"kind": "full", "method": "block"}}}
    assert job_with("--memory.recompute", "selective", base=saved).memory.recompute == SelectiveRecompute()
    assert job_with("--memory.recompute.num_layers", "4", base=saved).memory.recompute.num_layers == 4
    assert job_with("--memory.recompute", "none", base=saved).memory.recompute is None


def test_sources_are_paths_or_tables():
    """A list of paths, or TOML where more is to be said."""
    assert job_with("--data.sources", "a,b").data.sources == (Source(path="a"), Source(path="b"))
    tables = '[{path = "a", weight = 2.0}, {path = "b"}]'
    assert job_with("--data.sources", tables).data.sources == (Source(path="a", weight=2.0), Source(path="b"))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["--tpp", "8"], "--tpp='8': unknown option; did you mean 'tp'?"),
        (["--layout.tpp", "8"], "layout.tpp='8': unknown field; did you mean 'tp'?"),
        (["--tp", "eight"], "layout.tp='eight': must be an integer"),
        (["--tp"], "layout.tp='': must be an integer"),
        (["--layout.sp", "maybe"], "layout.sp='maybe': must be true or false"),
        (["--lr", "-1"], "optimizer.lr=-1.0: must be > 0.0"),
        (["--layout.stages", "3,x"], "layout.stages=(3, 'x'): must be a list, each an integer"),
        (["--layout.schedule", "1f1b_"], "layout.schedule='1f1b_': unknown; did you mean '1f1b'?"),
        (["--memory.recompute", "ful"], "memory.recompute.kind='ful': unknown kind; did you mean 'full'?"),
        (["--data.sources", "[{path"], "data.sources='[{path': is not TOML: "),
        (["8"], "option='8': is no option; write options as --FIELD VALUE"),
        (["--gbs", "4", "8"], "option='8': is no option"),
        (["--", "--gbs"], "option='--': is no option"),
    ],
)
def test_a_wrong_option_is_named(tokens, message):
    """With its value, the rule, and the near match."""
    with pytest.raises(SpecError) as caught:
        job_with(*tokens)
    assert str(caught.value).startswith(message)


def test_all_wrong_options_come_at_once():
    """One error for all that is no option."""
    with pytest.raises(SpecError) as caught:
        parse_overrides(["--tpp", "8", "--gbz=4", "x"])
    assert [problem.path for problem in caught.value.problems] == ["--tpp", "--gbz", "option"]


@given(jobs())
@settings(max_examples=30, deadline=None)
def test_every_leaf_of_a_job_can_be_set_by_its_path(job):
    """Setting a field to what it is, as text, changes nothing."""
    plain = unstructure(job)
    for section in ("layout", "batch", "run", "comm"):
        for name, value in plain[section].items():
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            if isinstance(value, list) or text.lower() != "none":
                changed = apply_overrides(plain, [Override((section, name), text)])
                assert isinstance(value, str) or changed[section][name] == value, name
    assert structure(plain, Job) == job


def test_values_follow_annotations():
    """The same text is read as what its field is."""
    assert read_value("8", str) == "8"
    assert read_value("8", int | None) == 8
    assert read_value("8", float) == 8.0
    assert read_value("none", int | None) is None
    assert read_value("none", Literal["none", "eod_reset"]) == "none"
    assert read_value("true", bool) is True
    assert read_value("wsd", LrSchedule) == {"kind": "wsd"}
    assert read_value(True, bool) is True
