"""Lets requests through until it is shut, and then waits for those that are inside."""

from threading import Condition, Lock

from store.errors import BackendError


class Gate:
    """For use in a `with` around each request. Thread-safe."""

    def __init__(self) -> None:
        self._is_shut = False
        self._inside = 0
        self._lock = Lock()
        self._left = Condition(self._lock)

    def __enter__(self) -> None:
        with self._lock:
            if self._is_shut:
                raise BackendError("the export is ending: it takes no more requests")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._is_shut:
                self._left.notify_all()

    def shut(self) -> None:
        """Let nobody in any more; returns when nobody is inside."""
        with self._lock:
            self._is_shut = True
            self._left.wait_for(lambda: not self._inside)
