"""What importing and planning load, and what they do not."""

import ast
import subprocess
import sys
from pathlib import Path

import ridgeline

HEAVY = (
    "torch",
    "torch_npu",
    "numpy",
    "megatron",
    "transformers",
    "safetensors",
    "rich",
    "cyclopts",
    "yaml",
    "tomli_w",
)


def loaded_by(program):
    """The modules of a fresh process after a program, of those that are named."""
    watched = (*HEAVY, "attrs", "ridgeline.core")
    check = f"{program}\nimport sys\nprint(*[name for name in {watched} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    return run.stdout.split()


def test_importing_loads_nothing():
    """Not even attrs: names are loaded when they are used."""
    assert loaded_by("import ridgeline") == []


def test_planning_loads_neither_torch_nor_numpy():
    """A preset, its plan and a rank's program are plain Python."""
    program = "import ridgeline; plan = ridgeline.plan(ridgeline.preset('qwen2.5-7b')); ridgeline.lower(plan, 0)"
    assert loaded_by(program) == ["attrs", "ridgeline.core"]


def test_every_public_name_exists():
    """And is the object of the module it is said to live in."""
    for name in (name for names in ridgeline.HOMES.values() for name in names.split()):
        assert getattr(ridgeline, name) is not None
        assert name in dir(ridgeline)


def test_type_checkers_see_what_is_loaded():
    """The imports for type checkers and the table of homes say the same."""
    tree = ast.parse(Path(ridgeline.__file__).read_text())
    typed = {
        (node.module, alias.name) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    homes = {(module, name) for module, names in ridgeline.HOMES.items() for name in names.split()}
    assert homes == {(module, name) for module, name in typed if module.startswith("ridgeline.")}


def test_an_unknown_name_is_an_attribute_error():
    """As of any module."""
    assert not hasattr(ridgeline, "no_such_name")
