"""Memory for chunks that is used again.

Fresh memory costs a page fault for each 4 KiB, a third of what it takes to unpack a chunk into it.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from mmap import MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, mmap

from store.format.blob import MAX_CHUNK_SIZE

HUGE_PAGE = 2 << 20
LEAST = HUGE_PAGE // 2
"""Bytes. What is smaller is not worth one."""
LARGEST = MAX_CHUNK_SIZE + PAGESIZE
"""A chunk's content, and what it may need beside: a header on disk, or slack for the cipher."""
MOST_FREE = 32 << 20
"""Bytes. Chunks of trees have many sizes: with fewer there would seldom be one that fits."""
ALONE = 2
"""References to a room that only a variable has: its own, and the one of who counts."""


class Room(mmap):
    """Addresses enough for any chunk; `touched` bytes of them have been used, and are memory."""

    touched = 0


class Rooms:
    """Rooms that nobody looks into any more, to be handed out again. Thread-safe, without a lock.

    A room is filled and read through memoryviews. It is used again only when none of them is left.
    """

    def __init__(self, most_free: int = MOST_FREE) -> None:
        """`most_free`: bytes of memory that free ones have together."""
        self._most_free = most_free
        self._free: list[Room] = []

    def __len__(self) -> int:
        return len(self._free)

    def take(self, size: int, slack: int = 0) -> memoryview | None:
        """`size` bytes to fill, and `slack` behind them to be left alone.

        None for so few that ordinary memory will do, and where it has to.
        """
        if size < LEAST:
            return None
        whole = -(-size // HUGE_PAGE) * HUGE_PAGE
        room = self._take_free(whole) or _new()
        if room is None:
            return None
        room.touched = max(room.touched, whole)
        return memoryview(room)[: size + slack]

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

    def _take_free(self, whole: int) -> Room | None:
        """One that has so much memory and not too much more, or the one that lacks least.

        Of equals the latest: the processor's caches may still have it.
        """
        free = self._free[::-1]
        enough = (room for room in free if whole <= room.touched <= 2 * whole)
        less = (room for room in free if room.touched < whole)
        by_size = sorted(enough, key=_touched) + sorted(less, key=_touched, reverse=True)
        for room in by_size:
            try:
                self._free.remove(room)
            except ValueError:
                continue  # another thread has it
            return room
        return None

    def give_back(self, rooms: list[Room]) -> None:
        """Empty the list: into the free ones goes what nobody has a view of, up to a few.

        Those that were free for longest make room.
        """
        while rooms:
            room = rooms.pop()
            if room.touched <= self._most_free and sys.getrefcount(room) == ALONE:
                self._let_go(room.touched)
                self._free.append(room)

    def _let_go(self, size: int) -> None:
        with suppress(IndexError):  # other threads take them as well
            while sum(map(_touched, self._free.copy())) + size > self._most_free:
                del self._free[0]

    def clear(self) -> None:
        """Let go of the free ones."""
        self._free.clear()


def _new() -> Room | None:
    """None where addresses are scarce: a limit, or a kernel that promises no more than it has."""
    try:
        room = Room(-1, LARGEST, MAP_PRIVATE | MAP_ANONYMOUS)
    except OSError:
        return None
    with suppress(OSError):  # a kernel without them
        room.madvise(MADV_HUGEPAGE)
    return room


def _touched(room: Room) -> int:
    return room.touched


def room_of(data: bytes | memoryview | None) -> Room | None:
    """The room that a chunk is in; None if it is in none."""
    room = data.obj if isinstance(data, memoryview) else None
    return room if isinstance(room, Room) else None
