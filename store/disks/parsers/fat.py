"""FAT12, FAT16, FAT32, with names as Linux' vfat shows them.

A file's number is where its directory entry is: there is nothing else that it could be.

Source: Microsoft "FAT32 File System Specification" 1.03; linux fs/fat/{dir,inode}.c.
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
from store.disks.parsers.files import BadFile, Blocks, Inode, Run, exactly

ROOT = 1  # the middle of the boot sector: no entry is there
_BPB = struct.Struct("<HBHBHHBHHHII")
_SHORT = struct.Struct("<11sBBBHHHHHHHI")
_VOLUME, _DIRECTORY, _READ_ONLY, _LONG = 0x08, 0x10, 0x01, 0x0F
_LOWER_BASE, _LOWER_EXTENSION = 0x08, 0x10
_MAX_LONG = 20


class Fat:
    """A FileSystem."""

    def __init__(self, blocks: Blocks) -> None:
        """Raises BadFile."""
        self._blocks = blocks
        raw = exactly(blocks, 0, 512)
        (
            sector, per_cluster, reserved, copies, entries, small, _, per_fat, _, _, _, large,
        ) = _BPB.unpack_from(raw, 11)  # fmt: skip
        per_fat = per_fat or struct.unpack_from("<I", raw, 36)[0]
        if sector not in (512, 1024, 2048, 4096) or not per_cluster or not per_fat:
            raise BadFile("a FAT boot sector with impossible sizes")
        root_size = -(-entries * ENTRY // sector) * sector
        self._root_at = (reserved + copies * per_fat) * sector
        heap = self._root_at + root_size
        count = ((small or large) * sector - heap) // (per_cluster * sector)
        if count <= 0:
            raise BadFile("a FAT volume without clusters")
        bits = 12 if count < 4085 else 16 if count < 65525 else 32
        self._root_runs = [Run(self._root_at, entries * ENTRY)] if entries else None
        self._root_cluster = 0 if entries else struct.unpack_from("<I", raw, 44)[0]
        start, size = reserved * sector, per_cluster * sector
        self._table = Table(blocks, start, bits, heap, size, count)
        self._is_32 = bits == 32

    def root(self) -> int:
        return ROOT

    def _entry(self, number: int) -> tuple[bytes, int, int, int, int, int, int]:
        """Name, attributes, case bits, first cluster, date, time, size."""
        raw = exactly(self._blocks, number * ENTRY, ENTRY)
        name, attributes, case, _, _, _, _, high, time, date, low, size = _SHORT.unpack(raw)
        return name, attributes, case, low | high << 16 if self._is_32 else low, date, time, size

    def inode(self, number: int) -> Inode:
        if number == ROOT:
            return Inode(ROOT, DIRECTORY_MODE)
        _, attributes, _, _, date, time, size = self._entry(number)
        mtime_ns = dos_time_ns(date, time)
        if attributes & _DIRECTORY:
            return Inode(number, DIRECTORY_MODE, mtime_ns=mtime_ns)
        mode = READ_ONLY_MODE if attributes & _READ_ONLY else FILE_MODE
        return Inode(number, mode, mtime_ns=mtime_ns, size=size)

    def runs(self, number: int) -> list[Run]:
        _, _, _, cluster, _, _, size = self._entry(number)
        return self._table.runs(cluster, size)

    def read(self, number: int, offset: int, size: int) -> bytes:
        raise BadFile("FAT has runs for everything")

    def names(self, number: int) -> Iterator[tuple[bytes, int]]:
        long = _LongName()
        for place, raw in entries(self._blocks, self._directory(number)):
            first, attributes = raw[0], raw[11]
            if first == 0:
                return
            if first == 0xE5:
                long = _LongName()
            elif attributes & 0x3F == _LONG:
                long.add(raw)
            else:
                if not attributes & _VOLUME and raw[:2] not in (b". ", b".."):
                    name = long.of(raw[:11]) or short_name(raw[:11], raw[12])
                    yield name.encode("utf-8", "surrogatepass"), place // ENTRY
                long = _LongName()

    def _directory(self, number: int) -> list[Run]:
        if number != ROOT:
            _, attributes, _, cluster, _, _, _ = self._entry(number)
            if not attributes & _DIRECTORY:
                raise BadFile(f"entry {number} is no directory")
            return self._table.directory(cluster)
        if self._root_runs is not None:
            return self._root_runs
        return self._table.directory(self._root_cluster)


class _LongName:
    """Collects the pieces of a long name, which stand before its entry, the last one first."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._checksum = self._next = -1

    def add(self, raw: bytes) -> None:
        order = raw[0] & 0x1F
        if raw[0] & 0x40 and 1 <= order <= _MAX_LONG:
            self._pieces, self._checksum, self._next = [], raw[13], order
        if order != self._next or raw[13] != self._checksum:
            self._next = -1
            return
        self._pieces.append(raw[1:11] + raw[14:26] + raw[28:32])
        self._next = order - 1

    def of(self, short: bytes) -> str:
        """The name, "" when it is not whole, or another entry's."""
        if self._next != 0 or self._checksum != _checksum(short):
            return ""
        raw = b"".join(reversed(self._pieces))
        return raw.decode("utf-16-le", "surrogatepass").split("\0")[0]


def _checksum(short: bytes) -> int:
    value = 0
    for byte in short:
        value = (value >> 1 | (value & 1) << 7) + byte & 0xFF
    return value


def short_name(raw: bytes, case: int) -> str:
    """The 8.3 name, in lower case where Windows NT and mtools note that it was."""
    if raw[0] == 0x05:
        raw = b"\xe5" + raw[1:]
    base, extension = raw[:8].decode("cp437").rstrip(), raw[8:].decode("cp437").rstrip()
    if case & _LOWER_BASE:
        base = base.lower()
    if case & _LOWER_EXTENSION:
        extension = extension.lower()
    return f"{base}.{extension}" if extension else base
