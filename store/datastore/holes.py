"""Where a stream has data and where holes: by its index alone, no chunk is read.

A hole is what the index says is zero: a chunk with the digest of zeros of its length.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate, pairwise

from store.format.index import Index


class Holes:
    """The data and the holes of a stream by turns, as a table of where each begins.

    Args:
        zeros: positions of the index's zero chunks, as runs (first, exclusive last), rising.
        index: of the stream.
    """

    __slots__ = ("_before", "_starts", "size")

    def __init__(self, zeros: Iterable[tuple[int, int]], index: Index) -> None:
        self.size = index.size
        # Even places: data begins (the first may be empty); odd ones: a hole does.
        self._starts = array("Q", (0,))
        for first, last in zeros:
            start, end = index.range(first)[0], index.range(last - 1)[1]
            if len(self._starts) > 1 and self._starts[-1] == start:
                self._starts.pop()
            else:
                self._starts.append(start)
            self._starts.append(end)
        # How much data lies before each place.
        lengths = (end - start for start, end in pairwise(self._starts))
        data = (0 if number % 2 else length for number, length in enumerate(lengths))
        self._before = array("Q", accumulate(data, initial=0))

    @property
    def data_size(self) -> int:
        """Bytes that are not in holes."""
        return self._data_before(self.size)

    def data_in(self, start: int, size: int) -> int:
        """Bytes of a range that are not in holes."""
        return self._data_before(start + size) - self._data_before(start)

    def _data_before(self, offset: int) -> int:
        run = bisect_right(self._starts, offset) - 1
        return self._before[run] + (0 if run % 2 else offset - self._starts[run])

    def data_from(self, offset: int) -> int | None:
        """The first byte of data at `offset` or after it; None when there is none."""
        run = bisect_right(self._starts, offset) - 1
        found = offset if run % 2 == 0 else self._starts[run + 1]
        return found if found < self.size else None

    def hole_from(self, offset: int) -> int:
        """The first byte of a hole at `offset` or after it; the end of the stream is one."""
        run = bisect_right(self._starts, offset) - 1
        if run % 2 == 1:
            return offset
        return self._starts[run + 1] if run + 1 < len(self._starts) else self.size
