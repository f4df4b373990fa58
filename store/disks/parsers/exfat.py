"""exFAT. A file's number is where its directory entry is.

Source: Microsoft "exFAT file system specification" (2019); linux fs/exfat.
"""

import struct
from collections.abc import Iterator

from store.disks.parsers.clusters import (
    DIRECTORY_MODE,
    ENTRY,
    FILE_MODE,
    READ_ONLY_MODE,
    Table,
    dos_time_ns,
    entries,
)
from store.disks.parsers.files import HOLE, BadFile, Blocks, Inode, Run, exactly, joined

ROOT = 1
_FILE, _STREAM, _NAME = 0x85, 0xC0, 0xC1
_BOOT = struct.Struct("<IIIII")
_PRIMARY = struct.Struct("<BBHH2xIIIBBBBB7x")
_EXTENSION = struct.Struct("<BBBBHHQ4xIQ")
_READ_ONLY, _DIRECTORY = 0x01, 0x10
_CONTIGUOUS = 2


class ExFat:
    """A FileSystem."""

    def __init__(self, blocks: Blocks) -> None:
        """Raises BadFile."""
        self._blocks = blocks
        raw = exactly(blocks, 0, 512)
        table, _, heap, count, self._root = _BOOT.unpack_from(raw, 80)
        sector, cluster = raw[108], raw[109]
        if not 9 <= sector <= 12 or cluster > 25 - sector or not count:
            raise BadFile("an exFAT boot sector with impossible sizes")
        self._table = Table(
            blocks, table << sector, 33, heap << sector, 1 << sector + cluster, count
        )

    def root(self) -> int:
        return ROOT

    def _pair(self, number: int) -> tuple[bytes, bytes]:
        """A file's first two entries; the second may be in the next cluster of its directory."""
        place, table = number * ENTRY, self._table
        primary = exactly(self._blocks, place, ENTRY)
        behind = place + ENTRY
        if (behind - table.heap) % table.size == 0:
            cluster = (place - table.heap) // table.size + 2
            behind = table.position(self._behind(cluster))
        stream = exactly(self._blocks, behind, ENTRY)
        if primary[0] != _FILE or stream[0] != _STREAM:
            raise BadFile(f"no file at {place}")
        return primary, stream

    def _behind(self, cluster: int) -> int:
        """In a directory that lies in one piece the table says nothing of use."""
        try:
            return self._table.following(cluster) or cluster + 1
        except BadFile:
            return cluster + 1

    def inode(self, number: int) -> Inode:
        if number == ROOT:
            return Inode(ROOT, DIRECTORY_MODE)
        primary, stream = self._pair(number)
        _, _, _, attributes, _, stamp, _, _, tenths, _, zone, _ = _PRIMARY.unpack(primary)
        minutes = 0
        if zone & 0x80:
            minutes = ((zone & 0x7F) ^ 0x40) * 15 - 0x40 * 15
        mtime_ns = dos_time_ns(stamp >> 16, stamp & 0xFFFF, tenths, minutes)
        if attributes & _DIRECTORY:
            return Inode(number, DIRECTORY_MODE, mtime_ns=mtime_ns)
        mode = READ_ONLY_MODE if attributes & _READ_ONLY else FILE_MODE
        size = _EXTENSION.unpack(stream)[8]
        return Inode(number, mode, mtime_ns=mtime_ns, size=size)

    def runs(self, number: int) -> list[Run]:
        _, flags, _, _, _, _, valid, cluster, size = _EXTENSION.unpack(self._pair(number)[1])
        valid = min(valid, size)
        runs = self._table.runs(cluster, valid, contiguous=bool(flags & _CONTIGUOUS))
        return joined([*runs, Run(HOLE, size - valid)], size)

    def read(self, number: int, offset: int, size: int) -> bytes:
        raise BadFile("exFAT has runs for everything")

    def names(self, number: int) -> Iterator[tuple[bytes, int]]:
        place, left, length, pieces = 0, 0, 0, b""
        for at, raw in entries(self._blocks, self._directory(number)):
            kind = raw[0]
            if kind == 0:
                return
            if kind == _FILE:
                place, left, length, pieces = at, raw[1], 0, b""
            elif left and kind == _STREAM:
                length, left = raw[3], left - 1
            elif left and kind == _NAME:
                pieces, left = pieces + raw[2:32], left - 1
                if len(pieces) >= 2 * length > 0:
                    name = pieces[: 2 * length].decode("utf-16-le", "surrogatepass")
                    yield name.encode("utf-8", "surrogatepass"), place // ENTRY
                    length = left = 0
            else:
                left = 0

    def _directory(self, number: int) -> list[Run]:
        if number == ROOT:
            return self._table.directory(self._root)
        primary, stream = self._pair(number)
        _, flags, _, _, _, _, _, cluster, size = _EXTENSION.unpack(stream)
        if not primary[4] & _DIRECTORY:
            raise BadFile(f"entry {number} is no directory")
        return self._table.runs(cluster, size, contiguous=bool(flags & _CONTIGUOUS))
