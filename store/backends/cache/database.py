"""The SQLite file of a chunk cache: its tables, and connections that survive forks and deletion."""

import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from store.backends.cache.files import CacheFiles

BUSY_S = 0.25
VERSION = 1
SCHEMA = (
    # The order within a queue is that of the rowids: REPLACE gives the highest one.
    "CREATE TABLE chunks (key BLOB NOT NULL UNIQUE, cost INTEGER NOT NULL,"
    " queue INTEGER NOT NULL, hits INTEGER NOT NULL)",
    "CREATE INDEX by_queue ON chunks (queue)",
    "CREATE TABLE queues (queue INTEGER PRIMARY KEY, entries INTEGER NOT NULL,"
    " bytes INTEGER NOT NULL)",
    "INSERT INTO queues VALUES (0, 0, 0), (1, 0, 0), (2, 0, 0)",
    "CREATE TRIGGER added AFTER INSERT ON chunks BEGIN UPDATE queues SET entries = entries + 1,"
    " bytes = bytes + new.cost WHERE queue = new.queue; END",
    "CREATE TRIGGER removed AFTER DELETE ON chunks BEGIN UPDATE queues SET entries = entries - 1,"
    " bytes = bytes - old.cost WHERE queue = old.queue; END",
    "CREATE TABLE settled (boot TEXT)",
    f"PRAGMA user_version = {VERSION}",
)
PRAGMAS = (
    # Safe against a killed process. A machine that stops may leave nonsense: see `settled`.
    "PRAGMA synchronous = OFF",
    # Not WAL: an idle connection holds no lock and no shared memory then, which a fork would
    # double and which a deleted file would turn into SIGBUS.
    "PRAGMA journal_mode = PERSIST",
    "PRAGMA journal_size_limit = 1048576",
    "PRAGMA recursive_triggers = ON",  # else REPLACE deletes without the trigger
)
DAMAGE = frozenset(
    (
        sqlite3.SQLITE_ERROR,  # a table is missing
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
    )
)

_one_at_a_time = threading.Lock()
# No transaction is under way, and no lock of SQLite's own is held, when a process forks.
os.register_at_fork(
    before=_one_at_a_time.acquire,
    after_in_parent=_one_at_a_time.release,
    after_in_child=_one_at_a_time.release,
)


class CacheDatabase:
    """The index file of one cache directory. Thread-safe; may raise sqlite3.Error and OSError."""

    def __init__(self, files: CacheFiles) -> None:
        self._files = files
        self._connection: sqlite3.Connection | None = None
        self._connected_as = (-1, -1)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The connection, alone among all threads and processes."""
        with _one_at_a_time:
            db = self._connect()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                db.rollback()
                raise

    def reset(self) -> None:
        """Throw a damaged file away; the next transaction makes a new one."""
        with _one_at_a_time:
            self._disconnect()
            self._files.forget_index()

    def close(self) -> None:
        """Give the descriptors back. The next transaction opens them again."""
        with _one_at_a_time:
            self._disconnect()

    def _connect(self) -> sqlite3.Connection:
        """The connection; a new one in a forked child, and when there is another file now."""
        try:
            inode = os.stat(self._files.index).st_ino
        except FileNotFoundError:
            self._files.claim()
            inode = os.stat(self._files.index).st_ino
        if self._connection is None or self._connected_as != (os.getpid(), inode):
            self._disconnect()
            self._connection = _open(self._files.index)
            self._finalizer = weakref.finalize(self, self._connection.close)
            self._connected_as = (os.getpid(), inode)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._finalizer()
            self._connection = None


def is_damage(error: sqlite3.Error) -> bool:
    """Whether it says that the file itself is bad, not its disk."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in DAMAGE


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another process kept us waiting for BUSY_S."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def damaged(why: str) -> sqlite3.DatabaseError:
    """The error that `is_damage` says yes to."""
    error = sqlite3.DatabaseError(why)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _open(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        for pragma in PRAGMAS:
            db.execute(pragma)
        if _version(db) == 0:
            _create(db)
        if _version(db) != VERSION:
            raise damaged("made by another version")
    except BaseException:
        db.close()
        raise
    return db


def _create(db: sqlite3.Connection) -> None:
    db.execute("BEGIN IMMEDIATE")
    if _version(db) == 0:  # nobody was faster
        for statement in SCHEMA:
            db.execute(statement)
    db.execute("COMMIT")


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])
