"""The command line: verbs by name, loaded when used, and one clear message for every error.

Exit codes: 0 done (or a run stopped by a signal with its state saved), 1 a difference found or a failure underway,
2 bad input: a job, data, checkpoint or folder that cannot be used. ``RIDGELINE_DEBUG=1`` or ``--debug`` shows where an
error came from.
"""

import os
import sys
from collections.abc import Sequence
from keyword import iskeyword

from cyclopts import App, CycloptsError

from ridgeline.apps.failures import BAD_INPUT, DEBUG, report

VERBS = (
    ("plan", "Print what every rank will do, hold and send: no device, no torch."),
    ("trace", "Run one step of one rank in tensors without numbers, and compare it with the plan."),
    ("search", "Find the fastest layout that fits, exactly, and why its neighbours lose."),
    ("calibrate", "Fit the efficiencies of a chip to measured runs."),
    ("train", "Train a job: on one process, or started by torchrun on many."),
    ("profile", "Tell where the time of a profiled run went."),
    ("launch", "Write the torchrun, Slurm or Kubernetes form of a job."),
    ("diff", "Compare two jobs field by field."),
    ("compare", "Compare two jobs' plans: fields, memory and time."),
    ("import", "Read a MindSpeed-LLM or Megatron-LM launch script into a job file."),
    ("export", "Write a job as the arguments of a Megatron-LM launch."),
    ("schedules", "Compare the pipeline schedules, or print and draw one."),
    ("models", "List the published models known by name, or show one."),
    ("convert", "Convert weights between formats and layouts: Hugging Face, torch_dist, a file for each rank."),
    ("inspect", "Tell what a folder of weights holds, whether it is whole, and where two differ."),
    ("generate", "Continue a text with a trained model."),
    ("chat", "Talk to a trained model."),
    ("version", "Print the versions of everything that matters."),
)
DATA_VERBS = (
    ("pretrain", "Turn text files into Megatron's .bin/.idx."),
    ("bpe", "Train a small tokenizer."),
)
HELP = """Train large language models on Ascend NPUs: plan a job, train it, stop it, resume it, export it.

JOB is a file (.toml, .yaml, .json), a preset such as qwen2.5-7b, or a folder with a Hugging Face config.json.
Every field of a job is an option: --layout.tp 8, or for short --tp 8."""


def application(asked: Sequence[str] = ()) -> App:
    """All verbs, each named by an import string.

    Args:
        asked: Words of the command: a verb among them tells of itself, the others by their line in the table, for which
            they need not be loaded.
    """
    app = App(name="ridgeline", help=HELP, version_flags=[], result_action="return_value")
    for name, help in VERBS:
        module = module_of(name)
        app.command(f"ridgeline.apps.verbs.{module}:{module}", name=name, help=None if name in asked[:1] else help)
    data = App(name="data", help="Prepare training data.", version_flags=[])
    for name, help in DATA_VERBS:
        data.command(f"ridgeline.apps.verbs.data:{name}", name=name, help=None if name in asked[1:2] else help)
    app.command(data)
    return app


def module_of(verb: str) -> str:
    """The module of a verb, and the function in it: the verb, with a ``_`` where Python has the word already."""
    return f"{verb}_" if iskeyword(verb) else verb


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and leave the process with its exit code."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run a command; its exit code. An error is one message on stderr."""
    if "--debug" in argv:
        os.environ[DEBUG] = "1"
    tokens = [token for token in argv if token != "--debug"]
    try:
        code = application(tokens)(tokens, exit_on_error=False, print_error=False)
        return code if isinstance(code, int) else 0
    except CycloptsError as error:
        sys.stderr.write(f"ridgeline: {error}\n")
        return BAD_INPUT
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        return report(error)
