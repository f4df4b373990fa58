"""Fixed indexes: PBS's vectors (spec sections 3 and 4.1), golden files, laws, and hostile bytes."""

import hashlib
import mmap
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.errors import FormatError, StoreError
from store.format.fixed_index import FIXED_SIZED_CHUNK_INDEX_1_0, FixedIndex, FixedIndexBuilder
from store.names import Digest
from tests.unit.store.format.stored_snapshot import StoredSnapshot

if TYPE_CHECKING:
    from store.format.index import Index

MIB = 1024 * 1024
UUID = bytes(range(16))
CTIME = 1735689600


def digest(number: int) -> Digest:
    return Digest(hashlib.sha256(b"chunk%d" % number).digest())


def build(size: int, chunk_size: int = 4 * MIB) -> bytes:
    body = bytearray(-(-size // chunk_size) * 32)
    builder = FixedIndexBuilder(body, size, chunk_size)
    for position in reversed(range(len(builder))):
        builder.set(position, digest(position + 1))
    return builder.finish(UUID, CTIME) + body


def test_magic() -> None:
    sentence = b"Proxmox Backup fixed sized chunk index v1.0"
    assert hashlib.sha256(sentence).digest()[:8] == FIXED_SIZED_CHUNK_INDEX_1_0


def test_csum_vector() -> None:
    raw = build(8 * MIB)
    csum = "e93628d077cdc465bd3d6d096966935bd3d22888a086a999d4db1037d2f48a93"
    assert FixedIndex(raw).csum().hex() == csum
    assert raw[32:64].hex() == csum


def test_layout() -> None:
    raw = build(4 * MIB + 512)
    assert raw[:32] == FIXED_SIZED_CHUNK_INDEX_1_0 + UUID + struct.pack("<q", CTIME)
    assert raw[64:80] == struct.pack("<QQ", 4 * MIB + 512, 4 * MIB)
    assert raw[80:4096] == bytes(4016)
    assert raw[4096:] == digest(1) + digest(2)


def test_ranges() -> None:
    index = FixedIndex(build(8 * MIB + 512))
    assert len(index) == 3
    assert [index.range(i) for i in range(3)] == [
        (0, 4 * MIB),
        (4 * MIB, 8 * MIB),
        (8 * MIB, 8 * MIB + 512),
    ]
    assert [index.position(offset) for offset in (0, 4 * MIB - 1, 4 * MIB, 8 * MIB + 511)] == [
        0,
        0,
        1,
        2,
    ]
    for outside in (-1, 3):
        with pytest.raises(IndexError):
            index.digest(outside)
        with pytest.raises(IndexError):
            index.range(outside)
    for outside in (-1, 8 * MIB + 512):
        with pytest.raises(IndexError):
            index.position(outside)


def test_works_on_an_mmap(tmp_path: Path) -> None:
    path = tmp_path / "x.fidx"
    path.write_bytes(build(10 * MIB))
    with path.open("rb") as file:
        index: Index = FixedIndex(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    assert list(index.digests()) == [digest(1), digest(2), digest(3)]
    assert (index.uuid, index.ctime, index.header_csum) == (UUID, CTIME, index.csum())


@given(size=st.integers(1, 5000), power=st.integers(0, 12))
def test_round_trip(size: int, power: int) -> None:
    raw = build(size, 1 << power)
    index = FixedIndex(raw)
    assert (index.size, index.chunk_size) == (size, 1 << power)
    assert list(index.digests()) == [index.digest(i) for i in range(len(index))]
    end = 0
    for position in range(len(index)):
        start, stop = index.range(position)
        assert start == end
        assert index.position(start) == index.position(stop - 1) == position
        end = stop
    assert end == size


@given(data=st.data())
def test_cut_and_changed_files(data: st.DataObject) -> None:
    raw = bytearray(build(9 * MIB))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
        with pytest.raises(FormatError):
            FixedIndex(raw)
        return
    raw[data.draw(st.integers(0, 100))] = data.draw(st.integers(0, 255))
    try:
        index = FixedIndex(raw)
    except FormatError:
        return
    assert len(list(index.digests())) == len(index) == 3


@pytest.mark.parametrize(
    ("size", "chunk_size"),
    [
        (0, 4 * MIB),  # nothing
        (8 * MIB, 0),
        (8 * MIB, 4 * MIB + 1),  # no power of two
        (12 * MIB, 4 * MIB),  # three chunks
        (4 * MIB, 4 * MIB),  # one
        (2**64 - 1, 2**63),  # two chunks, beyond any file
    ],
)
def test_sizes_that_do_not_fit(size: int, chunk_size: int) -> None:
    raw = bytearray(build(8 * MIB))
    raw[64:80] = struct.pack("<QQ", size, chunk_size)
    with pytest.raises(FormatError, match="fixed index"):
        FixedIndex(raw)


def test_no_entries() -> None:
    with pytest.raises(FormatError):
        FixedIndex(build(1)[:4096])
    with pytest.raises(FormatError):
        FixedIndexBuilder(bytearray(), 0)


def test_the_builder_names_the_first_chunk_never_set() -> None:
    builder = FixedIndexBuilder(bytearray(96), 12 * MIB)
    builder.set(0, digest(1))
    builder.set(2, digest(3))
    with pytest.raises(FormatError, match="chunk 1 of 3"):
        builder.finish(UUID, CTIME)
    with pytest.raises(IndexError):
        builder.set(3, digest(4))


@pytest.mark.parametrize("body", [bytearray(64), bytes(96)])
def test_the_builder_wants_a_fitting_body(body: bytearray | bytes) -> None:
    with pytest.raises(ValueError, match="body"):
        FixedIndexBuilder(body, 12 * MIB)


def test_golden_indexes(golden_snapshots: tuple[StoredSnapshot, ...]) -> None:
    """Sums and sizes are the manifest's, and we write the same files again."""
    count = 0
    for snapshot in golden_snapshots:
        for path in snapshot.path.glob("*.fidx"):
            raw = path.read_bytes()
            index, info = FixedIndex(raw), snapshot.manifest.file(path.name)
            assert index.csum() == index.header_csum == info.csum
            assert index.size == info.size == sum(map(len, snapshot.stream(path.name)))
            body = bytearray(len(index) * 32)
            builder = FixedIndexBuilder(body, index.size)
            for position, name in enumerate(index.digests()):
                builder.set(position, name)
            assert builder.finish(index.uuid, index.ctime) + body == raw
            count += 1
    assert count == 6


def test_large_indexes_open_at_once() -> None:
    """4 TiB: a million chunks. No loop at open, one SHA-256 over 32 MB for the sum."""
    count = 1024 * 1024
    body = bytearray(count * 32)
    builder = FixedIndexBuilder(body, count * 4 * MIB)
    builder._is_set[:] = b"\1" * count
    raw = builder.finish(UUID, CTIME) + body
    started = time.process_time()
    index = FixedIndex(raw)
    assert time.process_time() - started < 0.05
    assert index.csum() == hashlib.sha256(body).digest()


def test_errors_are_the_stores() -> None:
    with pytest.raises(StoreError, match="2f7f41ed91fd0fcd"):
        FixedIndex(bytes(4128))
