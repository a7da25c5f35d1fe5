"""Jobs from short descriptions."""

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.core.cluster import Cluster
from ridgeline.core.codec import unstructure
from ridgeline.core.errors import SpecError
from ridgeline.core.job import Batch, Job
from ridgeline.core.layout import Layout
from ridgeline.models.jobs import job_of, merged, preset, preset_job
from ridgeline.models.zoo import model_names, model_preset, preset_of
from ridgeline.parallel.clusters import cluster_preset
from ridgeline.parallel.plan import plan

SIZES = {"batch": {"seq_len": 512, "gbs": 8}}


def test_names_stand_for_tables():
    """A job that names its model and cluster equals one that spells them out."""
    named = job_of({"model": "qwen2.5-7b", "cluster": "atlas-800t-a2", **SIZES})
    spelled = job_of(
        {
            "model": unstructure(model_preset("qwen2.5-7b")),
            "cluster": unstructure(cluster_preset("atlas-800t-a2")),
            **SIZES,
        }
    )
    assert named == spelled
    assert named.layout == Layout()  # a file says what is not the default


def test_fields_beside_a_name_replace_those_of_the_named():
    """Only what is written differs from the preset."""
    job = job_of(
        {
            "model": {"preset": "qwen2.5-7b", "tied_embeddings": True},
            "cluster": {"preset": "cpu", "nodes": 2, "devices_per_node": 4, "chip": {"hbm_bytes": 5}},
            **SIZES,
        }
    )
    assert job.model.tied_embeddings
    assert job.model.blocks == model_preset("qwen2.5-7b").blocks
    assert (job.cluster.world_size, job.cluster.chip.hbm_bytes, job.cluster.chip.device) == (8, 5, "cpu")


def test_a_local_folder_is_a_model(tmp_path):
    """``hf`` names a folder whose config.json is read; its name is the folder's."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_bytes(msgspec.json.encode(dict(preset_of("qwen3-0.6b").config)))
    job = job_of({"model": {"hf": str(tmp_path / "mine")}, "cluster": "cpu", **SIZES})
    assert job.model.name == "mine"
    assert job.model.blocks == model_preset("qwen3-0.6b").blocks


def test_paths_of_data_are_sources():
    """A source that is text is the path of one, and a single one needs no list."""
    job = job_of(
        {"model": "qwen3-0.6b", "cluster": "cpu", "data": {"sources": ["a", {"path": "b", "weight": 2}]}, **SIZES}
    )
    assert [(source.path, source.weight) for source in job.data.sources] == [("a", 1.0), ("b", 2.0)]
    one = job_of({"model": "qwen3-0.6b", "cluster": "cpu", "data": {"sources": "a"}, **SIZES})
    assert [source.path for source in one.data.sources] == ["a"]


@pytest.mark.parametrize(
    ("raw", "messages"),
    [
        ({"model": "qwen2.5-7"}, ["model='qwen2.5-7': unknown preset; did you mean 'qwen2.5-7b'"]),
        ({"cluster": "atlas-800"}, ["cluster='atlas-800': unknown; did you mean 'atlas-800t-a2'"]),
        ({"cluster": {"preset": "cpu", "nodes": "two"}}, ["cluster.nodes='two': must be an integer"]),
        ({"cluster": {"preset": "cpu", "nodes": 0}}, ["cluster.nodes=0: must be >= 1"]),
        ({"cluster": {"preset": 3}}, ["cluster.preset=3: must be text"]),
        ({"model": {"hf": "/nowhere"}}, ["model.hf='/nowhere': cannot be read: No such file or directory"]),
        ({"model": {"hf": "a", "preset": "b"}}, ["model.preset='b': excludes model.hf='a'"]),
        ({"model": "x", "cluster": "y", "layout": {"tp": 0}}, ["model='x'", "cluster='y'", "layout.tp=0: must be"]),
        ({"model": {"preset": "qwen2.5-7b", "hiden": 1}}, ["model.hiden=1: unknown field; did you mean 'hidden'"]),
        ({"data": {"sources": 5}}, ["data.sources=5: must be a list"]),
    ],
)  # fmt: skip
def test_wrong_names_come_with_all_other_faults(raw, messages):
    """A name that means nothing does not hide what is wrong elsewhere, and does not count as missing."""
    with pytest.raises(SpecError) as caught:
        job_of({"model": "qwen2.5-7b", "cluster": "cpu", **SIZES, **raw})
    lines = str(caught.value).splitlines()
    assert len(lines) == len(messages)
    assert all(line.startswith(message) for line, message in zip(lines, messages, strict=True))


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize(("cluster", "nodes"), [("atlas-800t-a2", 1), ("atlas-800t-a2", 16), ("cpu", 1)])
def test_every_preset_can_be_planned(name, cluster, nodes):
    """Whatever the rule chooses, no rule between specs is broken by it."""
    job = preset(name, cluster=cluster, nodes=nodes)
    assert plan(job).job.batch == job.batch
    assert job.batch.seq_len == min(4096, job.model.max_position)
    assert job.num_microbatches == max(16, 4 * job.layout.pp)


@given(tp=st.sampled_from([1, 2, 4]), pp=st.sampled_from([1, 2, 4]), gbs=st.none() | st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_what_is_given_stays(tp, pp, gbs):
    """The rule chooses around what the user says, and the result can still be planned."""
    batch = {} if gbs is None else {"gbs": gbs * 32}
    job = preset("qwen2.5-7b", nodes=2, layout={"tp": tp, "pp": pp}, batch=batch)
    assert (job.layout.tp, job.layout.pp, job.layout.sp) == (tp, pp, tp > 1)
    assert job.batch.gbs == batch.get("gbs", job.batch.gbs)
    plan(job)


def test_specs_are_given_whole():
    """A spec instead of a table says all of its fields."""
    job = preset(
        "qwen2.5-7b",
        layout=Layout(tp=8),
        batch=Batch(seq_len=128, gbs=4),
        cluster=cluster_preset("cpu", devices_per_node=8),
    )
    assert job.layout == Layout(tp=8)
    assert job.batch == Batch(seq_len=128, gbs=4)
    assert isinstance(job, Job)
    assert isinstance(job.cluster, Cluster)


def test_every_choice_is_said():
    """Each field that the rule chose has a sentence, and none that was given."""
    chosen = preset_job({"model": "qwen2.5-7b"})
    assert [note.split(":")[0] for note in chosen.notes] == [
        "batch.seq_len=4096",
        "layout.tp=2, pp=1, ep=1",
        "layout.sp=True",
        "batch.gbs=64",
    ]
    given = {"layout": {"tp": 2, "pp": 1, "ep": 1, "sp": True}, "batch": {"seq_len": 4096, "gbs": 64}}
    silent = preset_job({"model": "qwen2.5-7b", **given})
    assert silent.notes == ()
    assert silent.job == chosen.job


@pytest.mark.parametrize("name", ["qwen2.5-7b", "llama2-13b", "mixtral-8x7b", "qwen3-0.6b"])
def test_the_choice_is_the_smallest_that_fits(name):
    """It fits by the plan, and no layout with fewer stages, or as many and less tp, does."""
    job = preset(name, nodes=4)
    assert plan(job).peak.fits
    for pp, tp in itertools.product((1, 2, 4), (1, 2, 4, 8)):
        if (pp, tp) < (job.layout.pp, job.layout.tp):
            assert not plan(preset(name, nodes=4, layout={"pp": pp, "tp": tp})).peak.fits


def test_where_nothing_fits_the_least_is_chosen_and_said():
    """A job exists all the same, and its plan warns."""
    chosen = preset_job({"model": "llama3.1-405b"})
    assert any("none fits; the one that needs the least" in note for note in chosen.notes)
    assert any("does not fit" in warning for warning in plan(chosen.job).warnings)


def test_degrees_that_cannot_be_are_left_to_the_check():
    """A preset with a wrong degree is refused like any other job."""
    with pytest.raises(SpecError, match=r"layout\.tp='two': must be an integer"):
        preset("qwen2.5-7b", layout={"tp": "two"})
    with pytest.raises(SpecError, match=r"batch\.gbs='many': must be an integer"):
        preset("qwen2.5-7b", batch={"gbs": "many"})


def test_tables_merge_unless_their_kind_changes():
    """Another kind is another table: none of the old fields stay."""
    base = {"a": {"kind": "x", "b": 1}, "c": 2}
    assert merged(base, {"a": {"b": 5}}) == {"a": {"kind": "x", "b": 5}, "c": 2}
    assert merged(base, {"a": {"kind": "y"}}) == {"a": {"kind": "y"}, "c": 2}


def test_what_the_rule_would_choose_is_not_missing():
    """A fault that keeps the rule from choosing is told alone."""
    with pytest.raises(SpecError) as caught:
        preset_job({"model": "qwen2.5-7b", "cluster": {"preset": "cpu", "nodes": 0}, "batch": {"gbs": 0}})
    assert str(caught.value).splitlines() == ["cluster.nodes=0: must be >= 1", "batch.gbs=0: must be >= 1"]
