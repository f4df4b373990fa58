"""Files of a snapshot on stdout, one line each: paths, long lines as `ls -l` has them, or JSON."""

import json
import stat
import sys
from base64 import b64encode
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from store.cli.output import checked_stdout
from store.errors import StoreError
from store.format.pxar.entries import Entry, EntryKind
from store.trees.matching import size_of
from store.trees.names import quote
from store.trees.paths import followed
from store.trees.walk import PARTIAL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from store.trees.base import FileTree

BUFFERED_LINES = 512
_LETTERS = dict(zip(EntryKind, "dflfcbps", strict=True))
_DEVICES = (EntryKind.CHAR_DEVICE, EntryKind.BLOCK_DEVICE)


class Lines:
    """Prints many lines quickly, and at once where somebody watches.

    What was printed is out when the block is left, whatever ends it.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._size = 1 if sys.stdout.isatty() else BUFFERED_LINES

    def __enter__(self) -> "Lines":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: "TracebackType | None",
    ) -> None:
        if error is None or isinstance(error, StoreError):
            self.flush()
        else:
            with suppress(OSError, StoreError):
                self.flush()

    def write(self, line: str, end: str = "\n") -> None:
        """Print one line. Raises as `say`."""
        self._lines.append(line + end)
        if len(self._lines) >= self._size:
            self.flush()

    def write_json(self, record: Any) -> None:  # noqa: ANN401 - JSON
        """Print one object on a line of its own, keys sorted."""
        self.write(json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":")))

    def flush(self) -> None:
        """Let what is waiting go. Raises as `say`."""
        lines, self._lines = self._lines, []
        if lines:
            with checked_stdout():
                sys.stdout.write("".join(lines))
                if self._size == 1:
                    sys.stdout.flush()


class Problems:
    """What could not be looked at: a warning for each, and the exit code in the end."""

    def __init__(self) -> None:
        self.exit_code = 0

    def __call__(self, path: bytes, error: StoreError) -> None:
        from store.cli.progress_bar import write_line

        self.exit_code = self.exit_code or error.exit_code
        write_line(f"warning: {quote(path)}: {error}")

    @contextmanager
    def noted(self, path: bytes) -> "Iterator[None]":
        """Leave out what is damaged in there."""
        try:
            yield
        except PARTIAL as error:
            self(path, error)


def entry_record(path: bytes, entry: Entry, tree: "FileTree") -> dict[str, Any]:
    """One entry for JSON.

    `path` (and `path-base64` when that is no UTF-8), `type` (the letters of find), and what is
    known of it: `mode` (permissions), `uid`, `gid`, `mtime` (seconds), `size`, `target`, `device`.
    Raises FormatError: damaged metadata.
    """
    record: dict[str, Any] = {**json_text("path", path), "type": _LETTERS[entry.kind]}
    facts = followed(tree, entry)
    metadata = facts.metadata
    record |= {
        "mode": metadata.mode & 0o7777,
        "uid": metadata.uid,
        "gid": metadata.gid,
        "mtime": metadata.mtime_s,
    }
    if facts.kind is EntryKind.FILE:
        record["size"] = facts.size
    if entry.kind is EntryKind.SYMLINK:
        record |= json_text("target", entry.target)
    if entry.kind in _DEVICES:
        record["device"] = list(entry.device)
    return record


def long_line(path: bytes, entry: Entry, tree: "FileTree") -> str:
    """`-rw-r--r-- 0 0 1234 2026-01-02T03:04:05Z etc/fstab`, with the target of a symbolic link.

    What is damaged shows as question marks.
    """
    try:
        facts = followed(tree, entry)
        metadata = facts.metadata
    except PARTIAL:
        return f"?????????? {'?':>5} {'?':>5} {'?':>12} {'?':>20} {quote(path)}"
    size = ",".join(map(str, entry.device)) if entry.kind in _DEVICES else str(size_of(facts))
    arrow = f" -> {quote(entry.target)}" if entry.kind is EntryKind.SYMLINK else ""
    return (
        f"{stat.filemode(metadata.mode)} {metadata.uid:>5} {metadata.gid:>5} {size:>12} "
        f"{utc_time(metadata.mtime_s):>20} {quote(path)}{arrow}"
    )


def utc_time(seconds: int) -> str:
    """`2026-01-02T03:04:05Z`; outside the years 1 to 9999 the number itself."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return str(seconds)


def mark(path: bytes, entry: Entry) -> bytes:
    """The path, with a slash behind a directory's."""
    return path + b"/" if entry.kind is EntryKind.DIRECTORY else path


def json_text(name: str, raw: bytes) -> dict[str, str]:
    """A name for JSON, which has no bytes: beside what can be shown of it what it is."""
    try:
        return {name: raw.decode()}
    except UnicodeDecodeError:
        shown = raw.decode(errors="replace")
        return {name: shown, f"{name}-base64": b64encode(raw).decode()}
