"""Turns at the processors, for threads that are many because most of them wait for a network.

Sixteen threads that all decode on two processors each hold a chunk twice, and push each other out
of the processors' caches. In turns two do; the others wait with what they were sent, or will send.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from queue import Empty, SimpleQueue

from store.backends.base import Backend

LONGEST_WAIT_S = 5.0
"""A turn is a courtesy: an interrupt at the wrong moment, or a fork, may lose one, and nobody hangs
for it. Who has waited so long goes ahead, and leaves a turn behind in place of the lost one."""


def processors() -> int:
    """How many we may use."""
    return len(os.sched_getaffinity(0))


class Turns:
    """So many threads at once, about in the order they came. Thread-safe; not to be nested."""

    def __init__(self, count: int) -> None:
        self._free: SimpleQueue[None] = SimpleQueue()  # of C: an interrupt can't leave it half done
        for _ in range(count):
            self._free.put(None)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """What needs a processor, and neither network nor disk, goes in here."""
        with suppress(Empty):
            self._free.get(timeout=LONGEST_WAIT_S)
        try:
            yield
        finally:
            self._free.put(None)


TURNS = Turns(processors())
"""Those of this process."""


def turn_for(backend: Backend) -> AbstractContextManager[None]:
    """A turn for one of the threads that `backend` is good for, where they outnumber processors."""
    return TURNS.turn() if backend.parallelism > processors() else nullcontext()
