"""An interrupt at the worst moment."""

import threading
from typing import Self


class InterruptingLock:
    """A lock; who gives it back for the first time is interrupted then."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.is_due = True

    def __enter__(self) -> Self:
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        due, self.is_due = self.is_due, False
        if due:
            raise KeyboardInterrupt
