"""Arguments as jobs, for the tests of both directions."""

from itertools import chain

from ridgeline.models.jobs import job_of
from ridgeline.models.scripts.job import import_command
from ridgeline.models.scripts.megatron_args import megatron_args
from ridgeline.models.scripts.model import named
from ridgeline.models.scripts.shell import Command, training_command

EXPERTS = "torchrun pretrain_gpt.py --num-layers 8 --hidden-size 64 --num-attention-heads 8 --vocab-size 64 "
USUAL = "--seq-length 64 --position-embedding-type rope --swiglu --disable-bias-linear --normalization RMSNorm"


def imported_of(text):
    return import_command(training_command(text, source="s"))


def back(job):
    launcher = (("nnodes", str(job.cluster.nodes)), ("nproc_per_node", str(job.cluster.devices_per_node)))
    imported = import_command(Command("pretrain_gpt.py", launcher, tuple(chain.from_iterable(megatron_args(job)))))
    assert not imported.problems
    assert not [entry for entry in imported.entries if entry.fate == "not understood"]
    return named(job_of({"name": "x", **imported.plain}))
