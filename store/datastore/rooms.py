"""Memory for decoded chunks that is used again.

Fresh memory costs a page fault for each 4 KiB, a third of what it takes to unpack a chunk into it.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, mmap

STEP = 1 << 20
"""Rooms have whole MiB, and a page for what a chunk needs beside its content: a header on disk,
some room for the cipher. What is smaller is not worth one."""
MOST_FREE = 32 << 20
"""Bytes. Chunks of trees have many sizes: with fewer there would seldom be one that fits."""
ALONE = 2
"""References to a room that only a variable has: its own, and the one of who counts."""


class Rooms:
    """Rooms that nobody looks into any more, to be handed out again. Thread-safe, without a lock.

    A room is filled and read through memoryviews. It is used again only when none of them is left.
    """

    def __init__(self) -> None:
        self._free: list[mmap] = []

    def __len__(self) -> int:
        return len(self._free)

    def take(self, size: int) -> memoryview | None:
        """`size` bytes to fill; None for so few that ordinary memory will do."""
        if size < STEP:
            return None
        whole = -(-(size - PAGESIZE) // STEP) * STEP + PAGESIZE
        return memoryview(self._take_free(whole) or _new(whole))[:size]

    @contextmanager
    def lent(self, size: int) -> Iterator[memoryview | None]:
        """`take`, until the end of the block; who has a view of it then keeps it."""
        view = self.take(size)
        try:
            yield view
        finally:
            left = [*filter(None, [room_of(view)])]
            if view is not None:
                view.release()
            self.give_back(left)

    def _take_free(self, whole: int) -> mmap | None:
        latest_first = reversed(self._free.copy())  # the processor's caches may still have it
        fitting = (room for room in latest_first if whole <= len(room) <= 2 * whole)
        for room in sorted(fitting, key=len):
            try:
                self._free.remove(room)
            except ValueError:
                continue  # another thread has it
            return room
        return None

    def give_back(self, rooms: list[mmap]) -> None:
        """Empty the list: into the free ones goes what nobody has a view of, up to a few."""
        while rooms:
            room = rooms.pop()
            free = sum(map(len, self._free.copy()))
            if free + len(room) <= MOST_FREE and sys.getrefcount(room) == ALONE:
                self._free.append(room)

    def clear(self) -> None:
        """Let go of the free ones."""
        self._free.clear()


def _new(size: int) -> mmap:
    return mmap(-1, size, MAP_PRIVATE | MAP_ANONYMOUS)


def room_of(data: bytes | memoryview | None) -> mmap | None:
    """The room that a chunk is in; None if it is in none."""
    room = data.obj if isinstance(data, memoryview) else None
    return room if isinstance(room, mmap) else None
