"""The forms that start a job on many nodes, as text: torchrun, Slurm and Kubernetes with Volcano."""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import attrs

from ridgeline.core.codec import dumps
from ridgeline.core.job import Job

PORT = 29500
ASCEND_ENVIRONMENT = "/usr/local/Ascend/ascend-toolkit/set_env.sh"
MOUNT = "/workspace"
SECONDS_TO_SAVE = 120
"""Between SIGTERM and SIGKILL: the ranks finish their step and save."""


@attrs.frozen(kw_only=True)
class LaunchForm:
    """What is started.

    Attributes:
        job: As planned.
        command: Of ridgeline, as the user wrote it: ``("train", "job.toml", "--nodes", "4")``.
        image, claim: Of a Kubernetes job.
    """

    job: Job
    command: Sequence[str]
    image: str
    claim: str


def torchrun(form: LaunchForm) -> str:
    """The command to run on every node; with several nodes, MASTER_ADDR and NODE_RANK tell it which one it is."""
    setup = "\n".join(_setup(form.job))
    if form.job.cluster.nodes == 1:
        return f"{setup}\n{_torchrun(form, nodes='--standalone', command=form.command)}\n"
    header = "# On every node, with MASTER_ADDR=<the first node's address> and NODE_RANK=0, 1, ...: run this."
    return f"{header}\n{setup}\n{_torchrun(form, nodes=_nodes(form.job, '$NODE_RANK'), command=form.command)}\n"


def slurm(form: LaunchForm) -> str:
    """A script for ``sbatch``, a task a rank; cut off at its time limit it saves, and submitted again it goes on."""
    job = form.job
    devices = job.cluster.devices_per_node
    gres = {"npu": [f"#SBATCH --gres=npu:{devices}"], "cuda": [f"#SBATCH --gres=gpu:{devices}"], "cpu": []}
    rank = "RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS"
    command = f"{rank} exec python -m ridgeline {shlex.join(form.command)}"
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name={_dns_name(job.name)}",
        f"#SBATCH --nodes={job.cluster.nodes}",
        f"#SBATCH --ntasks-per-node={devices}",
        *gres[job.cluster.chip.device],
        "#SBATCH --exclusive",
        "#SBATCH --output=%x-%j.log",
        f"#SBATCH --signal=TERM@{SECONDS_TO_SAVE}",
        "set -eo pipefail",
        *_setup(job),
        'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))",
        f"srun --kill-on-bad-exit=1 bash -c {shlex.quote(command)}",
    ]
    return "\n".join(lines) + "\n"


def volcano(form: LaunchForm) -> str:
    """A Volcano job of one pod a node, and the whole job as a file in a ConfigMap."""
    import yaml

    job, name = form.job, _dns_name(form.job.name)
    script = "\n".join(
        [
            "set -e",
            *_setup(job),
            "export MASTER_ADDR=${VC_WORKER_HOSTS%%,*}",
            f"exec {_torchrun(form, nodes=_nodes(job, '$VC_TASK_INDEX'), command=('train', '/job/job.toml'))}",
        ]
    )
    devices = job.cluster.devices_per_node
    names = {"npu": "huawei.com/Ascend910", "cuda": "nvidia.com/gpu", "cpu": "cpu"}
    resources = {names[job.cluster.chip.device]: devices}
    container = {
        "name": "ridgeline",
        "image": form.image,
        "workingDir": MOUNT,
        "command": ["bash", "-c", script],
        "resources": {"requests": resources, "limits": resources},
        "volumeMounts": [
            {"name": "job", "mountPath": "/job"},
            {"name": "work", "mountPath": MOUNT},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    volumes = [
        {"name": "job", "configMap": {"name": name}},
        {"name": "work", "persistentVolumeClaim": {"claimName": form.claim}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    task = {
        "name": "worker",
        "replicas": job.cluster.nodes,
        "policies": [{"event": "TaskCompleted", "action": "CompleteJob"}],
        "template": {
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": SECONDS_TO_SAVE,
                "containers": [container],
                "volumes": volumes,
            }
        },
    }
    config = {"job.toml": dumps(job, format="toml")}
    documents = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": config},
        {
            "apiVersion": "batch.volcano.sh/v1alpha1",
            "kind": "Job",
            "metadata": {"name": name},
            "spec": {
                "schedulerName": "volcano",
                "minAvailable": job.cluster.nodes,  # all pods or none
                "maxRetry": 3,
                "plugins": {"env": [], "svc": []},
                "policies": [{"event": event, "action": "RestartJob"} for event in ("PodEvicted", "PodFailed")],
                "tasks": [task],
            },
        },
    ]

    class Dumper(yaml.SafeDumper):
        """Writes texts of several lines as blocks, for people to read."""

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, width=1000)


FORMS: Mapping[str, Callable[[LaunchForm], str]] = MappingProxyType(
    {"torchrun": torchrun, "slurm": slurm, "volcano": volcano}
)


def _setup(job: Job) -> list[str]:
    if job.cluster.chip.device == "npu":
        return [f"source {ASCEND_ENVIRONMENT}"]
    if job.cluster.chip.device == "cpu":
        return ["export TORCH_DEVICE_BACKEND_AUTOLOAD=0 OMP_NUM_THREADS=1"]
    return []


def _nodes(job: Job, node_rank: str) -> str:
    """torchrun's options for several nodes; the shell fills in what only the node knows."""
    return f'--nnodes {job.cluster.nodes} --node-rank "{node_rank}" --master-addr "$MASTER_ADDR" --master-port {PORT}'


def _torchrun(form: LaunchForm, *, nodes: str, command: Sequence[str]) -> str:
    ranks = f"--nproc-per-node {form.job.cluster.devices_per_node} --shutdown-timeout {SECONDS_TO_SAVE}"
    return f"torchrun {nodes} {ranks} -m ridgeline {shlex.join(command)}"


def _dns_name(name: str) -> str:
    """A name that Kubernetes takes.

    Example:
        >>> _dns_name("Qwen2.5_7B")
        'qwen2-5-7b'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50] or "job"
