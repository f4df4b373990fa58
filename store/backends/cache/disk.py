"""A chunk cache that never fails: what its disk cannot do is left out, and said once."""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from store.backends.cache.database import CacheDatabase, is_busy, is_damage
from store.backends.cache.files import DATASTORE_SIZE, DIRECTORIES, MAX_SIZE, CacheFiles
from store.backends.cache.index import CacheIndex, Unsettled
from store.errors import FormatError, IntegrityError, InvalidName, StoreError
from store.format.blob import check_blob

log = logging.getLogger(__name__)

NOTES = 64  # chunks read or dropped, of which the index learns at once
PAUSE_S = 60.0  # after the disk failed
SHORT_PAUSE_S = 1.0  # after something that passes
SETTLING_S = 1.0  # a reader waits at most, once


@dataclass(frozen=True, slots=True)
class CacheUsage:
    """How full a cache directory is, and what this process has had from it.

    Attributes:
        entries: chunks, of all datastores that share the directory.
        bytes: of disk that they and the index take; 0 while the disk fails.
        budget_bytes: what they may take.
        hits, misses: reads of chunks by this process.
    """

    entries: int
    bytes: int
    budget_bytes: int
    hits: int
    misses: int


class Pause:
    """A time in which something that failed is not tried again."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._until = clock, float("-inf")

    def begin(self, seconds: float) -> None:
        self._until = self._clock() + seconds

    @property
    def is_on(self) -> bool:
        return self._clock() < self._until


class CacheDisk:
    """Encoded chunks in a directory, up to a budget in bytes. Thread-safe, for many processes.

    A hit takes no lock and writes nothing: reads are noted, 64 chunks at a time. (Counters and
    notes rest on the GIL; a lost one does no harm.)
    """

    def __init__(
        self, directory: str, budget_bytes: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises InvalidName when the directory holds something else; no other error."""
        self._files = CacheFiles(directory)
        self._database = CacheDatabase(self._files)
        self._index = CacheIndex(self._files, self._database)
        self._budget_bytes = budget_bytes
        self._reading, self._keeping = Pause(clock), Pause(clock)
        self._notes: dict[bytes, None] = {}
        self._hits = self._misses = 0
        self._settler: threading.Thread | None = None
        self._warned = self._closed = False
        try:
            self._files.claim()
        except InvalidName:
            raise
        except (OSError, StoreError) as error:
            self._fail(self._keeping, error)

    def get(self, key: bytes) -> bytes | None:
        """A chunk's bytes, magic and CRC checked; None when it is not here."""
        raw = None
        if not self._reading.is_on:
            with self._going_on(self._reading):
                raw = self._read(key)
        if raw is None:
            self._misses += 1
        else:
            self._hits += 1
            self._note(key)
        return raw

    def _read(self, key: bytes) -> bytes | None:
        try:
            raw = self._files.read(key)
            if raw is not None:
                check_blob(raw)
        except (FormatError, IntegrityError) as error:
            log.info("%s: dropped from the cache: %s", self._files.path(key), error)
            self.drop(key)
            return None
        return raw

    def keep(self, key: bytes, raw: bytes) -> None:
        """Store a chunk, if it is sound and there is or can be made room for it."""
        if self._keeping.is_on or not _is_sound(raw):
            return
        with self._going_on(self._keeping):
            if self._files.size(key) is None and self._make_room(key, len(raw)):
                with self._files.staged(key, raw) as path:
                    self._index.place(path, key)

    def _make_room(self, key: bytes, size: int) -> bool:
        try:
            return self._index.make_room(key, size, self._budget_bytes, self._take_notes())
        except Unsettled:
            self._settle_meanwhile()
        try:
            return self._index.make_room(key, size, self._budget_bytes)
        except Unsettled:
            self._keeping.begin(SHORT_PAUSE_S)
            return False

    def drop(self, key: bytes) -> None:
        """Remove a chunk."""
        with self._going_on(self._keeping):
            if self._files.remove(key):
                self._note(key)

    def drop_below(self, datastore: bytes, prefix: str) -> None:
        """Remove a datastore's chunks whose digests start with `prefix`, hexadecimal digits."""
        with self._going_on(self._keeping):
            for digit in range(DIRECTORIES):
                for key, _ in self._files.chunks(datastore, digit):
                    if key[DATASTORE_SIZE:].hex().startswith(prefix):
                        self.drop(key)

    def usage(self) -> CacheUsage:
        """May take seconds, once after the machine started."""
        entries = size = 0
        with self._going_on(self._keeping):
            self._index.settle()
            self._index.note(self._take_notes())
            entries, chunk_bytes = self._index.totals()
            size = chunk_bytes + self._files.overhead()
        return CacheUsage(entries, size, self._budget_bytes, self._hits, self._misses)

    def close(self) -> None:
        """Tell the index what was read lately, and give descriptors back."""
        self._closed = True
        if self._settler is not None:
            self._settler.join()
        self._flush()
        self._database.close()

    def _note(self, key: bytes) -> None:
        self._notes[key] = None
        if len(self._notes) >= NOTES:
            self._flush()

    def _flush(self) -> None:
        notes = self._take_notes()
        if notes and not self._keeping.is_on:
            with self._going_on(self._keeping):
                self._index.note(notes)

    def _take_notes(self) -> list[bytes]:
        notes, self._notes = self._notes, {}
        return list(notes)

    def _settle_meanwhile(self) -> None:
        """Compare index and files in the background, where that takes long."""
        if self._settler is None or not self._settler.is_alive():
            settler = threading.Thread(target=self._settle, name="cache-index", daemon=True)
            with suppress(RuntimeError):  # the process is ending
                settler.start()
                self._settler = settler
        if self._settler is not None:
            self._settler.join(SETTLING_S)

    def _settle(self) -> None:
        with self._going_on(self._keeping):
            self._index.settle(lambda: self._closed)

    @contextmanager
    def _going_on(self, pause: Pause) -> Iterator[None]:
        """Let no error out: `pause` what failed instead."""
        try:
            yield
        except FileNotFoundError as error:  # somebody is deleting the directory
            log.debug("chunk cache %s: %s", self._files.root, error)
            pause.begin(SHORT_PAUSE_S)
        except sqlite3.Error as error:
            if is_busy(error):
                pause.begin(SHORT_PAUSE_S)
            elif is_damage(error):
                self._reset(error)
            else:
                self._fail(pause, error)
        except (OSError, StoreError) as error:
            self._fail(pause, error)

    def _reset(self, error: sqlite3.Error) -> None:
        log.info("chunk cache %s: its index is made anew: %s", self._files.root, error)
        self._keeping.begin(SHORT_PAUSE_S)
        try:
            self._database.reset()
        except OSError as failed:
            self._fail(self._keeping, failed)

    def _fail(self, pause: Pause, error: Exception) -> None:
        pause.begin(PAUSE_S)
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        log.log(level, "chunk cache %s: going on without it: %s", self._files.root, error)


def _is_sound(raw: bytes) -> bool:
    if len(raw) > MAX_SIZE:
        return False
    try:
        check_blob(raw)
    except (FormatError, IntegrityError):
        return False
    return True
