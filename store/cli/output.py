"""Results on stdout: tables as PBS draws them, or JSON with PBS's field names, sorted."""

import contextlib
import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from store.format.buffer import Buffer

Row = dict[str, Any]
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


@dataclass(frozen=True)
class Column:
    """One column of a table: a field of the rows, its heading, and how to write a value."""

    field: str
    heading: str = ""
    text: "Callable[[Any], str]" = str
    right: bool = False


def render(rows: "Sequence[Row]", output_format: str, columns: "Sequence[Column]") -> None:
    """Print `rows` as a table of `columns`, or all their fields as a JSON list."""
    if output_format == "text":
        headings = [column.heading or column.field for column in columns]
        cells = [[_cell(column, row) for column in columns] for row in rows]
        print_table(headings, cells, [column.right for column in columns])
    else:
        print_json(rows, output_format)


def render_record(record: Row, output_format: str, columns: "Sequence[Column]") -> None:
    """Print one record as a table of names and values, or as a JSON object."""
    if output_format == "text":
        present = [column for column in columns if record.get(column.field) is not None]
        cells = [[column.heading or column.field, _cell(column, record)] for column in present]
        print_table(["name", "value"], cells, [False, False])
    else:
        print_json(record, output_format)


def print_json(value: Any, output_format: str) -> None:  # noqa: ANN401 - JSON
    """Print `value` on one line (`json`) or indented (`json-pretty`), keys sorted."""
    pretty: dict[str, Any] = (
        {"indent": 2} if output_format == "json-pretty" else {"separators": (",", ":")}
    )
    say(json.dumps(value, sort_keys=True, ensure_ascii=False, **pretty))


def print_table(
    headings: "Sequence[str]", rows: "Sequence[Sequence[str]]", right: "Sequence[bool]"
) -> None:
    """Print a table with PBS's borders; a table without rows prints nothing."""
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]

    def rule(left: str, line: str, cross: str, end: str) -> str:
        return left + cross.join(line * (width + 2) for width in widths) + end

    def line(cells: "Sequence[str]") -> str:
        padded = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(cells, widths, right, strict=True)
        )
        return "│ " + " │ ".join(padded) + " │"

    body = f"\n{rule('├', '─', '┼', '┤')}\n".join(map(line, rows))
    top, middle = rule("┌", "─", "┬", "┐"), rule("╞", "═", "╪", "╡")
    say("\n".join((top, line(headings), middle, body, rule("└", "─", "┴", "┘"))))


def say(text: str) -> None:
    """Print one result on stdout. Raises BrokenPipeError, BackendError."""
    with checked_stdout():
        sys.stdout.write(text + "\n")


def say_bytes(data: "Buffer") -> None:
    """Write a result that is no text to stdout. Raises as `say`."""
    with checked_stdout():
        sys.stdout.flush()
        sys.stdout.buffer.write(data)


@contextlib.contextmanager
def checked_stdout() -> "Iterator[None]":
    """Make an error of the store of what stdout refuses: it may be a file on a full disk.

    Raises BrokenPipeError, BackendError. Nothing more is written then, nor when Python ends.
    """
    try:
        yield
    except OSError as error:
        close_stream(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise
        from store.backends.base import storage_error

        raise storage_error(error, "standard output") from error


def has_stdout() -> bool:
    """Whether we were started with one; else `main` opened the null device in its place."""
    return sys.stdout.name != os.devnull


def settle_stderr() -> None:
    """Drop messages that nobody can read: Python 3.13 would end with 120 for them."""
    try:
        sys.stderr.flush()
    except OSError:
        close_stream(sys.stderr)


def close_stream(stream: TextIO) -> None:
    """Let the interpreter's last flush go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def human_size(size: float, decimals: int = 3) -> str:
    """`77.025 MiB`: at most three decimals, as PBS writes sizes."""
    unit = 0
    while size >= 1024 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.{decimals}f}".rstrip("0").rstrip(".") + f" {UNITS[unit]}"


def human_rate(size: float, seconds: float) -> str:
    """`181.4 MiB/s`."""
    return human_size(size / max(seconds, 0.001), 1) + "/s"


def human_time(seconds: float) -> str:
    """`2026-01-02T03:04:05+01:00`: an epoch in local time."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).astimezone().isoformat(timespec="seconds")


def _cell(column: Column, row: Row) -> str:
    value = row.get(column.field)
    text = "" if value is None else column.text(value)
    return "".join(c if c.isprintable() else " " for c in text)  # notes come from anyone
