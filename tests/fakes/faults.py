"""A backend that breaks, or a process that dies, at the Nth call."""

from collections.abc import Callable
from typing import Any

from store.errors import BackendError


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

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self._guard(getattr(self._backend, name), name)

    def _guard(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if self._dead:
                raise Died(name)
            number, self.calls = self.calls, self.calls + 1
            if number == self.fail_at and not self._after:
                self._break(name)
            try:
                result = function(*args, **options)
                if name in {"lock", "lock_store"}:
                    self._held.append(result)
                return FaultyFile(self, result) if name == "create_temporary" else result
            finally:
                if number == self.fail_at and self._after:
                    self._break(name)

        return call

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
    """A TemporaryFile of a FaultyBackend: its calls count."""

    def __init__(self, backend: FaultyBackend, file: Any) -> None:
        self._backend, self._file = backend, file

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self._backend._guard(getattr(self._file, name), name)
