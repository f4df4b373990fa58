import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.disks.microvm.extents import LAST, MOST, UNWRITTEN, all_extents, runs_of
from store.disks.microvm.protocol import Extent, decode_extents
from store.disks.parsers.files import HOLE, Run
from store.disks.parsers.runs import RunStream
from store.errors import FormatError
from store.format.buffer import BytesReadAt

INLINE = 0x200
BLOCK = 16
DISK = bytes(number * 7 % 251 for number in range(64 * BLOCK))


def test_holes_and_what_was_never_written_are_zeros() -> None:
    extents = [Extent(0, 160, 32, 0), Extent(48, 320, 16, UNWRITTEN), Extent(96, 0, 64, LAST)]
    assert runs_of(extents, 130, len(DISK)) == [
        Run(160, 32), Run(HOLE, 16), Run(HOLE, 16), Run(HOLE, 32), Run(0, 34),
    ]  # fmt: skip
    assert runs_of([], 50, 100) == [Run(HOLE, 50)]
    assert runs_of([], 0, 100) == []


def test_what_is_packed_is_left_to_the_guest() -> None:
    assert runs_of([Extent(0, 16, 16, INLINE | LAST)], 10, 100) is None
    assert runs_of([Extent(0, 16, 16, 1 << 20)], 10, 100) is None


def test_places_beyond_the_disk_are_refused() -> None:
    with pytest.raises(FormatError, match="past 100"):
        runs_of([Extent(0, 96, 16, LAST)], 16, 100)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(0, 60), st.booleans())),
    st.integers(0, 40 * BLOCK),
)
def test_a_file_is_what_its_extents_say(
    pieces: list[tuple[int, int, int, bool]], size: int
) -> None:
    content, extents = bytearray(), []
    for gap, count, place, written in pieces:
        content += bytes(gap * BLOCK)
        start, length = place * BLOCK, count * BLOCK
        extents.append(Extent(len(content), start, length, 0 if written else UNWRITTEN))
        content += DISK[start : start + length] if written else bytes(length)
    if any(extent.physical + extent.size > len(DISK) for extent in extents):
        return
    runs = runs_of(extents, size, len(DISK))
    assert runs is not None
    stream = RunStream(BytesReadAt(DISK), runs, "test")
    assert stream.read(0, size) == bytes(content[:size]).ljust(size, b"\0")


@given(st.binary(max_size=200))
def test_noise_is_a_format_error_or_in_order(noise: bytes) -> None:
    with contextlib.suppress(FormatError):
        found = decode_extents(noise)
        assert found == sorted(found)
        runs_of(found, 1000, 1000)


def test_extents_come_in_order_and_are_not_empty() -> None:
    good, again = struct.pack("<QQQI", 0, 0, 16, 0), struct.pack("<QQQI", 8, 0, 16, 0)
    assert decode_extents(good) == [Extent(0, 0, 16, 0)]
    for raw in (good + again, struct.pack("<QQQI", 0, 0, 0, 0), good[:-1]):
        with pytest.raises(FormatError):
            decode_extents(raw)


def test_many_are_asked_for_piece_by_piece_and_too_many_not_kept() -> None:
    asked = []

    def ask(offset: int) -> list[Extent]:
        asked.append(offset)
        return [Extent(offset, 0, 16, LAST if offset == 32 else 0)]

    assert len(all_extents(ask) or []) == 3
    assert asked == [0, 16, 32]
    assert all_extents(lambda offset: [Extent(offset, 0, 16, 0)] * (MOST // 2)) is None
    assert all_extents(lambda _: []) == []
