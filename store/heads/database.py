"""The SQLite database of a head: inodes, names and regions, in one long transaction.

    inode(key)            value sealed: see `inodes`          key := archive << 48 | number
    name(parent, hash)    value sealed: number u64 | name     parent := key of the directory;
                                                              number 0: the base's name is gone
    region(owner, chunk)  value sealed: see `extents`         owner := key of the file or image
    orphan(key)           inodes without a name that somebody has open
    alias(base, key)      of inodes that a seal gave to the base: offset there, and their number
    segment(number, live) bytes still referred to
    archive, meta         what there is

`generation` counts seals: rows of the one that a seal froze are dropped when it is done. SQLite's
pages hold nothing plain but these numbers and the archives' names, which a manifest shows as well.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from struct import Struct
from typing import Any

from store.errors import BackendError, FormatError, IntegrityError, OutOfSpace, StoreError
from store.heads.base import WouldWait
from store.heads.extents import Region, pack, unpack
from store.heads.protection import Protection

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS archive (
    id INTEGER PRIMARY KEY, name TEXT UNIQUE, kind TEXT, base INTEGER, size INTEGER, next INTEGER);
CREATE TABLE IF NOT EXISTS inode (key INTEGER PRIMARY KEY, generation INTEGER, value BLOB);
CREATE TABLE IF NOT EXISTS name (
    parent INTEGER, hash BLOB, generation INTEGER, value BLOB,
    PRIMARY KEY (parent, hash)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS region (
    owner INTEGER, chunk INTEGER, value BLOB, PRIMARY KEY (owner, chunk)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS orphan (key INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS alias (
    archive INTEGER, base INTEGER, number INTEGER, PRIMARY KEY (archive, base)) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS alias_number ON alias (archive, number);
CREATE TABLE IF NOT EXISTS segment (number INTEGER PRIMARY KEY, live INTEGER);
CREATE TABLE IF NOT EXISTS blob (name TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
"""
_PRAGMAS = (
    "locking_mode = NORMAL",
    "journal_mode = WAL",
    "synchronous = FULL",
    "cache_size = -16384",
    "temp_store = MEMORY",
    "wal_autocheckpoint = 4000",
    "foreign_keys = OFF",
    "secure_delete = OFF",
)
ARCHIVE_SHIFT = 48
_NUMBER = Struct("<Q")


def storage_error_of(error: sqlite3.Error, path: str) -> StoreError:
    """What SQLite's error means."""
    text = f"{path}: {error}"
    name = getattr(error, "sqlite_errorname", "")
    if name == "SQLITE_FULL":
        return OutOfSpace(text)
    if isinstance(error, sqlite3.DatabaseError) and name in ("SQLITE_CORRUPT", "SQLITE_NOTADB"):
        return IntegrityError(text)
    return BackendError(text)


class Rows:
    """One connection's view of the rows. Thread-safe; `may_wait` False: WouldWait if it is busy."""

    def __init__(self, path: str, protection: Protection, *, create: bool = False) -> None:
        self.path, self.protection = path, protection
        self.lock = threading.RLock()
        try:
            self._connection = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, timeout=1.0
            )
            for pragma in _PRAGMAS:
                self._connection.execute(f"PRAGMA {pragma}")
            if create:
                self._connection.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise storage_error_of(error, path) from error

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:  # noqa: ANN401 - SQL values
        try:
            return self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise storage_error_of(error, self.path) from error

    def execute_many(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        try:
            self._connection.executemany(statement, values)
        except sqlite3.Error as error:
            raise storage_error_of(error, self.path) from error

    def fetch(self, statement: str, *values: Any, may_wait: bool = True) -> list[Any]:  # noqa: ANN401
        """All rows of a question."""
        if not self.lock.acquire(blocking=may_wait):
            raise WouldWait
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise storage_error_of(error, self.path) from error
        finally:
            self.lock.release()

    def close(self) -> None:
        with self.lock:
            self._connection.close()

    # What is in the rows

    def meta(self, key: str) -> Any:  # noqa: ANN401
        found = self.fetch("SELECT value FROM meta WHERE key = ?", key)
        return found[0][0] if found else None

    def set_meta(self, key: str, value: Any) -> None:  # noqa: ANN401
        self.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", key, value)

    def has_changes(self) -> bool:
        """Whether any row says what the base does not. Inodes without a name are not sealed."""
        questions = (
            "SELECT 1 FROM inode WHERE key NOT IN (SELECT key FROM orphan) LIMIT 1",
            "SELECT 1 FROM name LIMIT 1",
            "SELECT 1 FROM region WHERE owner & 281474976710655 = 0 LIMIT 1",  # images'
        )
        return any(self.fetch(question) for question in questions)

    def inode(self, key: int, *, may_wait: bool = True) -> tuple[int, bytes] | None:
        """Generation and value of an inode."""
        found = self.fetch(
            "SELECT generation, value FROM inode WHERE key = ?", key, may_wait=may_wait
        )
        if not found:
            return None
        return found[0][0], self.protection.open(key, found[0][1])

    def name(self, parent: int, name: bytes, *, may_wait: bool = True) -> int | None:
        """The number behind a name; 0 where the base's is gone, None where nothing is said."""
        hashed = self.protection.hash_name(parent, name)
        found = self.fetch(
            "SELECT value FROM name WHERE parent = ? AND hash = ?",
            parent,
            hashed,
            may_wait=may_wait,
        )
        if not found:
            return None
        number, stored = self.open_name(parent, found[0][0])
        if stored != name:
            raise FormatError("head's journal: two names have one hash")
        return number

    def names(
        self, parent: int, after: bytes, count: int, *, may_wait: bool = True
    ) -> list[tuple[bytes, int, bytes]]:
        """Hash, number and name of those behind a hash."""
        found = self.fetch(
            "SELECT hash, value FROM name WHERE parent = ? AND hash > ? ORDER BY hash LIMIT ?",
            parent,
            after,
            count,
            may_wait=may_wait,
        )
        return [(hashed, *self.open_name(parent, value)) for hashed, value in found]

    def open_name(self, parent: int, value: bytes) -> tuple[int, bytes]:
        plain = self.protection.open(parent, value)
        return _NUMBER.unpack_from(plain)[0], plain[8:]

    def seal_name(self, parent: int, number: int, name: bytes) -> bytes:
        return self.protection.seal(parent, _NUMBER.pack(number) + name)

    def region(self, owner: int, chunk: int, *, may_wait: bool = True) -> Region:
        """The extents of a region; none when there is no such row."""
        found = self.fetch(
            "SELECT value FROM region WHERE owner = ? AND chunk = ?",
            owner,
            chunk,
            may_wait=may_wait,
        )
        return unpack(self.protection.open(owner ^ chunk, found[0][0])) if found else []

    def region_numbers(self, owner: int) -> set[int]:
        return {row[0] for row in self.fetch("SELECT chunk FROM region WHERE owner = ?", owner)}

    def write_regions(self, owner: int, regions: Iterable[tuple[int, Region]]) -> None:
        """Replace regions; an empty one has no row."""
        seal = self.protection.seal
        filled, empty = [], []
        for chunk, region in regions:
            if region:
                filled.append((owner, chunk, seal(owner ^ chunk, pack(region))))
            else:
                empty.append((owner, chunk))
        if filled:
            self.execute_many("INSERT OR REPLACE INTO region VALUES (?, ?, ?)", filled)
        if empty:
            self.execute_many("DELETE FROM region WHERE owner = ? AND chunk = ?", empty)

    def alias_number(self, archive: int, base: int, *, may_wait: bool = True) -> int | None:
        found = self.fetch(
            "SELECT number FROM alias WHERE archive = ? AND base = ?",
            archive,
            base,
            may_wait=may_wait,
        )
        return found[0][0] if found else None

    def alias_base(self, archive: int, number: int, *, may_wait: bool = True) -> int | None:
        found = self.fetch(
            "SELECT base FROM alias WHERE archive = ? AND number = ?",
            archive,
            number,
            may_wait=may_wait,
        )
        return found[0][0] if found else None

    def keys(self, archive: int, generation: int) -> Iterator[tuple[int, int, bytes]]:
        """Key, generation and value of all inode rows of an archive up to a generation."""
        low, last = archive << ARCHIVE_SHIFT, -1
        while True:
            found = self.fetch(
                "SELECT key, generation, value FROM inode"
                " WHERE key > ? AND key < ? AND generation <= ? ORDER BY key LIMIT 500",
                max(low - 1, last),
                (archive + 1) << ARCHIVE_SHIFT,
                generation,
            )
            if not found:
                return
            for key, row_generation, value in found:
                yield key, row_generation, self.protection.open(key, value)
            last = found[-1][0]
