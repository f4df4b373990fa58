"""Goodbye tables: the index at a directory's end, a search tree of name hashes in an array.

    GOODBYE content := record* tail
    record (24):  hash of the name u64 | offset u64 | size u64

With G the offset of the GOODBYE item: a child's offset is G minus that of its FILENAME, its size
reaches from there to its end. The tail has the marker in place of the hash, G minus the offset of
the directory's ENTRY (of the stream's start for the root), and the full size of the item.

Source: pxar src/binary_tree_array.rs, src/encoder/mod.rs (spec 9.7).
"""

import sys
from array import array
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import TypeVar

from store.errors import FormatError
from store.format.buffer import ReadAt
from store.format.pxar.items import (
    HEADER,
    HEADER_SIZE,
    MAX_STREAM_SIZE,
    PXAR_GOODBYE,
    PXAR_GOODBYE_TAIL_MARKER,
)

RECORD = Struct("<QQQ")
RECORD_SIZE = 24
EMPTY_GOODBYE_SIZE = HEADER_SIZE + RECORD_SIZE
FRONT_SIZE = 64 * 1024
MAX_COLLISIONS = 64
# Records of a table that are looked at in one go when all are.
SEARCHED = 4096

T = TypeVar("T")


def tree_order(ordered: Sequence[T]) -> list[T]:
    """Permute sorted values into the array of a complete search tree (children of i: 2i+1, 2i+2).

    In a perfect tree the ranks of a level are an arithmetic progression. Each leaf missing at the
    end of the last level shifts what comes after it, so a level is two progressions: two slices.
    """
    count = len(ordered)
    levels = (count + 1).bit_length() - 1
    leaves = count - ((1 << levels) - 1)
    out: list[T] = []
    for level in range(levels):
        step = 1 << (levels - level)
        ranks = range(step - 1, 1 << (levels + 1), 2 * step)
        whole = min(1 << level, (2 * leaves + step) // (2 * step))
        out += ordered[step - 1 : 2 * leaves : 2 * step]
        if whole < 1 << level:
            out += ordered[(ranks[whole] - 1) // 2 + leaves :: step]
    return out + list(ordered[0 : 2 * leaves : 2])


class GoodbyeBuilder:
    """Collects one open directory's children: 24 bytes each, held until it is left."""

    __slots__ = ("hashes", "sizes", "starts")

    def __init__(self) -> None:
        self.hashes = array("Q")
        self.starts = array("Q")
        self.sizes = array("Q")

    def encode(self, start: int, directory_offset: int) -> bytes:
        """The GOODBYE item.

        Args:
            start: its offset in the archive.
            directory_offset: of the directory's ENTRY item; 0 for the root.
        """
        order = tree_order(sorted(range(len(self.hashes)), key=self.hashes.__getitem__))
        table = array("Q", bytes(RECORD_SIZE * len(order)))
        table[0::3] = array("Q", map(self.hashes.__getitem__, order))
        table[1::3] = array("Q", map(start.__sub__, map(self.starts.__getitem__, order)))
        table[2::3] = array("Q", map(self.sizes.__getitem__, order))
        if sys.byteorder == "big":
            table.byteswap()
        size = EMPTY_GOODBYE_SIZE + RECORD_SIZE * len(order)
        tail = RECORD.pack(PXAR_GOODBYE_TAIL_MARKER, start - directory_offset, size)
        return b"".join((HEADER.pack(PXAR_GOODBYE, size), table.tobytes(), tail))


def check_goodbye_size(offset: int, size: int) -> None:
    """Raise FormatError unless a GOODBYE item may have this full size."""
    fits = EMPTY_GOODBYE_SIZE <= size <= MAX_STREAM_SIZE
    if not fits or (size - HEADER_SIZE) % RECORD_SIZE:
        raise FormatError(f"pxar archive: found a goodbye table of {size} bytes at {offset}")


class GoodbyeTable:
    """One directory's table, searched where it is: what is kept in memory are its first records.

    Attributes:
        start: offset of the GOODBYE item, which is where the directory's children end.
        count: number of children.
    """

    def __init__(self, stream: ReadAt, first: int, end: int, stat_offset: int) -> None:
        """Open the table of the directory whose children start at `first` and which ends at `end`.

        Args:
            stream: archive or metadata stream.
            first: offset of the first child, or of the table when there is none.
            end: offset after the table.
            stat_offset: where its tail must point to: the directory's ENTRY item; 0 for the root.

        Raises:
            FormatError: there is no goodbye table that ends there, or it is not this directory's.
        """
        if end - first < EMPTY_GOODBYE_SIZE:
            raise FormatError(f"pxar archive: no room for a goodbye table from {first} to {end}")
        marker, offset, size = RECORD.unpack(stream.read(end - RECORD_SIZE, RECORD_SIZE))
        if marker != PXAR_GOODBYE_TAIL_MARKER or size > end - first:
            raise FormatError(f"pxar archive: no goodbye table ends at {end}")
        check_goodbye_size(end - size, size)
        if end - size - offset != stat_offset:
            raise FormatError(
                f"pxar archive: the goodbye table that ends at {end} is another directory's"
            )
        self.start: int = end - size
        self.count: int = (size - EMPTY_GOODBYE_SIZE) // RECORD_SIZE
        self._first = first
        self._stream = stream
        self._front = stream.read(self.start, min(size, FRONT_SIZE))
        if HEADER.unpack_from(self._front) != (PXAR_GOODBYE, size):
            raise FormatError(f"pxar archive: no goodbye table of {size} bytes at {self.start}")

    def find(self, name_hash: int) -> Iterator[tuple[int, int]]:
        """The children with this hash: offset of the FILENAME item, and size as stored.

        Raises:
            FormatError: an offset outside the directory, or more equal hashes than chance explains.
        """
        todo, found = [0], 0
        while todo:
            slot = todo.pop()
            while slot < self.count:
                value, offset, size = self._record(slot)
                if value == name_hash:
                    yield self._checked(offset), size
                    found += 1
                    todo.append(2 * slot + 2)
                slot = 2 * slot + (1 if name_hash <= value else 2)
            if found > MAX_COLLISIONS:
                raise FormatError(
                    f"pxar archive: {found} equal hashes in the goodbye table at {self.start}"
                )

    def covering(self, offset: int) -> tuple[int, int] | None:
        """The child in whose items `offset` lies, offset and size as stored: a search of all."""
        best: tuple[int, int] | None = None
        for slot in range(0, self.count, SEARCHED):
            size = RECORD_SIZE * min(SEARCHED, self.count - slot)
            position = self.start + HEADER_SIZE + RECORD_SIZE * slot
            for _, distance, stored in RECORD.iter_unpack(self._stream.read(position, size)):
                start = self.start - distance
                if start <= offset and (best is None or start > best[0]):
                    best = start, stored
        return None if best is None else (self._checked(self.start - best[0]), best[1])

    def _record(self, slot: int) -> tuple[int, int, int]:
        position = HEADER_SIZE + RECORD_SIZE * slot
        if position + RECORD_SIZE <= len(self._front):
            return RECORD.unpack_from(self._front, position)
        record = self._stream.read(self.start + position, RECORD_SIZE)
        return RECORD.unpack(record)

    def _checked(self, distance: int) -> int:
        """The offset that lies `distance` before the table, if the children's range has it."""
        offset = self.start - distance
        if not self._first <= offset < self.start:
            raise FormatError(
                f"pxar archive: the goodbye table at {self.start} points {distance} bytes back"
            )
        return offset
