"""How many micro-VMs run at a time, and for how long after they were needed last."""

import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Thread
from typing import Protocol

from store.errors import BackendError

# Each takes about 300 MiB, and while it starts one processor.
LIMIT = 2
IDLE_S = 300.0
PATIENCE_S = 120.0


class Stoppable(Protocol):
    """Something that runs, and starts again by itself when it is needed."""

    def stop(self) -> None:
        """End it; nobody is using it."""


class _Use:
    """How many use one, and when the last of them stopped."""

    def __init__(self) -> None:
        self.count, self.since = 0, 0.0


class Pool:
    """Thread-safe. Of the unused ones the one not needed for longest makes room.

    Args:
        limit: how many run at a time.
        idle_s: after which time unused ones are stopped.
        patience_s: how long to wait for one to become unused.
    """

    def __init__(
        self, limit: int = LIMIT, idle_s: float = IDLE_S, patience_s: float = PATIENCE_S
    ) -> None:
        self._limit, self._idle_s, self._patience_s = limit, idle_s, patience_s
        self._changed = Condition()
        self._running: OrderedDict[Stoppable, _Use] = OrderedDict()
        self._caretaker: Thread | None = None

    @contextmanager
    def held(self, guest: Stoppable) -> Iterator[None]:
        """Let `guest` run for a while. Raises BackendError: all others are busy, and stay so."""
        use = self._enter(guest)
        try:
            yield
        finally:
            with self._changed:
                use.count -= 1
                use.since = time.monotonic()
                self._changed.notify_all()

    def leave(self, guest: Stoppable) -> None:
        """It is not needed any more."""
        with self._changed:
            self._running.pop(guest, None)
            self._changed.notify_all()

    def _enter(self, guest: Stoppable) -> _Use:
        deadline = time.monotonic() + self._patience_s
        with self._changed:
            while guest not in self._running and not self._make_room():
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    raise BackendError(
                        f"all {self._limit} micro-VMs are busy with other disks", retryable=True
                    )
            use = self._running.setdefault(guest, _Use())
            self._running.move_to_end(guest)
            use.count += 1
            if self._caretaker is None:
                self._caretaker = Thread(target=self._stop_idle, name="micro-vm-idle", daemon=True)
                self._caretaker.start()
            return use

    def _make_room(self) -> bool:
        if len(self._running) < self._limit:
            return True
        unused = next((guest for guest, use in self._running.items() if not use.count), None)
        if unused is not None:
            self._stop(unused)
        return unused is not None

    def _stop_idle(self) -> None:
        """The caretaker: goes home when nothing runs."""
        with self._changed:
            while self._running:
                now = time.monotonic()
                for guest, use in [*self._running.items()]:
                    if not use.count and use.since + self._idle_s <= now:
                        self._stop(guest)
                ends = [use.since + self._idle_s for use in self._running.values() if not use.count]
                self._changed.wait(max(0.0, min(ends, default=now + self._idle_s) - now))
            self._caretaker = None

    def _stop(self, guest: Stoppable) -> None:
        del self._running[guest]
        guest.stop()
