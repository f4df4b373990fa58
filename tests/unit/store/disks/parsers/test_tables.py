import struct
import zlib

from hypothesis import given
from hypothesis import strategies as st

from store.disks.parsers.blocks import CachedBlocks, Slice
from store.disks.parsers.tables import SECTOR, Partition, partitions

SIZE = 100 << 20
MIB = 1 << 20


def disk(*pieces: tuple[int, bytes]) -> CachedBlocks:
    data = bytearray(SIZE)
    for place, piece in pieces:
        data[place : place + len(piece)] = piece
    return CachedBlocks(SIZE, lambda offset, size: bytes(data[offset : offset + size]))


def mbr(*entries: tuple[int, int, int]) -> bytes:
    """(type, first sector, sectors)"""
    table = b"".join(struct.pack("<B3xB3xII", 0, *entry) for entry in entries)
    return bytes(446) + table.ljust(64, b"\0") + b"\x55\xaa"


def gpt(place: int, first: int, *entries: tuple[int, int]) -> list[tuple[int, bytes]]:
    """Header and table of (first, last sector); numbers are positions, (0, 0) is empty."""
    table = b"".join(
        struct.pack("<16s16sQQQ72s", b"t" * 16 if last else bytes(16), b"", start, last, 0, b"")
        for start, last in entries
    ).ljust(128 * 128, b"\0")
    form = "<8sIIIIQQQQ16sQIII"
    fields = [b"EFI PART", 0x10000, 92, 0, 0, place // SECTOR, 0, 34, 1000, b"", first, 128, 128]
    header = struct.pack(form, *fields, zlib.crc32(table))
    fields[3] = zlib.crc32(header)
    return [(place, struct.pack(form, *fields, zlib.crc32(table))), (first * SECTOR, table)]


PROTECTIVE = (0, mbr((0xEE, 1, SIZE // SECTOR - 1)))


def test_no_table() -> None:
    assert partitions(disk()) == []
    ntfs = b"\xeb\x52\x90NTFS    ".ljust(510, b"\7") + b"\x55\xaa"
    assert partitions(disk((0, ntfs))) == []


def test_primary_and_logical() -> None:
    found = partitions(
        disk(
            (0, mbr((0x83, 2048, 2048), (0, 0, 0), (0x05, 8192, 100_000))),
            (8192 * SECTOR, mbr((0x83, 63, 1000), (0x05, 20_000, 500))),
            (28_192 * SECTOR, mbr((0x07, 63, 400))),
        )
    )
    assert found == [
        Partition(1, MIB, MIB),
        Partition(5, (8192 + 63) * SECTOR, 1000 * SECTOR),
        Partition(6, (28_192 + 63) * SECTOR, 400 * SECTOR),
    ]


def test_a_chain_in_a_circle_and_partitions_past_the_end() -> None:
    circle = mbr((0x83, 63, 1000), (0x05, 0, 500))
    found = partitions(disk((0, mbr((0x05, 8192, 9), (0x83, 1 << 30, 5))), (8192 * SECTOR, circle)))
    assert [part.number for part in found] == [5]
    cut = partitions(disk((0, mbr((0x83, 2048, 0xFFFFFFFF)))))
    assert cut == [Partition(1, MIB, SIZE - MIB)]


def test_gpt_and_its_copy() -> None:
    entries = ((2048, 4095), (0, 0), (4096, 8191))
    expected = [Partition(1, MIB, MIB), Partition(3, 2 * MIB, 2 * MIB)]
    assert partitions(disk(PROTECTIVE, *gpt(SECTOR, 2, *entries))) == expected
    copy = gpt(SIZE - SECTOR, 200_000, *entries)
    assert partitions(disk(PROTECTIVE, *copy)) == expected
    broken = gpt(SECTOR, 2, (2048, 9999))
    broken[1] = (2 * SECTOR, b"x" * 100)
    assert partitions(disk(PROTECTIVE, *broken, *copy)) == expected


@given(st.binary(min_size=66, max_size=66), st.binary(max_size=2000))
def test_noise_lies_within_the_disk(table: bytes, more: bytes) -> None:
    noise = bytes(446) + table[:64] + b"\x55\xaa" + more
    for part in partitions(CachedBlocks(len(noise), lambda at, size: noise[at : at + size])):
        assert 0 < part.start < part.start + part.size <= len(noise)


@given(
    st.lists(st.tuples(st.integers(0, 900), st.integers(1, 100)), max_size=5),
    st.integers(0, 600),
    st.integers(0, 600),
)
def test_a_slice_is_its_segments(segments: list[tuple[int, int]], offset: int, size: int) -> None:
    data = bytes(number % 251 for number in range(1000))
    whole = b"".join(data[start : start + length] for start, length in segments)
    view = Slice(CachedBlocks(1000, lambda at, many: data[at : at + many]), segments)
    assert view.size == len(whole)
    assert view.pread(offset, size) == whole[offset : offset + size]
