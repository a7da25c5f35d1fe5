"""Plain data to specs and back."""

import copy
import os
import subprocess
import sys

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.core.codec import FORMATS, digest, dumps, format_of, loads, parse, structure, unstructure
from ridgeline.core.errors import SpecError
from ridgeline.core.job import Data, Job, Optimizer, Source
from ridgeline.core.layout import Layout
from ridgeline.core.model import ModelSpec
from ridgeline.parallel.schedules.known import SCHEDULES
from tests.strategies import jobs, models, specs

PLAIN_MODEL = {
    "vocab_size": 100,
    "hidden": 8,
    "max_position": 64,
    "blocks": [
        {
            "block": {
                "mixer": {"kind": "attention", "heads": 2, "kv_heads": 1, "head_dim": 4},
                "feed_forward": {"kind": "mlp", "ffn_hidden": 16},
            },
            "count": 2,
        }
    ],
}
LINK = {"bandwidth": 1e9}
PLAIN_JOB = {
    "model": PLAIN_MODEL,
    "cluster": {
        "chip": {"name": "x", "cube_flops": 1e12, "vector_flops": 1e11, "hbm_bytes": 1, "hbm_bandwidth": 1e9},
        "devices_per_node": 2,
        "intra": LINK,
        "inter": LINK,
    },
    "batch": {"seq_len": 32, "gbs": 4},
}


def with_value(plain, path, value):
    """A copy of plain data with one value at a dotted path."""
    plain = copy.deepcopy(plain)
    *parents, last = path
    place = plain
    for name in parents:
        place = place[name] if isinstance(place, list) else place.setdefault(name, {})
    place[last] = value
    return plain


@pytest.mark.parametrize("format", sorted(FORMATS))
@given(job=jobs())
@settings(max_examples=25, deadline=None)
def test_a_job_survives_every_format_exactly(format, job):
    """Text and back gives an equal job, with equal text and an equal digest."""
    text = dumps(job, format=format)
    again = loads(text, Job, format=format)
    assert again == job
    assert digest(again) == digest(job)
    assert dumps(again, format=format) == text


@given(left=jobs(), right=jobs())
@settings(max_examples=20, deadline=None)
def test_digests_are_equal_iff_jobs_are(left, right):
    """Any two jobs, and two jobs that share all specs but some, are equal exactly when their digests are."""
    mixed = attrs.evolve(left, layout=right.layout, run=right.run)
    for other in (left, right, mixed):
        assert (digest(left) == digest(other)) == (left == other)
        assert (hash(left) == hash(other)) or left != other


def test_equal_numbers_have_equal_text():
    """An integer, a float and a negative zero that compare equal digest alike."""
    assert Optimizer(lr=1, weight_decay=-0.0) == Optimizer(lr=1.0, weight_decay=0)
    assert digest(Optimizer(lr=1, weight_decay=-0.0)) == digest(Optimizer(lr=1.0, weight_decay=0))
    assert digest(Data(split=[1, 0, -0.0])) == digest(Data(split=(1.0, 0.0, 0.0)))


def test_a_digest_is_the_same_in_a_fresh_process():
    """Neither the process nor PYTHONHASHSEED reaches the digest."""
    job = structure(PLAIN_JOB, Job)
    program = (
        "import sys; from ridgeline.core.codec import *; from ridgeline.core.job import Job; "
        "print(digest(loads(sys.stdin.read(), Job)))"
    )
    for seed in ("0", "77"):
        run = subprocess.run(
            [sys.executable, "-c", program], input=dumps(job), env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert run.stdout.strip() == digest(job)


@given(jobs())
@settings(max_examples=10, deadline=None)
def test_jobs_are_values(job):
    """Equal jobs built apart are one key."""
    again = structure(unstructure(job), Job)
    assert again is not job
    assert {job: "here"}[again] == "here"


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just("\ud800")
NAMES = st.sampled_from(("kind", "count", "block")) | st.integers()
GARBAGE = st.recursive(
    LEAVES | st.just(10**400),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=4,
)
MIXER = ("model", "blocks", 0, "block", "mixer")
PATHS = st.sampled_from(
    (
        *(
            ("name",),
            ("model",),
            ("model", "hidden"),
            ("model", "blocks"),
            ("model", "blocks", 0),
            ("model", "norm_eps"),
        ),
        *(("model", "blocks", 0, "count"), MIXER, (*MIXER, "kind"), (*MIXER, "window"), (*MIXER, "rope", "scaling")),
        *(("layout", "tp"), ("layout", "stages"), ("layout", "schedule"), ("run", "seed"), ("nonsense",)),
        *(("optimizer", "lr"), ("optimizer", "lr_schedule"), ("memory", "recompute"), ("cluster", "chip")),
        *(("data", "sources"), ("data", "split")),
    )
)


@given(path=PATHS, value=GARBAGE)
@settings(max_examples=200, deadline=None)
def test_garbage_is_a_spec_error_or_a_spec(path, value):
    """Whatever stands in one place of a file, the answer is a job that serialises or a fault that names the place."""
    try:
        job = structure(with_value(PLAIN_JOB, path, value), Job)
    except SpecError as error:
        paths = [problem.path for problem in error.problems]
    else:
        paths = []
        assert loads(dumps(job), Job) == job
    assert all(where.startswith(path[0]) for where in paths)


def test_every_fault_of_a_job_is_reported_at_once():
    """Unknown, missing and wrong fields of many specs come in one error, each with its path and value."""
    plain = with_value(PLAIN_JOB, ("layout", "tp"), 0)
    plain["layout"].update(tpp=4, schedule="1f1b_interleaved", stages=[1, "2"])
    plain["model"]["blocks"][0]["block"]["mixer"].update(kv_heads=3, window=0)
    plain["model"]["hidden"] = "wide"
    plain["optimizer"] = {"lr": -1, "lr_schedule": {"kind": "cosin"}}
    del plain["batch"]["seq_len"]
    del plain["cluster"]["intra"]
    plain["data"] = {"sources": [{"path": "a"}, {"path": "b", "weight": 0}]}
    plain["precision"] = {"param": "fp32", "params": "fp32", "grads": "bf16"}
    with pytest.raises(SpecError) as caught:
        structure(plain, Job)
    assert set(str(caught.value).splitlines()) == {
        "layout.tp=0: must be >= 1",
        f"layout.tpp=4: unknown field; did you mean 'tp'? known: {', '.join(sorted(attrs.fields_dict(Layout)))}",
        "layout.schedule='1f1b_interleaved': unknown; did you mean 'interleaved_1f1b'? "
        f"known: {', '.join(sorted(SCHEDULES))}",
        "layout.stages=(1, '2'): must be a list, each an integer",
        "model.blocks[0].block.mixer.window=0: must be >= 1",
        "model.hidden='wide': must be an integer",
        "optimizer.lr=-1.0: must be > 0.0",
        "optimizer.lr_schedule.kind='cosin': unknown kind; did you mean 'cosine'? known: constant, cosine, linear, wsd",
        "batch.seq_len=None: is required",
        "cluster.intra=None: is required; give a table with bandwidth",
        "data.sources[1].weight=0.0: must be > 0.0",
        "precision.param='fp32': unknown field; did you mean 'params'? known: grads, masters, moments, params",
        "precision.grads='bf16': must be fp32 or that of params=fp32",
    }


def test_rules_over_two_fields_name_the_field():
    """A rule over fields of one spec gives its path in the whole job."""
    plain = with_value(PLAIN_JOB, (*MIXER, "kv_heads"), 3)
    with pytest.raises(
        SpecError, match=r"^model\.blocks\[0\]\.block\.mixer\.kv_heads=3: must divide heads=2; use 1 or 2$"
    ):
        structure(plain, Job)


@given(specs(Layout))
@settings(deadline=None)
def test_none_is_left_out(layout):
    """TOML has no null: a field that is None is not written, and comes back as None."""
    assert None not in unstructure(layout).values()
    assert loads(dumps(layout, format="toml"), Layout, format="toml") == layout


def test_yaml_numbers_without_a_point():
    """YAML 1.1 reads 1e-5 as text; a float field takes it as the number it is, and other text not."""
    assert loads("lr: 1e-5", Optimizer, format="yaml").lr == 1e-5
    with pytest.raises(SpecError, match="lr='fast': must be a number"):
        loads("lr: fast", Optimizer, format="yaml")


@pytest.mark.parametrize(("format", "text"), [("json", "{"), ("toml", "a = "), ("yaml", "a: [1"), ("yaml", "a: \x00")])
def test_text_of_another_format_is_named(format, text):
    """A broken file says which file, which format and where."""
    with pytest.raises(SpecError, match=rf"file='job\.{format}': is not {format}: "):
        parse(text, format=format, source=f"job.{format}")


def test_a_file_name_tells_its_format():
    """The suffix decides, in any case; others are refused."""
    assert [format_of(name) for name in ("a.TOML", "b.yml", "c.yaml", "d.json")] == ["toml", "yaml", "yaml", "json"]
    with pytest.raises(SpecError, match=r"file='job\.txt': must end in \.toml, \.yaml, \.yml or \.json"):
        format_of("job.txt")


def test_a_word_is_no_member_of_a_union():
    """What stands in the place of a table with a kind is shown, with the kinds there are."""
    with pytest.raises(SpecError, match=r"^lr_schedule='cosin': must be a table with a kind; did you mean 'cosine'"):
        structure({"lr_schedule": "cosin"}, Optimizer)


def test_a_list_is_not_a_job():
    """Text of the right format that holds something else is refused as such."""
    with pytest.raises(SpecError, match=r"job=\[1\]: must be a table of the fields of Job"):
        loads("[1]", Job)


@given(models())
@settings(max_examples=20, deadline=None)
def test_the_kind_of_a_union_member_is_written(model):
    """A member of a union says what it is, so that it can be told from its siblings."""
    mixers = {run["block"]["mixer"]["kind"] for run in unstructure(model)["blocks"] if "mixer" in run["block"]}
    assert mixers == {run.block.mixer.kind for run in model.blocks if run.block.mixer}
    assert structure(unstructure(model), ModelSpec) == model


def test_a_single_source_needs_no_kind():
    """A spec that is no union's member has no kind, and refuses one."""
    assert structure({"path": "a"}, Source) == Source(path="a")
    with pytest.raises(SpecError, match="kind='x': unknown field"):
        structure({"path": "a", "kind": "x"}, Source)
