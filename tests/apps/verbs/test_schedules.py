"""``ridgeline schedules``: every schedule compared, one drawn, and what cannot be said why."""

import json
import re
from pathlib import Path

from ridgeline.apps.cli import run as cli
from ridgeline.parallel.schedule import parse_schedule
from ridgeline.parallel.schedules.known import SCHEDULES
from ridgeline.parallel.validate import check_schedule


def printed(capsys, *tokens):
    assert cli(["schedules", *tokens]) == 0
    return capsys.readouterr().out


def test_each_schedule_has_a_row(capsys):
    """The published figures of 8 ranks and 32 microbatches."""
    text = printed(capsys, "--pp", "8", "--microbatches", "32")
    rows = {line.split()[1]: [word for word in line.split() if word != "│"] for line in text.splitlines()[3:-1]}
    assert rows.keys() == set(SCHEDULES)
    assert rows["1f1b"] == ["1f1b", "1", "117", "0.1795", "0.1795", "8", "1"]
    assert rows["interleaved_1f1b"] == ["interleaved_1f1b", "2", "106.5", "0.0986", "0.0986", "11.5", "4.5"]
    assert rows["zb_v"] == ["zb_v", "2", "99.5", "0.0352", "0.0000", "8", "8"]
    assert rows["zb_2p"] == ["zb_2p", "1", "103", "0.0680", "0.0000", "15", "15"]


def test_what_is_printed_is_a_schedule(capsys):
    """The table before the drawing parses, and is valid."""
    table, drawing = printed(capsys, "dualpipe_v", "--pp", "3", "--microbatches", "7").split("\n\n")
    check_schedule(parse_schedule(table, name="dualpipe_v"))
    assert drawing.count("|") == 2 * 3


def test_numbers_for_machines(capsys):
    """The same figures as JSON; schedules that do not exist for the numbers are named with the reason."""
    data = json.loads(printed(capsys, "--pp", "4", "--microbatches", "6", "--p2p", "0.1", "--json"))
    assert data["pipeline"]["p2p_us"] == 0.1
    assert {row["name"] for row in data["schedules"]} | set(data["missing"]) == set(SCHEDULES)
    assert data["missing"]["dualpipe_v_split"].startswith("num_microbatches=6: dualpipe_v_split needs at least 2*pp=8")
    one = json.loads(printed(capsys, "zb_h1", "--pp", "2", "--microbatches", "3", "--json"))
    assert one["actions"][1] == ["1F0", "1I0", "1F1", "1I1", "1W0", "1F2", "1I2", "1W1", "1W2"]
    assert one["end_us"][1][-1] == 10


def test_bad_numbers_and_names_are_refused(capsys):
    """One message each, and exit code 2."""
    assert cli(["schedules", "--pp", "0", "--microbatches", "-1", "--p2p", "-2"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "SpecError: pp=0: must be >= 1",
        "SpecError: num_microbatches=-1: must be >= 1",
        "SpecError: p2p_us=-2.0: must be >= 0",
    ]
    assert cli(["schedules", "zbv"]) == 2
    assert "layout.schedule='zbv': unknown; did you mean 'zb_v'?" in capsys.readouterr().err


def test_the_page_shows_what_the_commands_print(capsys):
    """Every block of docs/schedules.md that begins with a command is its output, and none is left out of the table."""
    text = (Path(__file__).parents[3] / "docs" / "schedules.md").read_text()
    blocks = re.findall(r"```\n\$ ridgeline schedules (.*)\n([^`]*)```", text)
    for command, shown in blocks:
        lines = [line.rstrip() for line in printed(capsys, *command.split()).splitlines()]
        assert lines == shown.splitlines()
    assert {command.split()[0] for command, _ in blocks if not command.startswith("-")} == set(SCHEDULES)
