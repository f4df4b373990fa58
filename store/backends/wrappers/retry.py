"""Calls in which the storage failed are made again, for a while (notes/0012-retries.md)."""

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from store.backends.base import (
    Backend,
    Listed,
    Subdirectory,
    TemporaryFile,
    Walked,
)
from store.backends.patience import current
from store.backends.wrappers.attempts import Attempts, Credit
from store.backends.wrappers.pausing import Clock, Pausing, Wait
from store.backends.wrappers.wrapper import WrappedFile
from store.errors import AlreadyExists, BackendError, NotFound, OutOfSpace, StoreError
from store.format.buffer import Buffer

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

LOG_EVERY_S = 1.0
WARN_AFTER_S, WARN_EVERY_S = 5.0, 60.0
MAX_DOUBLINGS = 32  # more than any longest pause needs, less than a float holds


class Retry(Pausing):
    """A Backend that makes a call again when it raised BackendError(retryable=True).

    Pauses double from `first_pause_s` to `longest_pause_s`; each is drawn from 0 to that, and
    begins when the time the storage asked for (`retry_after_s`) is over. When the next attempt
    would begin more than `retry_for_s` after the call, it ends with the last error, which then
    says how often and how long it was tried. A storage that has never answered gets `open_for_s`;
    one that was given up gets one attempt a call, until it answers; after an interrupt, too, who
    cleans up waits for a second at most. OutOfSpace is never retried.
    What the call is part of may have less patience (store.backends.patience).

    A failed attempt may have been done all the same, its answer lost. So from the second attempt
    on these are successes: an exclusive write that finds our own bytes, a delete that finds
    nothing, a rename that finds only the new name, and a mkdir that finds the directory, which we
    then made.

    Not repeated: `sync`; what is written to a temporary file; its `commit`, but on object stores;
    a lock's `check` and `release`; `copies`, `repair`.
    """

    def __init__(
        self,
        inner: Backend,
        *,
        retry_for_s: float = 300.0,
        open_for_s: float | None = None,
        first_pause_s: float = 0.2,
        longest_pause_s: float = 30.0,
        clock: Clock = time.monotonic,
        wait: Wait = threading.Event.wait,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`clock`, `wait` and `draw` are for tests; `draw` gives a number between its two.

        `open_for_s`: None is as long as ever.
        """
        super().__init__(inner, clock, wait)
        self._credit = Credit(retry_for_s, retry_for_s if open_for_s is None else open_for_s)
        self._first_pause_s, self._longest_pause_s = first_pause_s, longest_pause_s
        self._draw = draw
        self._silent_until = self._warned_until = -math.inf  # shared as the credit is

    # How

    def _pass(self, call: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """For calls that mean the same the second time."""
        return self._attempt(lambda _: call(*args, **options))

    def repeat(self, call: Callable[[], T]) -> T:
        """Make a call of one's own again while it fails, if it means the same the second time."""
        return self._pass(call)

    def _attempt(self, call: Callable[[bool], T]) -> T:
        """`call` is told whether an attempt before may have been done."""
        attempts = self._begin()
        while True:
            try:
                result = call(attempts.failed > 0)
            except BackendError as error:
                self._pause(attempts, error)
            except StoreError:
                self._credit.answered(self._clock())
                raise
            else:
                self._credit.answered(self._clock())
                return result

    def interrupt(self) -> None:
        self._credit.interrupted()
        super().interrupt()

    def _begin(self) -> Attempts:
        caller = current()
        caller.begin()
        return Attempts(self._clock(), caller, self._credit, self._ending)

    def _pause(self, attempts: Attempts, error: BackendError) -> None:
        """Return when it is time for another attempt. Raises when there is to be none."""
        attempts.failed += 1
        attempts.caller.failed(error)
        if not error.retryable or isinstance(error, OutOfSpace) or attempts.ending.is_set():
            raise error
        attempts.caller.begin()
        pause_s = self._pause_s(attempts.failed, error)
        tried_s = self._clock() - attempts.began
        patience_s = attempts.patience_s
        if tried_s + pause_s > patience_s:
            if patience_s == self._credit.seconds:
                self._credit.given_up(attempts.began)
            times = "once" if attempts.failed == 1 else f"{attempts.failed} times"
            raise BackendError(
                f"{error} (tried {times} in {tried_s:.0f} s)",
                retryable=True,
                retry_after_s=error.retry_after_s,
            ) from error
        self._tell(error, pause_s, tried_s, patience_s)
        if self._wait(attempts.ending, pause_s):
            raise error
        attempts.caller.begin()

    def _pause_s(self, failed: int, error: BackendError) -> float:
        """Drawn anew each time, so that those who failed together do not come back together."""
        doubled = self._first_pause_s * 2.0 ** min(failed - 1, MAX_DOUBLINGS)
        return (error.retry_after_s or 0.0) + self._draw(0.0, min(doubled, self._longest_pause_s))

    def _tell(self, error: BackendError, pause_s: float, tried_s: float, patience_s: float) -> None:
        """A line now and then; a WARNING when it takes so long that somebody will wonder."""
        now = self._clock()
        if tried_s + pause_s >= WARN_AFTER_S and now >= self._warned_until:
            self._warned_until = now + WARN_EVERY_S
            log.warning("%s; trying for %.0f s more", error, patience_s - tried_s)
        elif now >= self._silent_until:  # two threads at once: a line more
            self._silent_until = now + LOG_EVERY_S
            log.info("%s; trying again in %.1f s", error, pause_s)

    # Calls that need thought

    def write(
        self, name: str, parts: Sequence[Buffer], *, exclusive: bool = False, durable: bool = False
    ) -> None:
        def attempt(in_doubt: bool) -> None:
            try:
                self.inner.write(name, parts, exclusive=exclusive, durable=durable)
            except AlreadyExists:
                if not (exclusive and in_doubt and self._holds(name, b"".join(parts))):
                    raise
                self._settle(durable)

        self._attempt(attempt)

    def _holds(self, name: str, data: bytes) -> bool:
        there = self.inner.stat(name)
        return there is not None and there.size == len(data) and self.inner.read(name) == data

    def _settle(self, durable: bool) -> None:
        """What was found done may have failed in its last step, that of becoming durable."""
        if durable:
            self.sync()

    def delete(self, name: str) -> None:
        def attempt(in_doubt: bool) -> None:
            try:
                self.inner.delete(name)
            except NotFound:
                if not in_doubt:
                    raise

        self._attempt(attempt)

    def rename(self, old: str, new: str) -> None:
        def attempt(in_doubt: bool) -> None:
            try:
                self.inner.rename(old, new)
            except NotFound:
                if not (in_doubt and self._was_renamed(old, new)):
                    raise

        self._attempt(attempt)

    def _was_renamed(self, old: str, new: str) -> bool:
        return self.inner.stat(old) is None and self.inner.stat(new) is not None

    def mkdir(self, name: str, *, durable: bool = False) -> bool:
        def attempt(in_doubt: bool) -> bool:
            made = self.inner.mkdir(name, durable=durable)
            if in_doubt and not made:
                self._settle(durable)
            return made or in_doubt

        return self._attempt(attempt)

    def sync(self) -> None:
        """Not repeated: what one call says is lost, the next one does not know any more.

        So its error is not retryable either.
        """
        try:
            self.inner.sync()
        except BackendError as error:
            if error.retryable and not isinstance(error, OutOfSpace):
                raise BackendError(str(error)) from error
            raise

    def walk(self, name: str, after: str = "") -> Iterator[Walked]:
        attempts = self._begin()
        while True:
            try:
                for found in self.inner.walk(name, after):
                    yield found
                    after, attempts = found.name, self._begin()
                    self._credit.answered(self._clock())
            except BackendError as error:
                self._pause(attempts, error)
            else:
                return

    def subdirectories(self, name: str, mark: str) -> list["_Subdirectory"]:
        found = self._pass(self.inner.subdirectories, name, mark)
        return [_Subdirectory(one, self) for one in found]

    def is_marked(self, directory: Subdirectory) -> bool:
        """`directory.is_marked`, which may cost a look-up."""
        return self._attempt(lambda _: directory.is_marked)

    def create_temporary(self, name: str, temporary: str, size: int = 0) -> TemporaryFile:
        file = self._pass(self.inner.create_temporary, name, temporary, size)
        return _RetriedFile(file, self) if self.is_object_store else file

    def commit(self, file: TemporaryFile, *, durable: bool) -> None:
        """Make a file's `commit` again while it fails."""
        self._pass(file.commit, durable=durable)

    # Calls that mean the same the second time, beside those of Pausing

    def read(self, name: str) -> bytes:
        return self._pass(self.inner.read, name)

    def read_into(self, name: str, room: memoryview) -> Buffer:
        return self._pass(self.inner.read_into, name, room)

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        return self._pass(self.inner.read_range, name, offset, size)

    def map(self, name: str) -> Buffer:
        return self._pass(self.inner.map, name)

    def scan(self, name: str) -> list[Listed]:
        return self._pass(self.inner.scan, name)

    def forget_lock(self, lock_names: Sequence[str]) -> None:
        self._pass(self.inner.forget_lock, lock_names)


@dataclass(frozen=True, slots=True)
class _Subdirectory:
    found: Subdirectory
    retry: Retry

    @property
    def name(self) -> str:
        return self.found.name

    @property
    def is_marked(self) -> bool:
        return self.retry.is_marked(self.found)


class _RetriedFile(WrappedFile):
    """A temporary file of an object store, which keeps its data until it is stored.

    A file system's does not: a `fsync` that failed has dropped what it could not write, and the
    next one says that all is well.
    """

    def __init__(self, inner: TemporaryFile, retry: Retry) -> None:
        super().__init__(inner)
        self._retry = retry

    def commit(self, *, durable: bool = False) -> None:
        self._retry.commit(self.inner, durable=durable)
