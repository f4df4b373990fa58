"""Partition tables: GPT, and MBR with its logical partitions. Numbers as Linux counts them.

    MBR: 446 bytes of code, four entries (status, CHS, type, CHS, first sector, sectors), 55AA
    GPT: "EFI PART" in sector 1; entries of 128 bytes or more (type, id, first, last sector, flags,
         name), each table with a CRC and a copy at the end of the disk

Source: UEFI 2.10 chapter 5; linux block/partitions/{efi,msdos}.c.
"""

import struct
import zlib
from typing import NamedTuple

from store.disks.parsers.files import BadFile, Blocks, exactly

SECTOR = 512
MAX_PARTITIONS = 256
MAX_LOGICAL = 128
EXTENDED = (0x05, 0x0F, 0x85)
PROTECTIVE = 0xEE
_ENTRY = struct.Struct("<B3xB3xII")
_GPT = struct.Struct("<8sIIIIQQQQ16sQIII")
_GPT_ENTRY = struct.Struct("<16s16sQQQ72s")
_BOOT_JUMP = (0xEB, 0xE9)


class Partition(NamedTuple):
    """One entry of a table; `start` and `size` in bytes."""

    number: int
    start: int
    size: int


def partitions(blocks: Blocks) -> list[Partition]:
    """What the table says, by number; empty when there is no table.

    A partition that reaches past the end of the disk is cut there; one that begins there is left
    out. Raises BadFile when a table is there and is broken beyond its copy.
    """
    boot = blocks.pread(0, SECTOR)
    if len(boot) < SECTOR or boot[510:] != b"\x55\xaa":
        return []
    entries = [_ENTRY.unpack_from(boot, 446 + 16 * index) for index in range(4)]
    if any(kind == PROTECTIVE for _, kind, _, _ in entries):
        found = _gpt(blocks)
        if found is not None:
            return _within(found, blocks.size)
    if _is_file_system(boot) or any(status & 0x7F for status, *_ in entries):
        return []
    return _within([*_mbr(blocks, entries)], blocks.size)


def _within(found: list[Partition], end: int) -> list[Partition]:
    return [
        Partition(number, start, min(size, end - start))
        for number, start, size in sorted(found)
        if size > 0 and 0 < start < end
    ]


def _is_file_system(boot: bytes) -> bool:
    """FAT, exFAT and NTFS boot sectors have the same end as an MBR, and text for entries."""
    return boot[0] in _BOOT_JUMP and (
        boot[3:11] in (b"NTFS    ", b"EXFAT   ")
        or boot[54:59] in (b"FAT12", b"FAT16")
        or boot[82:87] == b"FAT32"
    )


def _mbr(blocks: Blocks, entries: list[tuple[int, int, int, int]]) -> list[Partition]:
    found: list[Partition] = []
    for index, (_, kind, first, sectors) in enumerate(entries, 1):
        if kind in EXTENDED and sectors:
            found += _logical(blocks, first)
        elif kind not in (0, PROTECTIVE):
            found.append(Partition(index, first * SECTOR, sectors * SECTOR))
    return found


def _logical(blocks: Blocks, base: int) -> list[Partition]:
    """The chain of tables in an extended partition: each has one partition and the next table."""
    found: list[Partition] = []
    table, seen = base, set[int]()
    while table not in seen and len(seen) < MAX_LOGICAL:
        seen.add(table)
        sector = blocks.pread(table * SECTOR, SECTOR)
        if len(sector) < SECTOR or sector[510:] != b"\x55\xaa":
            break
        following = None
        for index in range(4):
            _, kind, first, sectors = _ENTRY.unpack_from(sector, 446 + 16 * index)
            if kind in EXTENDED and sectors:
                following = base + first if following is None else following
            elif kind and sectors:
                start = (table + first) * SECTOR
                found.append(Partition(5 + len(found), start, sectors * SECTOR))
        if following is None:
            break
        table = following
    return found


def _gpt(blocks: Blocks) -> list[Partition] | None:
    """None when neither the table nor its copy is one."""
    for sector in (SECTOR, 4096):
        for place in (sector, max(1, blocks.size // sector - 1) * sector):
            found = _gpt_at(blocks, place, sector)
            if found is not None:
                return found
    return None


def _gpt_at(blocks: Blocks, place: int, sector: int) -> list[Partition] | None:
    raw = blocks.pread(place, SECTOR)
    if len(raw) < SECTOR or raw[:8] != b"EFI PART":
        return None
    _, _, size, crc, _, own, _, _, _, _, first, count, entry_size, table_crc = _GPT.unpack_from(raw)
    if not _GPT.size <= size <= SECTOR or own * sector != place:
        return None
    if zlib.crc32(raw[:16] + bytes(4) + raw[20:size]) != crc:
        return None
    if not _GPT_ENTRY.size <= entry_size <= 4096 or entry_size % 8 or count > 4096:
        return None
    try:
        table = exactly(blocks, first * sector, count * entry_size)
    except BadFile:
        return None
    if zlib.crc32(table) != table_crc:
        return None
    found: list[Partition] = []
    for index in range(count):
        kind, _, start, last, _, _ = _GPT_ENTRY.unpack_from(table, index * entry_size)
        if any(kind) and start <= last and len(found) < MAX_PARTITIONS:
            found.append(Partition(index + 1, start * sector, (last - start + 1) * sector))
    return found
