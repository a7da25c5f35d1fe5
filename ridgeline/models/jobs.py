"""Jobs from short descriptions: names of models and clusters spelled out, what a preset leaves open chosen by one rule.

A file, the command line and Python say the same: ``model = "qwen2.5-7b"``, ``model = {hf = "FOLDER"}`` with a local
``config.json``, ``cluster = "atlas-800t-a2"`` or ``{preset = "atlas-800t-a2", nodes = 4}``. Fields beside ``preset`` or
``hf`` replace those of the named one.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from ridgeline.core.cluster import Cluster
from ridgeline.core.codec import Plain, structure, unstructure
from ridgeline.core.errors import Problem, SpecError
from ridgeline.core.frozen import frozen
from ridgeline.core.job import Job
from ridgeline.core.model import ModelSpec
from ridgeline.models.defaults import default_job
from ridgeline.models.hf_config import model_from_hf, read_hf_config, without_quantisation
from ridgeline.models.zoo import model_preset
from ridgeline.parallel.clusters import cluster_preset

DEFAULT_CLUSTER = "atlas-800t-a2"


@frozen(kw_only=True)
class Chosen:
    """A job, and a sentence for each of its fields that a rule chose."""

    job: Job
    notes: tuple[str, ...] = ()


def preset(name: str, *, cluster: str | Cluster = DEFAULT_CLUSTER, nodes: int = 1, **fields: Any) -> Job:
    """A job that trains a published model, with what is not given chosen by ``ridgeline.models.defaults``.

    Args:
        name: Of a model, as ``ridgeline models`` lists them.
        cluster: The name of a cluster, or one.
        nodes: How many nodes of a cluster given by name.
        fields: Of the job; a spec, or a table of those of its fields that matter: ``layout={"tp": 8}``.

    Raises:
        SpecError: A name is unknown, or a field is wrong.

    Example:
        >>> job = preset("qwen2.5-7b")
        >>> job.cluster.world_size, job.layout.tp, job.batch.seq_len, job.batch.gbs
        (8, 2, 4096, 64)
        >>> preset("qwen2.5-7b", layout={"tp": 8}).dp
        1
    """
    machine = {"preset": cluster, "nodes": nodes} if isinstance(cluster, str) else cluster
    return preset_job({"model": name, "cluster": machine, **fields}).job


def preset_job(raw: Mapping[str, Any]) -> Chosen:
    """A job from plain data that may leave all but the model open.

    Raises:
        SpecError: Every fault of ``raw``.
    """
    plain, problems = _expanded({"cluster": DEFAULT_CLUSTER, **raw})
    model, cluster = (_spec(plain.get(name), cls) for name, cls in (("model", ModelSpec), ("cluster", Cluster)))
    if problems or model is None or cluster is None:
        plain["batch"] = merged({"seq_len": 1}, plain.get("batch") or {})  # chosen from both, so not missing
        return Chosen(job=_structured(plain, problems))
    job, notes = default_job(
        {"name": model.name, **plain, "model": model, "cluster": cluster}, model=model, cluster=cluster
    )
    return Chosen(job=job, notes=notes)


def job_of(raw: Mapping[str, Any]) -> Job:
    """The job that plain data describes, as a job file does: what it leaves out is the spec's default.

    Raises:
        SpecError: Every fault of ``raw``.
    """
    return _structured(*_expanded(raw))


def _structured(plain: Plain, problems: tuple[Problem, ...]) -> Job:
    if not problems:
        return structure(plain, Job)
    named = {problem.path.split(".")[0] for problem in problems}
    try:
        structure(plain, Job)
    except SpecError as error:
        raise SpecError((*problems, *(problem for problem in error.problems if problem.path not in named))) from None
    raise SpecError(problems)


def _spec(plain: Any, cls: type[Any]) -> Any:
    """The spec, or None: its faults are told when the whole job is structured."""
    try:
        return structure(plain, cls)
    except SpecError:
        return None


def _expanded(raw: Mapping[str, Any]) -> tuple[Plain, tuple[Problem, ...]]:
    """Plain data without names, and the names that mean nothing; their fields are left out."""
    plain: Plain = {name: _as_table(value) for name, value in raw.items()}
    problems: list[Problem] = []
    for name, expand in (("model", _model), ("cluster", _cluster), ("data", _data)):
        if name in plain:
            try:
                plain[name] = expand(plain[name])
            except SpecError as error:
                problems.extend(_within(name, error))
                del plain[name]
    return plain, tuple(problems)


def _as_table(value: Any) -> Any:
    """A spec as a table of its fields, but for the two that are never chosen from."""
    return unstructure(value) if attrs.has(type(value)) and not isinstance(value, (ModelSpec, Cluster)) else value


def _within(name: str, error: SpecError) -> Iterator[Problem]:
    for problem in error.problems:
        yield problem if problem.path.split(".")[0] == name else problem.under(name)


def _model(value: Any) -> Any:
    table = {"preset": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping) or not table.keys() & {"preset", "hf"}:
        return value
    if {"preset", "hf"} <= table.keys():
        raise SpecError(Problem("model.preset", table["preset"], f"excludes model.hf={table['hf']!r}", "keep one"))
    named = {key: table[key] for key in ("preset", "hf") if key in table}
    _check_texts("model", named)
    spec = model_preset(table["preset"]) if "preset" in table else _model_from_folder(table["hf"])
    changes = {key: field for key, field in table.items() if key not in named}
    return merged(unstructure(spec), changes) if changes else spec


def _model_from_folder(folder: str) -> ModelSpec:
    name = folder.rstrip("/").rsplit("/", 1)[-1]
    return model_from_hf(without_quantisation(read_hf_config(folder)), name=name or "custom")


def _cluster(value: Any) -> Any:
    table = {"preset": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping) or "preset" not in table:
        return value
    _check_texts("cluster", {"preset": table["preset"]})
    size: dict[str, Any] = {key: table[key] for key in ("nodes", "devices_per_node") if key in table}
    if any(not isinstance(count, int) or isinstance(count, bool) for count in size.values()):
        size = {}  # the fault is told when the whole job is structured
    spec = cluster_preset(table["preset"], **size)
    changes = {key: field for key, field in table.items() if key != "preset" and key not in size}
    return merged(unstructure(spec), changes) if changes else spec


def _data(value: Any) -> Any:
    if not isinstance(value, Mapping) or "sources" not in value:
        return value
    sources = [value["sources"]] if isinstance(value["sources"], str) else value["sources"]
    if not isinstance(sources, (list, tuple)):
        return value
    return {**value, "sources": [{"path": source} if isinstance(source, str) else source for source in sources]}


def _check_texts(spec: str, named: Mapping[str, Any]) -> None:
    for key, value in named.items():
        if not isinstance(value, str):
            raise SpecError(Problem(f"{spec}.{key}", value, "must be text"))


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Plain:
    """Plain data with fields replaced; tables are merged field by field, unless their ``kind`` changes.

    Example:
        >>> merged({"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"x": 5}})
        {'a': {'x': 5, 'y': 2}, 'b': 3}
    """
    result = dict(base)
    for name, value in changes.items():
        before = result.get(name)
        same_kind = (
            isinstance(before, Mapping)
            and isinstance(value, Mapping)
            and value.get("kind", before.get("kind")) == before.get("kind")
        )
        result[name] = merged(before, value) if same_kind else value  # pyright: ignore[reportArgumentType]  both tables
    return result
