"""Which chunks a cache has and which goes next: S3-FIFO (SOSP 2023), in SQLite.

A new chunk enters the small queue, a tenth of the room. At its end it goes on to the main queue if
it was read twice meanwhile; else its file goes and its key is remembered as a ghost, and if it
comes back soon, it comes to the main queue. At the end of that, a chunk that was read since goes
round again. So who reads everything once passes through the small queue and nothing else.

A row may stand for a file that is not there (a writer was killed): it counts until its turn comes.
A file without a row would never count. So a file gets its name only while its row is there, and
goes before its row does, in one transaction each.
"""

import errno
import sqlite3
from collections.abc import Callable, Iterable
from functools import cache

from store.backends.cache.database import CacheDatabase, damaged
from store.backends.cache.files import DIRECTORIES, CacheFiles, cost

SMALL, MAIN, GHOST = 0, 1, 2
SMALL_SHARE = 10  # a tenth
MOST_HITS = 3
HITS_FOR_MAIN = 2  # not one: a pass that reads each chunk twice is still a pass
MOST_STEPS = 256  # in one transaction, which others wait for


class Unsettled(Exception):
    """The index has not been compared with the files since it was made or the machine started."""


class CacheIndex:
    """The index of one cache directory. Thread-safe; may raise sqlite3.Error and OSError."""

    def __init__(self, files: CacheFiles, database: CacheDatabase) -> None:
        self._files, self._database = files, database

    def make_room(
        self, key: bytes, size: int, budget_bytes: int, touched: Iterable[bytes] = ()
    ) -> bool:
        """Enter a chunk of `size` bytes and evict for it; False when there is no room for it.

        `touched`: see `note`. Raises Unsettled.
        """
        with self._database.transaction() as db:
            if not _is_settled(db):
                raise Unsettled
            limit = budget_bytes - self._files.overhead()
            queue = SMALL if _queue(db, key) in (None, SMALL) else MAIN
            # Before anything is written: on a full disk SQLite has no room to write either.
            room = cost(size) <= limit and self._evict(db, cost(size), limit)
            self._note(db, touched)
            if room:
                _put(db, key, cost(size), queue)
            return room

    def place(self, staged: str, key: bytes) -> bool:
        """Give a written file its name; False when its row has been evicted meanwhile."""
        with self._database.transaction() as db:
            entered = _queue(db, key) in (SMALL, MAIN)
            if entered:
                self._files.place(staged, key)
            return entered

    def note(self, touched: Iterable[bytes]) -> None:
        """Count one read each of chunks whose files are there; forget those whose are not."""
        with self._database.transaction() as db:
            self._note(db, touched)

    def totals(self) -> tuple[int, int]:
        """How many chunks, and what they cost in bytes."""
        with self._database.transaction() as db:
            return _entries(db, SMALL, MAIN), _bytes(db, SMALL, MAIN)

    def settle(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Compare the index with the files: who has no row gets one, who has no file loses it.

        Several processes may do this at once. Takes seconds for a million chunks, in steps that
        let others through. `stopped` ends it early: then it is done from the start next time.
        """
        with self._database.transaction() as db:
            if _is_settled(db):
                return
            _check(db)
            rows = db.execute("SELECT DISTINCT substr(key, 1, 8) FROM chunks")
            datastores = {datastore for (datastore,) in rows}
        for datastore in datastores.union(self._files.datastores()):
            for digit in range(DIRECTORIES):
                if stopped():
                    return
                with self._database.transaction() as db:
                    self._compare(db, datastore, digit)
        with self._database.transaction() as db:
            db.execute("DELETE FROM settled")
            db.execute("INSERT INTO settled VALUES (?)", (_boot(),))

    def _compare(self, db: sqlite3.Connection, datastore: bytes, digit: int) -> None:
        found = dict(self._files.chunks(datastore, digit))
        low, high = (datastore + bytes((digit << 4 | end,)) for end in (0, 15))
        rows = db.execute(
            "SELECT key FROM chunks WHERE key BETWEEN ? AND ? AND queue != ?",
            (low, high + b"\xff" * 31, GHOST),
        )
        known = {key for (key,) in rows}
        for key in known - found.keys():
            _forget(db, key)
        for key in found.keys() - known:
            _put(db, key, cost(found[key]), SMALL)

    def _note(self, db: sqlite3.Connection, touched: Iterable[bytes]) -> None:
        for key in touched:
            size, queue = self._files.size(key), _queue(db, key)
            if size is not None and queue in (None, GHOST):
                _put(db, key, cost(size), SMALL)
            elif size is not None:
                db.execute(
                    "UPDATE chunks SET hits = hits + 1 WHERE key = ? AND hits < ?",
                    (key, MOST_HITS),
                )
            elif queue in (SMALL, MAIN):
                _forget(db, key)

    def _evict(self, db: sqlite3.Connection, incoming: int, limit: int) -> bool:
        """Make room in the budget and on the disk; False when this is not enough.

        Raises OSError when there is nothing to evict: others have filled the disk.
        """
        over_budget = _bytes(db, SMALL, MAIN) + incoming - limit
        lacking = incoming - self._files.spare()
        if lacking > 0 and not _entries(db, SMALL, MAIN):
            raise OSError(errno.ENOSPC, "the disk is full", self._files.root)
        needed = max(over_budget, lacking)
        for _ in range(MOST_STEPS):
            if needed <= 0:
                break
            small_is_full = _bytes(db, SMALL) > limit // SMALL_SHARE
            queue = SMALL if small_is_full or not _entries(db, MAIN) else MAIN
            needed -= self._step(db, queue)
        return needed <= 0

    def _step(self, db: sqlite3.Connection, queue: int) -> int:
        """Send the first of a queue where it belongs; the bytes this has freed."""
        first = db.execute(
            "SELECT key, cost, hits FROM chunks WHERE queue = ? ORDER BY rowid LIMIT 1", (queue,)
        ).fetchone()
        if first is None:
            return 0
        key, size, hits = first
        if queue == MAIN and hits:
            _put(db, key, size, MAIN, hits - 1)
            return 0
        if queue == SMALL and hits >= HITS_FOR_MAIN:
            _put(db, key, size, MAIN)
            return 0
        self._files.remove(key)
        if queue == MAIN:
            _forget(db, key)
        else:
            _put(db, key, 0, GHOST)
        _trim_ghosts(db)
        return int(size)


@cache
def _boot() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "unknown"


def _is_settled(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM settled WHERE boot = ?", (_boot(),)).fetchone() is not None


def _check(db: sqlite3.Connection) -> None:
    """Find what a machine that stopped has left of the file, and count again."""
    (found,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise damaged(found)
    db.execute(
        "UPDATE queues SET (entries, bytes) = (SELECT count(*), coalesce(sum(cost), 0)"
        " FROM chunks WHERE chunks.queue = queues.queue)"
    )


def _queue(db: sqlite3.Connection, key: bytes) -> int | None:
    row = db.execute("SELECT queue FROM chunks WHERE key = ?", (key,)).fetchone()
    return row[0] if row is not None else None


def _put(db: sqlite3.Connection, key: bytes, size: int, queue: int, hits: int = 0) -> None:
    """Put a chunk at the end of a queue, from wherever it was."""
    db.execute("REPLACE INTO chunks VALUES (?, ?, ?, ?)", (key, size, queue, hits))


def _forget(db: sqlite3.Connection, key: bytes) -> None:
    db.execute("DELETE FROM chunks WHERE key = ?", (key,))


def _trim_ghosts(db: sqlite3.Connection) -> None:
    """Remember as many ghosts as there are chunks."""
    excess = _entries(db, GHOST) - _entries(db, SMALL, MAIN)
    if excess > 0:
        db.execute(
            "DELETE FROM chunks WHERE rowid IN"
            " (SELECT rowid FROM chunks WHERE queue = ? ORDER BY rowid LIMIT ?)",
            (GHOST, excess),
        )


def _entries(db: sqlite3.Connection, *queues: int) -> int:
    return sum(
        row[0] for row in db.execute("SELECT entries, queue FROM queues") if row[1] in queues
    )


def _bytes(db: sqlite3.Connection, *queues: int) -> int:
    return sum(row[0] for row in db.execute("SELECT bytes, queue FROM queues") if row[1] in queues)
