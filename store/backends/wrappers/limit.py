"""At most so many bytes and requests a second."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import ParamSpec, TypeVar

from store.backends.base import (
    Backend,
    Listed,
    Subdirectory,
    TemporaryFile,
    Walked,
)
from store.backends.wrappers.pausing import Clock, Pausing, Wait
from store.backends.wrappers.wrapper import WrappedFile
from store.errors import BackendError, InvalidName
from store.format.blob import MAX_CHUNK_SIZE
from store.format.buffer import Buffer

P = ParamSpec("P")
T = TypeVar("T")

PAGE = 1000
"""Names that an object store lists in one request."""


class _Bucket:
    """Tokens: `rate` more each second, `burst` at most; fewer than none are a debt. Thread-safe.

    Who comes later finds the debt of all who came before, and waits until that is paid, too: first
    come, first served.
    """

    def __init__(self, rate: float, burst: float, clock: Clock) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._level, self._then = burst, clock()
        self._lock = threading.Lock()

    def take(self, amount: float) -> float:
        """Take `amount`, there or not; the seconds until there is no debt."""
        with self._lock:
            now = self._clock()
            self._level = min(self._burst, self._level + (now - self._then) * self._rate) - amount
            self._then = now
            return max(0.0, -self._level / self._rate)

    def give_back(self, amount: float) -> None:
        self.take(-amount)


def _bucket(rate: float | None, burst: float | None, least: float, clock: Clock) -> _Bucket | None:
    """None: no limit. Without `burst` it is a second's worth, and `least` at least."""
    if rate is None:
        return None
    if rate <= 0 or (burst is not None and burst <= 0):
        raise InvalidName("a limit and its burst have to be more than 0; leave it out for none")
    return _Bucket(rate, burst or max(rate, least), clock)


class Limit(Pausing):
    """A Backend that waits before calls that would exceed bytes or requests a second.

    After a quiet time a burst is free: `burst_bytes` in each direction (default: a second's worth,
    16 MiB at least), `burst_requests` (a second's worth, 1 at least). What costs more than a burst
    waits until it is paid.

    What a write costs is paid before it. What a read costs is known after it, and paid by the
    reads after it: as many as are under way at once may exceed the burst. A call counts as one
    request, a listing as one for each thousand names.

    `interrupt` ends waiting with BackendError, not retryable.
    """

    def __init__(
        self,
        inner: Backend,
        *,
        read_bytes_s: float | None = None,
        write_bytes_s: float | None = None,
        burst_bytes: float | None = None,
        requests_s: float | None = None,
        burst_requests: float | None = None,
        clock: Clock = time.monotonic,
        wait: Wait = threading.Event.wait,
    ) -> None:
        """None: no limit. `clock` and `wait` are for tests.

        Raises InvalidName: a limit or a burst of nothing.
        """
        super().__init__(inner, clock, wait)
        self._reads = _bucket(read_bytes_s, burst_bytes, MAX_CHUNK_SIZE, clock)
        self._writes = _bucket(write_bytes_s, burst_bytes, MAX_CHUNK_SIZE, clock)
        self._requests = _bucket(requests_s, burst_requests, 1, clock)

    # How

    def _pay(self, bucket: _Bucket | None = None, amount: float = 0) -> None:
        """Wait until one more request, and `amount` from `bucket`, may be had.

        Raises BackendError when interrupted; then nothing was taken.
        """
        ending = self._ending
        costs = [(one, cost) for one, cost in ((self._requests, 1), (bucket, amount)) if one]
        pause_s = max((one.take(cost) for one, cost in costs), default=0.0)
        if pause_s and self._wait(ending, pause_s):
            for one, cost in costs:
                one.give_back(cost)
            raise BackendError(f"{self.location}: interrupted while waiting for the limit's rate")

    def _pass(self, call: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """For calls without data."""
        self._pay()
        return call(*args, **options)

    def _fetched(self, data: T, size: int) -> T:
        """For data that came: it is paid later."""
        if self._reads:
            self._reads.take(size)
        return data

    def _listed(self, names: T, number: int) -> T:
        """For names that came: those beyond the first thousand are paid later."""
        if self._requests and number > PAGE:
            self._requests.take((number - 1) // PAGE)
        return names

    # Calls with data

    def read(self, name: str) -> bytes:
        self._pay(self._reads)
        data = self.inner.read(name)
        return self._fetched(data, len(data))

    def read_into(self, name: str, room: memoryview) -> Buffer:
        self._pay(self._reads)
        data = self.inner.read_into(name, room)
        return self._fetched(data, len(data))

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        self._pay(self._reads)
        data = self.inner.read_range(name, offset, size)
        return self._fetched(data, len(data))

    def map(self, name: str) -> Buffer:
        self._pay(self._reads)
        data = self.inner.map(name)
        return self._fetched(data, len(data))

    def write(
        self, name: str, parts: Sequence[Buffer], *, exclusive: bool = False, durable: bool = False
    ) -> None:
        self._pay(self._writes, sum(map(len, parts)))
        self.inner.write(name, parts, exclusive=exclusive, durable=durable)

    def create_temporary(self, name: str, temporary: str, size: int = 0) -> TemporaryFile:
        return _LimitedFile(self.inner.create_temporary(name, temporary, size), size, self)

    def pay_commit(self, size: int) -> None:
        """Wait until a temporary file of `size` bytes may be stored. Raises BackendError."""
        self._pay(self._writes, size)

    # Listings

    def scan(self, name: str) -> list[Listed]:
        found = self._pass(self.inner.scan, name)
        return self._listed(found, len(found))

    def subdirectories(self, name: str, mark: str) -> Sequence[Subdirectory]:
        found = self._pass(self.inner.subdirectories, name, mark)
        return self._listed(found, len(found))

    def walk(self, name: str, after: str = "") -> Iterator[Walked]:
        names = self.inner.walk(name, after)
        for number in count():
            if number % PAGE == 0:
                self._pay()
            found = next(names, None)
            if found is None:
                return
            yield found

    # All else that Pausing does not pass

    def rename(self, old: str, new: str) -> None:
        self._pass(self.inner.rename, old, new)

    def delete(self, name: str) -> None:
        self._pass(self.inner.delete, name)

    def mkdir(self, name: str, *, durable: bool = False) -> bool:
        return self._pass(self.inner.mkdir, name, durable=durable)


class _LimitedFile(WrappedFile):
    """A temporary file whose bytes count when it gets its name: an object store sends them then."""

    def __init__(self, inner: TemporaryFile, size: int, limit: Limit) -> None:
        super().__init__(inner)
        self._size, self._limit = size, limit

    def write(self, data: Buffer) -> None:
        self.inner.write(data)
        self._size += len(data)

    def commit(self, *, durable: bool = False) -> None:
        self._limit.pay_commit(self._size)
        self.inner.commit(durable=durable)
