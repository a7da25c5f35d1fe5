"""``ridgeline export``: what it prints is a launch that can be imported."""

from ridgeline.apps.cli import run as cli


def test_what_is_exported_is_imported(tmp_path, capsys):
    """A job printed as arguments behind torchrun reads as the same job."""
    assert cli(["export", "qwen2.5-7b", "--megatron-args", "--layout.tp", "4"]) == 0
    script = tmp_path / "launch.sh"
    printed = capsys.readouterr().out
    script.write_text("torchrun --nproc_per_node 8 pretrain_gpt.py \\\n" + printed)
    assert cli(["import", str(script), "--output", str(tmp_path / "job.toml")]) == 0
    capsys.readouterr()
    assert cli(["export", str(tmp_path / "job.toml"), "--megatron-args"]) == 0
    assert capsys.readouterr().out == printed
    assert cli(["export", str(tmp_path / "job.toml"), "--megatron-args", "--file", str(tmp_path / "args")]) == 0
    assert (tmp_path / "args").read_text() == printed


def test_words_must_be_named(capsys):
    """Without saying in whose words, nothing is printed."""
    assert cli(["export", "qwen2.5-7b"]) == 2
    assert "add --megatron-args" in capsys.readouterr().err
