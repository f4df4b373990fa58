"""Two or more sites that hold the same datastore: read from the nearest, repaired as it is read."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Self, TypeVar

from store.backends.base import (
    Backend,
    Listed,
    Lock,
    ObjectStat,
    Space,
    Subdirectory,
    Walked,
)
from store.backends.chunks import is_chunk
from store.backends.mirror.read_repair import ReadRepair
from store.backends.mirror.sites import Run, Site, Sites, in_background
from store.backends.wrappers.pausing import Wait
from store.backends.wrappers.retry import Retry
from store.backends.wrappers.wrapper import Wrapper
from store.errors import (
    AlreadyExists,
    BackendError,
    FormatError,
    IntegrityError,
    NotFound,
    StoreError,
)
from store.format.buffer import Buffer
from store.progress import SILENT, Progress

T = TypeVar("T")


class Mirror(Wrapper):
    """A Backend of several sites. See store.backends.base for the promises, note 0014 for why.

    Chunks are read at the nearest site; one that is missing or bad there comes from another, which
    also repairs it. All else is the primary's: what it has is the datastore, the others follow it.
    While it can't be reached, metadata is read elsewhere and nothing can be written. A site has
    `PATIENCE_S` to answer a reader until another one is asked. Who holds an
    exclusive lock or the store's reads nothing but the primary: an older copy of an index or a
    manifest must not decide what is written or removed.
    """

    def __init__(
        self,
        primary: Backend,
        others: Sequence[Backend],
        *,
        nearest: bool = True,
        retry_for_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        wait: Wait = threading.Event.wait,
        run: Run = in_background,
    ) -> None:
        """A site that was away when it was opened is a `Late`.

        `nearest`: measure which site to read chunks from; else ask them in the order given.
        `retry_for_s`: how long a reader asks them all again while none answers.
        `clock`, `wait` and `run`, which is given the probes of sites that are down, are for tests.
        """
        super().__init__(primary)
        self._sites = Sites((primary, *others), measured=nearest, clock=clock, run=run)
        self._rounds = Retry(primary, retry_for_s=retry_for_s, clock=clock, wait=wait)
        self._repairs = ReadRepair(self._sites)
        self._lock = threading.Lock()
        self._writers = 0

    def __repr__(self) -> str:
        return f"Mirror({', '.join(repr(site.backend) for site in self._sites.all)})"

    @property
    def parallelism(self) -> int:
        return max(site.backend.parallelism for site in self._sites.all)

    def create(self, progress: Progress = SILENT) -> None:
        """At every site that has none yet, the primary last: until it is done there is none."""
        for site in self._sites.all[1:]:
            with suppress(AlreadyExists):
                site.backend.create(progress)
        self.inner.create(progress)

    # Chunks

    def read(self, name: str) -> bytes:
        if is_chunk(name):
            return self._rounds.repeat(lambda: self._read_chunk(name))
        return self._ask(lambda backend: backend.read(name))

    def _read_chunk(self, name: str) -> bytes:
        interrupts = self._sites.interrupts
        errors: list[StoreError] = []
        for site in self._sites.nearest_first(name):
            try:
                raw = self._sites.read_chunk(site, name)
            except StoreError as error:
                if self._sites.interrupts != interrupts:
                    raise
                errors.append(error)
                self._note(site, name, error)
            else:
                if any(map(_is_trouble, errors)):
                    self._repairs.replace_unsound(name, raw)
                return raw
        raise min(errors, key=_rank)

    def _note(self, site: Site, name: str, error: StoreError) -> None:
        """Log a copy that can't be read, though its site can be reached; repairs log the rest."""
        if not (_is_trouble(error) or site.is_down):
            self._repairs.report(site, name, f"not readable, another site is asked: {error}")

    def copies(self, name: str) -> Iterator[bytes]:
        for site in self._sites.nearest_first(name):
            with suppress(StoreError):
                yield self._sites.read_chunk(site, name)

    def repair(self, name: str, good: Buffer) -> None:
        self._repairs.replace_others(name, good)

    # Metadata: of the primary, or of another site while it can't be reached

    def _ask(self, question: Callable[[Backend], T]) -> T:
        if self._writers:
            return question(self.inner)
        return self._rounds.repeat(lambda: self._ask_each(question))

    def _ask_each(self, question: Callable[[Backend], T]) -> T:
        interrupts = self._sites.interrupts
        first: BackendError | None = None
        for site in self._sites.primary_first():
            try:
                return self._sites.ask(site, question)
            except BackendError as error:
                if not error.retryable or self._sites.interrupts != interrupts:
                    raise
                first = first or error
        raise first or BackendError(f"{self.location}: no site was asked")

    def status(self) -> Space:
        return self._ask(lambda backend: backend.status())

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        return self._ask(lambda backend: backend.read_range(name, offset, size))

    def map(self, name: str) -> Buffer:
        return self._ask(lambda backend: backend.map(name))

    def stat(self, name: str) -> ObjectStat | None:
        return self._ask(lambda backend: backend.stat(name))

    def scan(self, name: str) -> list[Listed]:
        return self._ask(lambda backend: backend.scan(name))

    def subdirectories(self, name: str, mark: str) -> Sequence[Subdirectory]:
        return self._ask(lambda backend: backend.subdirectories(name, mark))

    def walk(self, name: str, after: str = "") -> Iterator[Walked]:
        """One that has begun stays at its site: another one's order may be another."""
        return self._ask(lambda backend: _begin(backend.walk(name, after)))

    # Locks

    def lock(
        self, name: str, lock_names: Sequence[str], *, exclusive: bool, timeout_s: float = 0
    ) -> Lock:
        def take(backend: Backend) -> Lock:
            return backend.lock(name, lock_names, exclusive=exclusive, timeout_s=timeout_s)

        return self._lock_to_write(take) if exclusive else self._ask(take)

    def lock_store(self, *, exclusive: bool = False) -> Lock:
        return self._lock_to_write(lambda primary: primary.lock_store(exclusive=exclusive))

    def _lock_to_write(self, take: Callable[[Backend], Lock]) -> Lock:
        try:
            lock = take(self.inner)
        except BackendError as error:
            if not error.retryable:
                raise
            raise BackendError(
                f"the primary site can't be reached, so nothing can be written: {error}",
                retryable=True,
                retry_after_s=error.retry_after_s,
            ) from error
        self._count_writer(1)
        return _WriterLock(lock, lambda: self._count_writer(-1))

    def _count_writer(self, change: int) -> None:
        with self._lock:
            self._writers += change

    def interrupt(self) -> None:
        self._rounds.end_pauses()
        self._sites.interrupt()

    def close(self) -> None:
        self._rounds.end_pauses()
        for site in self._sites.all:
            site.backend.close()


class _WriterLock:
    """A lock of the primary; while it is held, nothing is read elsewhere."""

    def __init__(self, lock: Lock, done: Callable[[], None]) -> None:
        self._lock = lock
        self._done: Callable[[], None] | None = done

    def check(self) -> None:
        self._lock.check()

    def confirm(self) -> None:
        self._lock.confirm()

    def release(self) -> None:
        self._lock.release()
        done, self._done = self._done, None
        if done is not None:
            done()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _is_trouble(error: StoreError) -> bool:
    """Whether a site was reached and has no good copy."""
    return isinstance(error, NotFound | FormatError | IntegrityError)


def _rank(error: StoreError) -> int:
    """Which of several sites' errors to raise: a site that did not answer may have a good copy."""
    if not _is_trouble(error):
        return 0
    return 2 if isinstance(error, NotFound) else 1


def _begin(objects: Iterator[Walked]) -> Iterator[Walked]:
    """The same, its first request made: whether it fails shows here."""
    first = list(itertools.islice(objects, 1))
    return itertools.chain(first, objects)
