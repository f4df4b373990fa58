"""Dynamic indexes: PBS's vectors (spec sections 3 and 4.2), golden files, laws, hostile bytes."""

import hashlib
import itertools
import mmap
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.errors import FormatError
from store.format import dynamic_index
from store.format.dynamic_index import (
    DYNAMIC_SIZED_CHUNK_INDEX_1_0,
    DynamicIndex,
    DynamicIndexBuilder,
)
from store.names import Digest
from tests.unit.store.format.stored_snapshot import StoredSnapshot

if TYPE_CHECKING:
    from store.format.index import Index

UUID = bytes(range(16))
CTIME = 1735689600


def digest(number: int) -> Digest:
    return Digest(hashlib.sha256(b"chunk%d" % number).digest())


def build(ends: list[int]) -> bytes:
    builder = DynamicIndexBuilder()
    body = b"".join(builder.add(end, digest(i)) for i, end in enumerate(ends, 1))
    return builder.header(UUID, CTIME) + body


def raw_with(ends: list[int]) -> bytes:
    body = b"".join(struct.pack("<Q", end) + digest(1) for end in ends)
    return build([1])[:4096] + body


sizes = st.lists(st.integers(1, 2**40), min_size=1, max_size=20)


def test_magic() -> None:
    sentence = b"Proxmox Backup dynamic sized chunk index v1.0"
    assert hashlib.sha256(sentence).digest()[:8] == DYNAMIC_SIZED_CHUNK_INDEX_1_0


def test_csum_vector() -> None:
    raw = build([6, 12])
    csum = "20371b7fa56c94bbabe7978f26ad27e03c3ee2007b9870f43eb4b547a3d14e88"
    assert DynamicIndex(raw).csum().hex() == csum
    assert raw[32:64].hex() == csum


def test_layout() -> None:
    raw = build([6, 12])
    assert raw[:32] == DYNAMIC_SIZED_CHUNK_INDEX_1_0 + UUID + struct.pack("<q", CTIME)
    assert raw[64:4096] == bytes(4032)
    assert raw[4096:] == struct.pack("<Q32sQ32s", 6, digest(1), 12, digest(2))


@given(sizes)
def test_round_trip(lengths: list[int]) -> None:
    ends = list(itertools.accumulate(lengths))
    index = DynamicIndex(build(ends))
    assert index.size == ends[-1]
    assert len(index) == len(ends)
    assert list(index.digests()) == [index.digest(i) for i in range(len(index))]
    start = 0
    for position, end in enumerate(ends):
        assert index.range(position) == (start, end)
        assert index.digest(position) == digest(position + 1)
        assert index.position(start) == index.position(end - 1) == position
        start = end


def test_outside() -> None:
    index = DynamicIndex(build([6, 12]))
    for outside in (-1, 2):
        with pytest.raises(IndexError):
            index.digest(outside)
        with pytest.raises(IndexError):
            index.range(outside)
    for outside in (-1, 12):
        with pytest.raises(IndexError):
            index.position(outside)


def test_works_on_an_mmap(tmp_path: Path) -> None:
    path = tmp_path / "x.didx"
    path.write_bytes(build([6, 12]))
    with path.open("rb") as file:
        index: Index = DynamicIndex(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    assert list(index.digests()) == [digest(1), digest(2)]
    assert (index.uuid, index.ctime, index.header_csum) == (UUID, CTIME, index.csum())


def test_a_copy_needs_the_file_no_more() -> None:
    raw = bytearray(build([5, 9]))
    index = DynamicIndex(raw)
    twin = index.copy()
    raw[4096:] = bytes(80)
    assert (len(twin), twin.size, twin.range(1)) == (2, 9, (5, 9))
    assert [*twin.digests()] == [twin.digest(0), twin.digest(1)] == [digest(1), digest(2)]
    assert twin.csum() == index.header_csum == twin.header_csum


def test_big_endian_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the ends are swapped once, in a copy: here that makes them wrong in just that way."""
    monkeypatch.setattr(dynamic_index.sys, "byteorder", "big")
    index = DynamicIndex(raw_with([0x0600000000000000]))
    assert index.size == 6


@pytest.mark.parametrize(
    ("ends", "entry"),
    [([0], 0), ([0, 5], 0), ([5, 5], 1), ([5, 4], 1), ([5, 9, 8, 20], 2), ([7, 6, 5], 1)],
)
def test_ends_must_increase(ends: list[int], entry: int) -> None:
    with pytest.raises(FormatError, match=f"entry {entry} "):
        DynamicIndex(raw_with(ends))


def test_ends_beyond_any_file() -> None:
    with pytest.raises(FormatError, match="more than"):
        DynamicIndex(raw_with([5, 2**63]))


@given(data=st.data())
def test_cut_and_changed_files(data: st.DataObject) -> None:
    raw = bytearray(build([6, 12, 20]))
    if data.draw(st.booleans()):
        length = data.draw(st.integers(0, len(raw) - 1))
        cut_between = length > 4096 and (length - 4096) % 40 == 0
        del raw[length:]
        if not cut_between:
            with pytest.raises(FormatError):
                DynamicIndex(raw)
            return
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        index = DynamicIndex(raw)
    except FormatError:
        return
    assert index.range(len(index) - 1)[1] == index.size


def test_no_entries() -> None:
    with pytest.raises(FormatError):
        DynamicIndex(build([1])[:4096])
    with pytest.raises(FormatError, match="no entries"):
        DynamicIndexBuilder().header(UUID, CTIME)
    assert DynamicIndexBuilder().csum == hashlib.sha256(b"").digest()


def test_the_builder_refuses_an_empty_chunk() -> None:
    builder = DynamicIndexBuilder()
    builder.add(5, digest(1))
    for end in (5, 4, 0):
        with pytest.raises(FormatError, match="not behind"):
            builder.add(end, digest(2))
    assert builder.size == 5


def test_uuid_size() -> None:
    builder = DynamicIndexBuilder()
    builder.add(5, digest(1))
    with pytest.raises(ValueError, match="16 bytes"):
        builder.header(b"", CTIME)


def test_golden_indexes(golden_snapshots: tuple[StoredSnapshot, ...]) -> None:
    """Sums and sizes are the manifest's, and we write the same files again."""
    count = 0
    for snapshot in golden_snapshots:
        for path in snapshot.path.glob("*.didx"):
            raw = path.read_bytes()
            index, info = DynamicIndex(raw), snapshot.manifest.file(path.name)
            assert index.csum() == index.header_csum == info.csum
            assert index.size == info.size == sum(map(len, snapshot.stream(path.name)))
            builder = DynamicIndexBuilder()
            body = b"".join(
                builder.add(index.range(position)[1], name)
                for position, name in enumerate(index.digests())
            )
            assert builder.csum == info.csum
            assert builder.header(index.uuid, index.ctime) + body == raw
            count += 1
    assert count >= 29


def test_large_indexes_open_quickly() -> None:
    """A million chunks, 4 TB: no Python loop at open (0.04 s here), and 40 MB for the sum."""
    count = 1_000_000
    body = b"".join(struct.pack("<Q32x", end * 4_000_003) for end in range(1, count + 1))
    raw = build([1])[:4096] + body
    started = time.process_time()
    index = DynamicIndex(raw)
    assert time.process_time() - started < 0.3
    assert index.csum() == hashlib.sha256(body).digest()
    assert index.position(2_000_000_000_000) == 499_999
