"""Inodes with several names: where the first of them is in the archive."""

import sqlite3
from struct import Struct
from typing import Protocol

from store.errors import SourceError

IN_MEMORY = 200_000
"""Inodes remembered in memory, in about 50 MB; those after them go to a temporary file."""
_VALUE = Struct("<QI")
_TABLE = "CREATE TABLE link (inode BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID"
_PRAGMAS = ("journal_mode = OFF", "synchronous = OFF", "cache_size = -16384")


class Named(Protocol):
    """An inode by its numbers, and how many names it has; os.stat_result says so."""

    @property
    def st_dev(self) -> int: ...
    @property
    def st_ino(self) -> int: ...
    @property
    def st_nlink(self) -> int: ...


class LinkTable:
    """Remembers an inode until its last name was met. Any number of them, in bounded memory.

    Raises SourceError when there is no room for the temporary file.
    """

    def __init__(self) -> None:
        self._links: dict[bytes, bytes] = {}
        self._spilled: sqlite3.Connection | None = None

    def add(self, info: Named, offset: int, path: bytes) -> None:
        """The first name of an inode: `path` from the archive's root, FILENAME item at `offset`."""
        self._put(_inode(info), _VALUE.pack(offset, info.st_nlink - 1) + path)

    def find(self, info: Named) -> tuple[int, bytes] | None:
        """A later name was met: offset and path of the first, or None if there was none."""
        inode = _inode(info)
        value = self._get(inode)
        if value is None:
            return None
        offset, names_left = _VALUE.unpack_from(value)
        path = value[_VALUE.size :]
        if names_left > 1:
            self._put(inode, _VALUE.pack(offset, names_left - 1) + path)
        else:
            self._remove(inode)
        return offset, path

    def close(self) -> None:
        """Drop the temporary file."""
        if self._spilled is not None:
            self._spilled.close()

    def _get(self, inode: bytes) -> bytes | None:
        value = self._links.get(inode)
        if value is None and self._spilled is not None:
            row = self._execute("SELECT value FROM link WHERE inode = ?", inode).fetchone()
            return row[0] if row else None
        return value

    def _put(self, inode: bytes, value: bytes) -> None:
        if inode in self._links or (self._spilled is None and len(self._links) < IN_MEMORY):
            self._links[inode] = value
        else:
            self._execute("INSERT OR REPLACE INTO link VALUES (?, ?)", inode, value)

    def _remove(self, inode: bytes) -> None:
        if self._links.pop(inode, None) is None:
            self._execute("DELETE FROM link WHERE inode = ?", inode)

    def _execute(self, statement: str, *values: bytes) -> sqlite3.Cursor:
        try:
            if self._spilled is None:
                self._spilled = _temporary_table()
            return self._spilled.execute(statement, values)
        except sqlite3.Error as error:
            raise SourceError(f"temporary file for hard links: {error}") from error


def _temporary_table() -> sqlite3.Connection:
    """A table in a file without a name, in TMPDIR, of which SQLite keeps 16 MiB in memory."""
    table = sqlite3.connect("", isolation_level=None)
    for pragma in _PRAGMAS:
        table.execute(f"PRAGMA {pragma}")
    table.execute(_TABLE)
    table.execute("BEGIN")
    return table


def _inode(info: Named) -> bytes:
    return b"%x %x" % (info.st_dev, info.st_ino)
