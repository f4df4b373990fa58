"""Wrappers whose calls may have to wait, and how that is ended."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from store.backends.base import Backend, Lock, ObjectStat, Space
from store.backends.wrappers.wrapper import Wrapper
from store.progress import SILENT, Progress

P = ParamSpec("P")
T = TypeVar("T")

Clock = Callable[[], float]
"""Seconds since some moment, never backwards."""

Wait = Callable[[threading.Event, float], bool]
"""Waits so many seconds for an event, at most; True when it came."""


class Pausing(Wrapper, ABC):
    """A wrapper that waits, for as long as nobody calls `interrupt` or `close`.

    A call takes `_ending` when it begins and waits for nothing but that: calls that begin after
    the interrupt have another one. What most calls have in common is said once, in `_pass`.
    """

    def __init__(self, inner: Backend, clock: Clock, wait: Wait) -> None:
        super().__init__(inner)
        self._clock, self._wait = clock, wait
        self._ending = threading.Event()
        self._renewing = threading.Lock()

    @abstractmethod
    def _pass(self, call: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Make a call of `inner`, with the waiting that belongs to it."""

    def end_pauses(self) -> None:
        """Make the calls that other threads are in stop waiting."""
        with self._renewing:  # or of two interrupts one could put away an event that nobody sets
            ending, self._ending = self._ending, threading.Event()
        ending.set()

    def interrupt(self) -> None:
        self.end_pauses()  # first: what fails inside because of it is not to be tried again
        self.inner.interrupt()

    def close(self) -> None:
        self.end_pauses()
        self.inner.close()

    def create(self, progress: Progress = SILENT) -> None:
        self._pass(self.inner.create, progress)

    def status(self) -> Space:
        return self._pass(self.inner.status)

    def stat(self, name: str) -> ObjectStat | None:
        return self._pass(self.inner.stat, name)

    def touch(self, name: str) -> int | None:
        return self._pass(self.inner.touch, name)

    def rmdir(self, name: str) -> bool:
        return self._pass(self.inner.rmdir, name)

    def remove_tree(self, name: str) -> None:
        self._pass(self.inner.remove_tree, name)

    def lock(
        self, name: str, lock_names: Sequence[str], *, exclusive: bool, timeout_s: float = 0
    ) -> Lock:
        return self._pass(
            self.inner.lock, name, lock_names, exclusive=exclusive, timeout_s=timeout_s
        )

    def lock_store(self, *, exclusive: bool = False) -> Lock:
        return self._pass(self.inner.lock_store, exclusive=exclusive)
