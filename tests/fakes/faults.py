"""A backend that breaks, or a process that dies, at the Nth call or by a plan."""

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from functools import partial
from itertools import islice
from random import Random
from typing import Any

from store.errors import BackendError, OutOfSpace, PermissionDenied, StoreError
from tests.fakes.clock import FakeClock

RETRY_AFTER_S = 7.0
DELAY_S = 40.0


class Died(BaseException):
    """The process was killed here: nothing after this has any effect."""


class FaultyBackend:
    """Wraps a backend; call number `fail_at` (from 0) raises, before or after it did its work.

    `kill` makes it Died, and every later call too, as kill -9 would: no clean-up reaches the
    storage. Locks are given back by `bury`, as the kernel would.
    """

    def __init__(
        self, backend: Any, fail_at: int = -1, *, kill: bool = False, after: bool = False
    ) -> None:
        self._backend, self.fail_at, self._kill, self._after = backend, fail_at, kill, after
        self.calls = 0
        self._dead = False
        self._held: list[Any] = []

    @property
    def location(self) -> str:
        return str(self._backend.location)

    @property
    def parallelism(self) -> int:
        return int(self._backend.parallelism)

    @property
    def is_object_store(self) -> bool:
        return bool(self._backend.is_object_store)

    def interrupt(self) -> None:
        self._backend.interrupt()

    def close(self) -> None:
        self._backend.close()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self._guard(getattr(self._backend, name), name)

    def _guard(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if self._dead:
                raise Died(name)
            number, self.calls = self.calls, self.calls + 1
            return self._make(number, name, partial(function, *args, **options))

        return call

    def _make(self, number: int, name: str, call: Callable[[], Any]) -> Any:
        if number == self.fail_at and not self._after:
            self._break(name)
        try:
            result = call()
            if name in {"lock", "lock_store"}:
                self._held.append(result)
            return self._wrap(name, result)
        finally:
            if number == self.fail_at and self._after:
                self._break(name)

    def _wrap(self, name: str, result: Any) -> Any:
        return FaultyFile(self, result) if name == "create_temporary" else result

    def _break(self, name: str) -> None:
        if self._kill:
            self._dead = True
            raise Died(name)
        raise BackendError(f"{self.location}: {name} was made to fail")

    def bury(self) -> None:
        """Release what a killed process would have held."""
        for lock in self._held:
            lock.release()


class FaultyFile:
    """A TemporaryFile of a FaultyBackend: its calls count, as `temporary.write` and so on."""

    def __init__(self, backend: FaultyBackend, file: Any) -> None:
        self._backend, self._file = backend, file

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self._backend._guard(getattr(self._file, name), f"temporary.{name}")


class Fault(StrEnum):
    """What can happen at one call."""

    FAILURE = "fails for good"
    FAILURE_AFTER = "is done, and fails for good"
    GLITCH = "fails"
    LOST_ANSWER = "is done, and its answer lost"
    SLOW_DOWN = "is refused: slow down"
    FULL = "finds no room"
    FORBIDDEN = "is forbidden"
    DELAY = "takes long"
    HALF_BODY = "gives half of the bytes"
    FLIPPED_BIT = "gives one bit wrong"


ERRORS: dict[Fault | None, Callable[[str], StoreError]] = {
    Fault.FAILURE: BackendError,
    Fault.FAILURE_AFTER: BackendError,
    Fault.GLITCH: partial(BackendError, retryable=True),
    Fault.LOST_ANSWER: partial(BackendError, retryable=True),
    Fault.SLOW_DOWN: partial(BackendError, retryable=True, retry_after_s=RETRY_AFTER_S),
    Fault.FULL: OutOfSpace,
    Fault.FORBIDDEN: PermissionDenied,
}
AFTER = frozenset((Fault.FAILURE_AFTER, Fault.LOST_ANSWER))
SPOILED = frozenset((Fault.HALF_BODY, Fault.FLIPPED_BIT))
READS = frozenset(("read", "read_into", "read_range", "map"))
"""The calls that give bytes, to which those happen; on others they do nothing."""

Plan = Callable[[int, str], Fault | None]
"""What happens at call number N (from 0), of that name."""


def fault_at(wanted: int, fault: Fault) -> Plan:
    """One fault, at call number `wanted`."""
    return lambda number, _: fault if number == wanted else None


def seeded_faults(seed: int, rate: float, faults: Sequence[Fault] = tuple(Fault)) -> Plan:
    """Any of `faults` at any call, with probability `rate`; the same for the same seed."""
    random = Random(seed)
    return lambda *_: random.choice(faults) if random.random() < rate else None


class PlannedFaults(FaultyBackend):
    """Wraps a backend to which happens what `plan` says. `history` is what was called, and came.

    A lock whose answer is lost is free again: the kernel closes what nobody got, and a lease knows
    its own by a token.
    """

    def __init__(self, backend: Any, plan: Plan, clock: FakeClock | None = None) -> None:
        super().__init__(backend)
        self._plan, self._clock = plan, clock or FakeClock()
        self.history: list[tuple[str, Fault | None]] = []

    def _make(self, number: int, name: str, call: Callable[[], Any]) -> Any:
        fault = self._plan(number, name)
        self.history.append((name, fault))
        self._clock.now += DELAY_S if fault is Fault.DELAY else 0
        error = fault in ERRORS and ERRORS[fault](f"{self.location}: {name} {fault} ({number})")
        if error and fault not in AFTER:
            raise error
        result = call()
        if error:
            if name == "walk":
                return _torn(result, error)
            if name in {"lock", "lock_store"}:
                result.release()
            raise error
        if name in READS and fault in SPOILED:
            return _spoiled(bytes(result), fault, number)
        return self._wrap(name, result)


def _torn(names: Iterator[Any], error: StoreError) -> Iterator[Any]:
    """The first half of a listing, then the error."""
    every = list(names)
    yield from islice(every, len(every) // 2)
    raise error


def _spoiled(data: bytes, fault: Fault | None, number: int) -> bytes:
    if fault is Fault.HALF_BODY or not data:
        return data[: len(data) // 2]
    position = number * 7919 % (len(data) * 8)
    flipped = data[position // 8] ^ 1 << position % 8
    return data[: position // 8] + bytes((flipped,)) + data[position // 8 + 1 :]
