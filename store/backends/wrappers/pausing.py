"""Wrappers whose calls may have to wait, and how that is ended."""

import threading
from collections.abc import Callable

from store.backends.base import Backend
from store.backends.wrappers.wrapper import Wrapper

Clock = Callable[[], float]
"""Seconds since some moment, never backwards."""

Wait = Callable[[threading.Event, float], bool]
"""Waits so many seconds for an event, at most; True when it came."""


class Pausing(Wrapper):
    """A wrapper that waits, for as long as nobody calls `interrupt` or `close`.

    A call takes `_ending` when it begins and waits for nothing but that: calls that begin after
    the interrupt have another one.
    """

    def __init__(self, inner: Backend, clock: Clock, wait: Wait) -> None:
        super().__init__(inner)
        self._clock, self._wait = clock, wait
        self._ending = threading.Event()
        self._renewing = threading.Lock()

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
