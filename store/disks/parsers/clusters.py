"""What FAT and exFAT share: chains of clusters through the file allocation table, and DOS times."""

import calendar
import struct
from collections.abc import Iterator
from functools import lru_cache

from store.disks.parsers.files import BadFile, Blocks, Run, exactly, joined

ENTRY = 32
_PIECE = 16384
DIRECTORY_MODE, FILE_MODE, READ_ONLY_MODE = 0o040755, 0o100644, 0o100444
# A directory of FAT has at most 65,536 entries, one of exFAT 256 MiB.
MAX_DIRECTORY = 256 << 20


class Table:
    """A file allocation table.

    Args:
        blocks: the volume.
        start, bits: where the table is, in bytes; how wide its entries are.
        heap, size, count: where cluster 2 is, and of how many bytes how many clusters are.
    """

    def __init__(
        self, blocks: Blocks, start: int, bits: int, heap: int, size: int, count: int
    ) -> None:
        self._blocks, self._start, self._bits = blocks, start, bits
        self.heap, self.size, self.count = heap, size, count
        self._end = {12: 0xFF8, 16: 0xFFF8, 32: 0x0FFFFFF8, 33: 0xFFFFFFF8}[bits]
        self._piece = lru_cache(64)(self._read_piece)

    def position(self, cluster: int) -> int:
        """Where a cluster is, in bytes. Raises BadFile when there is no such cluster."""
        if not 2 <= cluster < self.count + 2:
            raise BadFile(f"cluster {cluster} of {self.count}")
        return self.heap + (cluster - 2) * self.size

    def following(self, cluster: int) -> int | None:
        """The cluster behind one in its chain, None at the end. Raises BadFile."""
        value = self._entry(cluster)
        if value >= self._end:
            return None
        self.position(value)
        return value

    def chain(self, first: int, limit: int) -> Iterator[int]:
        """The clusters of a file, at most `limit` of them; a chain in a circle is cut there."""
        cluster: int | None = first
        for _ in range(min(limit, self.count)):
            if cluster is None:
                return
            yield cluster
            cluster = self.following(cluster)

    def runs(self, first: int, size: int, *, contiguous: bool = False) -> list[Run]:
        """Where `size` bytes are that begin in cluster `first`. Raises BadFile, if too short."""
        if not size:
            return []
        many = -(-size // self.size)
        if contiguous:
            self.position(first + many - 1)
            return [Run(self.position(first), size)]
        found = joined((Run(self.position(at), self.size) for at in self.chain(first, many)), size)
        if any(run.start < 0 for run in found):
            raise BadFile(f"a chain of clusters shorter than its {size} bytes")
        return found

    def directory(self, first: int) -> list[Run]:
        """Where a directory is whose size nobody says."""
        limit = MAX_DIRECTORY // self.size
        runs = [Run(self.position(at), self.size) for at in self.chain(first, limit)]
        return joined(runs, len(runs) * self.size)

    def _entry(self, cluster: int) -> int:
        if self._bits == 12:
            raw = exactly(self._blocks, self._start + cluster + cluster // 2, 2)
            value = int.from_bytes(raw, "little")
            return value >> 4 if cluster & 1 else value & 0xFFF
        piece, index = divmod(cluster, _PIECE)
        values = self._piece(piece)
        if index >= len(values):
            raise BadFile(f"cluster {cluster} is past the allocation table")
        return values[index] & 0x0FFFFFFF if self._bits == 32 else values[index]

    def _read_piece(self, piece: int) -> tuple[int, ...]:
        width = 2 if self._bits == 16 else 4
        raw = self._blocks.pread(self._start + piece * _PIECE * width, _PIECE * width)
        return struct.unpack(
            f"<{len(raw) // width}{'H' if width == 2 else 'I'}", raw[: len(raw) // width * width]
        )


def entries(blocks: Blocks, runs: list[Run]) -> Iterator[tuple[int, bytes]]:
    """The entries of 32 bytes of a directory, each with the place where it is."""
    for start, size in runs:
        for at in range(start, start + size, 4096):
            raw = exactly(blocks, at, min(4096, start + size - at))
            for skip in range(0, len(raw) - ENTRY + 1, ENTRY):
                yield at + skip, raw[skip : skip + ENTRY]


def dos_time_ns(date: int, time: int, tenths_ms: int = 0, offset_minutes: int = 0) -> int:
    """Nanoseconds since 1970 of a DOS date and time, taken as UTC; `tenths_ms` of 10 ms."""
    year, month, day = 1980 + (date >> 9), max(1, date >> 5 & 15), max(1, date & 31)
    hour, minute, second = time >> 11, time >> 5 & 63, (time & 31) * 2
    seconds = calendar.timegm((year, min(month, 12), day, hour, minute, second))
    return (seconds - offset_minutes * 60) * 1_000_000_000 + tenths_ms * 10_000_000
