"""What a listing said of the chunks in parts of the digest space, in 16 bytes a chunk."""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from store.names import Digest

FIRST = b""
"""Before all digests."""
LAST = b"\xff" * 32
PREFIX = 16
OVERHEAD = 300


class _Window(NamedTuple):
    """The digests after some start, up to and with `end`; sorted prefixes of those listed."""

    end: bytes
    prefixes: bytes

    def has(self, digest: Digest) -> bool:
        wanted, count = digest[:PREFIX], len(self.prefixes) // PREFIX
        found = bisect_left(range(count), wanted, key=self._prefix)
        return found < count and self._prefix(found) == wanted

    def _prefix(self, number: int) -> bytes:
        return self.prefixes[number * PREFIX : (number + 1) * PREFIX]

    @property
    def bytes(self) -> int:
        return len(self.prefixes) + OVERHEAD


class ChunkWindows:
    """The parts of the digest space that were listed. The oldest are forgotten over the budget.

    Not thread-safe.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._starts: list[bytes] = []  # sorted, each window begins after its own
        self._windows: list[_Window] = []
        self._by_age: deque[bytes] = deque()

    def __len__(self) -> int:
        return len(self._starts)

    def find(self, digest: Digest) -> bool | None:
        """Whether the chunk was listed; None where nobody looked."""
        position = bisect_left(self._starts, digest) - 1
        if position < 0 or digest > self._windows[position].end:
            return None
        return self._windows[position].has(digest)

    def gap_before(self, digest: Digest) -> bytes:
        """Where the gap begins that a digest lies in: the end of the window before it."""
        position = bisect_left(self._starts, digest) - 1
        return self._windows[position].end if position >= 0 else FIRST

    def add(self, start: bytes, end: bytes, listed: Sequence[Digest]) -> None:
        """Note that these, in order, are all chunks after `start` up to and with `end`."""
        position = bisect_right(self._starts, start)
        if position < len(self._starts):
            end = min(end, self._starts[position])  # a page reaches into the next window
        prefixes = b"".join(digest[:PREFIX] for digest in listed if digest <= end)
        self._starts.insert(position, start)
        self._windows.insert(position, _Window(end, prefixes))
        self._by_age.append(start)
        self.used_bytes += self._windows[position].bytes
        while self.used_bytes > self.budget_bytes and len(self._starts) > 1:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        position = bisect_left(self._starts, self._by_age.popleft())
        del self._starts[position]
        self.used_bytes -= self._windows.pop(position).bytes
