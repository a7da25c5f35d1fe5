from pathlib import Path

from ridgeline.core.data_files import data_bytes, data_names, read_data


def test_names_are_those_of_the_json_files_in_order_and_values_are_theirs(tmp_path: Path) -> None:
    folder = tmp_path / "figures"
    folder.mkdir()
    for name, text in (("b.json", '{"x": 1}'), ("a.json", "[2]"), ("notes.txt", "no")):
        (folder / name).write_text(text)
    module = str(tmp_path / "module.py")
    assert data_names(module, "figures") == ("a", "b")
    assert data_bytes(module, "figures", "a") == b"[2]"
    assert read_data(module, "figures", "b") == {"x": 1}
