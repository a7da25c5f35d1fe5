"""``ridgeline launch``: the forms in which schedulers start a job."""

import shlex
import subprocess

import pytest
import yaml

from ridgeline.apps.cli import run
from ridgeline.apps.reading import read_job
from ridgeline.core.codec import loads
from ridgeline.core.job import Job

TOKENS = ["qwen2.5-7b", "--nodes", "4", "--tp", "4"]


def form(capsys, *tokens):
    assert run(["launch", *tokens]) == 0
    return capsys.readouterr().out


def shell_words(text):
    return shlex.split(text, comments=True)


def test_torchrun_on_several_nodes(capsys):
    """The same command on every node, which tells it where it stands; the job is named as the user named it."""
    text = form(capsys, *TOKENS)
    words = shell_words(text)
    start, end = words.index("torchrun") + 1, words.index("-m")
    options = dict(zip(words[start:end:2], words[start + 1 : end : 2], strict=True))
    assert (options["--nnodes"], options["--node-rank"], options["--nproc-per-node"]) == ("4", "$NODE_RANK", "8")
    assert words[end:] == ["-m", "ridgeline", "train", *TOKENS]
    assert "NODE_RANK=0, 1, ..." in text


def test_torchrun_on_one_node_needs_no_address(capsys):
    """And a CPU job keeps vendors' backends from loading themselves."""
    text = form(capsys, "qwen3-0.6b", "--cluster", "cpu", "--cluster.devices-per-node", "2")
    assert "--standalone --nproc-per-node 2" in text
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in text
    assert "MASTER_ADDR" not in text


def test_slurm_starts_a_task_a_rank(capsys):
    """A script that bash reads, with time to save before the limit, and torchrun's variables from Slurm's."""
    text = form(capsys, *TOKENS, "--format", "slurm")
    assert text.startswith("#!/bin/bash\n")
    for line in ("--nodes=4", "--ntasks-per-node=8", "--signal=TERM@120", "--gres=npu:8", "--job-name=qwen2-5-7b"):
        assert f"#SBATCH {line}\n" in text
    last = shell_words(text.splitlines()[-1])
    assert last[:4] == ["srun", "--kill-on-bad-exit=1", "bash", "-c"]
    inner = shell_words(last[4])
    assert inner == [
        *("RANK=$SLURM_PROCID", "LOCAL_RANK=$SLURM_LOCALID", "WORLD_SIZE=$SLURM_NTASKS", "exec"),
        *("python", "-m", "ridgeline", "train", *TOKENS),
    ]
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_volcano_carries_the_whole_job(capsys):
    """All pods or none, one a node, with the job as planned in a file beside them."""
    config, job = yaml.safe_load_all(
        form(capsys, *TOKENS, "--format", "volcano", "--image", "img:1", "--claim", "disk")
    )
    assert loads(config["data"]["job.toml"], Job, format="toml") == read_job(TOKENS[0], TOKENS[1:]).job
    (task,) = job["spec"]["tasks"]
    pod = task["template"]["spec"]
    (container,) = pod["containers"]
    assert (job["spec"]["minAvailable"], task["replicas"]) == (4, 4)
    assert container["image"] == "img:1"
    assert container["resources"]["limits"] == {"huawei.com/Ascend910": 8}
    assert {"name": "work", "persistentVolumeClaim": {"claimName": "disk"}} in pod["volumes"]
    assert "ridgeline train /job/job.toml" in container["command"][-1]
    subprocess.run(["bash", "-n"], input=container["command"][-1], text=True, check=True)


def test_a_form_can_be_written_to_a_file(capsys, tmp_path):
    """The same text, and a file that cannot be written is named."""
    text = form(capsys, *TOKENS, "--format", "slurm")
    file = tmp_path / "run.sbatch"
    assert form(capsys, *TOKENS, "--format", "slurm", "--file", str(file)) == f"written to {file}\n"
    assert file.read_text() == text
    assert run(["launch", *TOKENS, "--file", str(tmp_path / "no" / "file")]) == 2
    assert "cannot be written: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("format", ["torchrun", "slurm", "volcano"])
def test_a_bad_job_starts_nothing(capsys, format):
    """It is planned before a form is written."""
    assert run(["launch", "qwen2.5-7b", "--tp", "3", "--format", format]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("PlanError: layout.tp*cp*pp=3")
