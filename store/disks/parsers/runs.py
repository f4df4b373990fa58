"""A file as the pieces of a disk that it lies in."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

from store.disks.parsers.files import HOLE, Run
from store.errors import FormatError
from store.format.buffer import ReadAt


class RunStream:
    """A ReadAt over runs of another; holes read as zeros. As thread-safe as the other."""

    def __init__(self, stream: ReadAt, runs: list[Run], name: str) -> None:
        self._stream, self._runs, self._name = stream, runs, name
        self._ends = [*accumulate(run.size for run in runs)]
        self.size = self._ends[-1] if self._ends else 0

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`. Raises FormatError past the end."""
        parts = [
            bytes(length) if start == HOLE else self._stream.read(start, length)
            for start, length in self._pieces(offset, size)
        ]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def extents(self, offset: int, size: int) -> Iterator[tuple[int, int, bool]]:
        """Cut a range into `(offset, length, is_zero)`: its holes are known to be zeros."""
        for start, length in self._pieces(offset, size):
            yield offset, length, start == HOLE
            offset += length

    def _pieces(self, offset: int, size: int) -> Iterator[Run]:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise FormatError(
                f"{self._name}: {size} bytes at {offset} of a file reach past its end ({self.size})"
            )
        number = bisect_right(self._ends, offset)
        while size:
            run, end = self._runs[number], self._ends[number]
            length = min(size, end - offset)
            skip = run.size - (end - offset)
            yield Run(HOLE if run.start == HOLE else run.start + skip, length)
            offset, size, number = offset + length, size - length, number + 1
