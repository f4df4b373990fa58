"""The things used last, each made once."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """The `limit` values used last; each is made by one thread, while others wait for it.

    What is dropped is not closed: somebody may be reading in it. It ends with its last user.
    Thread-safe.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = Lock()
        self._values: OrderedDict[Hashable, T] = OrderedDict()
        self._making: dict[Hashable, Lock] = {}

    def peek(self, key: Hashable) -> T | None:
        """The value if it is here; waits for nothing."""
        with self._lock:
            found = self._values.get(key)
            if found is not None:
                self._values.move_to_end(key)
            return found

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of `key`, made now if it is not here. Raises what `make` raises."""
        found = self.peek(key)
        if found is not None:
            return found
        with self._lock:
            making = self._making.setdefault(key, Lock())
        with making:
            found = self.peek(key)
            return found if found is not None else self._make(key, make)

    def _make(self, key: Hashable, make: Callable[[], T]) -> T:
        try:
            value = make()
        finally:
            with self._lock:
                self._making.pop(key, None)
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._limit:
                self._values.popitem(last=False)
        return value

    def clear(self) -> list[T]:
        """Drop all; returns them."""
        with self._lock:
            values = [*self._values.values()]
            self._values.clear()
        return values
