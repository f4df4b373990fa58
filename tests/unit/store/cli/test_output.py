"""Tables byte for byte as PBS draws them, JSON, sizes."""

import json

import pytest

from store.cli.output import Column, human_size, render, render_record
from tests.unit.store.cli.conftest import EXPECTED

ROWS = [{"b": 2, "a": "x"}, {"a": "longer\x1b[31m", "b": None}]
COLUMNS = (Column("a", "name"), Column("b", right=True))


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (80766540, "77.025 MiB"),
        (80840500, "77.096 MiB"),
        (1 << 40, "1 TiB"),
        (1 << 80, "1048576 EiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert human_size(size) == text


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    render(ROWS, "text", COLUMNS)
    assert capsys.readouterr().out.splitlines() == [
        "┌─────────────┬───┐",
        "│ name        │ b │",
        "╞═════════════╪═══╡",
        "│ x           │ 2 │",
        "├─────────────┼───┤",
        "│ longer [31m │   │",
        "└─────────────┴───┘",
    ]


def test_original_table(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads((EXPECTED / "snapshot-files.host_v1_2025-01-01T00:00:00Z.json").read_bytes())
    rows.sort(key=lambda row: row["filename"])
    render(rows, "text", (Column("filename"), Column("crypt-mode"), Column("size", right=True)))
    assert capsys.readouterr().out == (EXPECTED / "snapshot-files.v1.txt").read_text()


def test_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    render([], "text", COLUMNS)
    assert capsys.readouterr().out == ""
    render([], "json", COLUMNS)
    assert capsys.readouterr().out == "[]\n"


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    render(ROWS[:1], "json", COLUMNS)
    assert capsys.readouterr().out == '[{"a":"x","b":2}]\n'
    render(ROWS, "json-pretty", COLUMNS)
    assert json.loads(capsys.readouterr().out) == ROWS


def test_record_leaves_out_what_is_absent(capsys: pytest.CaptureFixture[str]) -> None:
    render_record({"a": "x", "b": None}, "text", COLUMNS)
    out = capsys.readouterr().out
    assert "name" in out
    assert "│ b" not in out
