"""How long a failing call is worth repeating: what it is part of knows, not who repeats it.

A call passes through several wrappers, so this goes with the thread and not with the call. `Retry`
and the renewal of leases ask `current`; where another site can be asked instead (note 0014),
`patience` bounds the seconds, and connections take it for their time-outs, too. A call that makes
headway is not ended.
"""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from store.backends.base import Backend
from store.errors import BackendError

HURRY_S = 5.0


class Patience:
    """As much as whoever repeats calls has by himself; `seconds` bounds it for each call."""

    seconds = math.inf

    def begin(self) -> None:
        """Raise what keeps the next attempt from being made; asked before each, the first too."""

    def failed(self, error: BackendError) -> None:
        """Told of each failure."""


class _Less(Patience):
    """Less than what is around it has."""

    def __init__(self, seconds: float = math.inf) -> None:
        self._around = current()
        self.seconds = min(seconds, self._around.seconds)

    def begin(self) -> None:
        self._around.begin()

    def failed(self, error: BackendError) -> None:
        self._around.failed(error)


class _WhileHeld(_Less):
    def __init__(self, check: Callable[[], None]) -> None:
        super().__init__()
        self._check = check

    def begin(self) -> None:
        self._check()
        super().begin()


class _UntilFailure(_Less):
    def __init__(self) -> None:
        super().__init__()
        self._error: BackendError | None = None

    def begin(self) -> None:
        if self._error is not None:
            raise self._error
        super().begin()

    def failed(self, error: BackendError) -> None:
        self._error = self._error or error
        super().failed(error)


_current: ContextVar[Patience] = ContextVar("patience", default=Patience())  # noqa: B039 - no state


def current() -> Patience:
    """What holds for this thread's calls."""
    return _current.get()


@contextmanager
def attempt() -> Iterator[None]:
    """One attempt at something; `current` is asked before and told of a failure."""
    current().begin()
    try:
        yield
    except BackendError as error:
        current().failed(error)
        raise


@contextmanager
def _have(patience: Patience) -> Iterator[None]:
    token = _current.set(patience)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def while_held(check: Callable[[], None]) -> Iterator[None]:
    """In here no attempt begins unless `check` raises nothing: Locked, when a lock was lost."""
    with _have(_WhileHeld(check)):
        yield


@contextmanager
def in_a_hurry(backend: Backend) -> Iterator[None]:
    """In here no call is made after one has failed, and one that hangs fails after HURRY_S.

    Who hangs is interrupted, and other threads' calls with him.
    """
    done = threading.Event()

    def interrupt() -> None:
        while not done.wait(HURRY_S):
            backend.interrupt()

    watch = threading.Thread(target=interrupt, name="hurry", daemon=True)
    watch.start()
    try:
        with _have(_UntilFailure()):
            yield
    finally:
        done.set()
        watch.join()


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Calls inside have so much of it, or less where there was less already."""
    with _have(_Less(seconds)):
        yield
