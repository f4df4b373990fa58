"""A device over an image in memory, and over the golden images."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockgw.device import Device, fill_zeros
from blockgw.export import Exports, Selection
from store.datastore.archives import ChunkCache
from store.errors import IntegrityError, KeyRequired, WrongKey
from store.format.crypt import CryptConfig
from store.format.keys import KeyFile
from store.names import Namespace, Snapshot
from store.repositories.repository import open_datastore

CHUNK = 4096


class FakeImage:
    """An image of 4 KiB chunks; `decoded` is its cache, `log` what was asked of it."""

    def __init__(self, content: bytes, damaged: int | None = None) -> None:
        self.size, self.content, self.damaged = len(content), content, damaged
        self.decoded: set[int] = set()
        self.log: list[tuple[str, int]] = []

    def read(self, offset: int, size: int) -> bytes:
        chunk = offset // CHUNK
        assert offset + size <= (chunk + 1) * CHUNK
        if chunk == self.damaged:
            raise IntegrityError(f"chunk {chunk} is damaged")
        self.log.append(("read", chunk))
        self.decoded.add(chunk)
        return self.content[offset : offset + size]

    def peek(self, offset: int, size: int) -> memoryview | None:
        if offset // CHUNK not in self.decoded:
            return None
        return memoryview(self.content)[offset : offset + size]

    def prefetch(self, offset: int) -> None:
        self.log.append(("prefetch", offset // CHUNK))

    def is_zero(self, position: int) -> bool:
        return not any(self.content[position * CHUNK : (position + 1) * CHUNK])

    def extents(self, offset: int, size: int) -> Iterator[tuple[int, int, bool]]:
        for start in range(offset, offset + size, CHUNK):
            yield start, CHUNK, self.is_zero(start // CHUNK)


def content(*numbers: int, tail: int = 0) -> bytes:
    """One chunk filled with each number, and a short last one."""
    return b"".join(bytes([number]) * CHUNK for number in numbers) + b"t" * tail


def read(device: Device, offset: int, size: int) -> bytes:
    buffer = bytearray(b"?" * size)
    device.read_into(memoryview(buffer), offset)
    return bytes(buffer)


IMAGE = content(1, 2, 0, 0, 3, 0, 4, tail=1000)


@given(st.lists(st.tuples(st.integers(0, len(IMAGE)), st.integers(0, len(IMAGE))), max_size=8))
def test_reads_are_slices(ranges: list[tuple[int, int]]) -> None:
    device = Device(FakeImage(IMAGE), CHUNK)
    for offset, size in ranges:
        size = min(size, len(IMAGE) - offset)
        assert read(device, offset, size) == IMAGE[offset : offset + size]


def test_zeros_are_never_decoded() -> None:
    image = FakeImage(IMAGE)
    assert read(Device(image, CHUNK), 0, len(IMAGE)) == IMAGE
    assert {chunk for what, chunk in image.log if what == "read"} == {0, 1, 4, 6, 7}
    assert {chunk for what, chunk in image.log if what == "prefetch"} <= {1, 4, 6, 7}


def test_large_zero_fill() -> None:
    buffer = bytearray(b"?" * (600 << 10))
    fill_zeros(memoryview(buffer))
    assert not any(buffer)


def prefetched(image: FakeImage) -> list[int]:
    return [chunk for what, chunk in image.log if what == "prefetch"]


def test_going_on_reads_ahead() -> None:
    image = FakeImage(content(*range(1, 11)))
    device = Device(image, CHUNK)
    read(device, 3 * CHUNK, 512)
    assert prefetched(image) == []
    read(device, 4 * CHUNK, 512)
    assert prefetched(image) == [5, 6]
    image.decoded |= {5, 6}
    read(device, 4 * CHUNK + 512, 512)
    assert prefetched(image) == [5, 6]
    read(device, 5 * CHUNK, 512)  # a hit, and still the sign to go on
    assert prefetched(image) == [5, 6, 6, 7]
    read(device, 5 * CHUNK + 512, 512)
    assert prefetched(image) == [5, 6, 6, 7]


def test_over_a_network_it_reads_further_ahead() -> None:
    image = FakeImage(content(*range(1, 21)))
    device = Device(image, CHUNK, read_ahead=10)
    read(device, 3 * CHUNK, 512)
    read(device, 4 * CHUNK, 512)
    assert prefetched(image) == list(range(5, 15))


def test_jumping_reads_nothing_ahead() -> None:
    image = FakeImage(content(*range(1, 101)))
    device = Device(image, CHUNK)
    for chunk in range(0, 100, 2):
        read(device, chunk * CHUNK, 512)
    assert prefetched(image) == []


def test_read_ahead_stops_at_the_end() -> None:
    image = FakeImage(content(1, 2, 3))
    device = Device(image, CHUNK)
    assert read(device, 0, 3 * CHUNK) == image.content
    assert set(prefetched(image)) <= {1, 2}


def test_memory_of_a_long_life_is_bounded() -> None:
    image = FakeImage(content(*[1] * 2000))
    device = Device(image, CHUNK)
    for chunk in [*range(2000), *range(0, 2000, 3), *range(1999, 0, -1)]:
        read(device, chunk * CHUNK, 1)
        image.decoded.clear()
    assert len(device._seen) <= 64
    assert len(device._awaited) <= 129


def test_damage_is_where_it_is() -> None:
    device = Device(FakeImage(IMAGE, damaged=4), CHUNK)
    with pytest.raises(IntegrityError):
        read(device, 4 * CHUNK + 1, 1)
    with pytest.raises(IntegrityError):
        read(device, 3 * CHUNK, 2 * CHUNK)
    assert read(device, 6 * CHUNK, CHUNK) == IMAGE[6 * CHUNK : 7 * CHUNK]


def test_extents() -> None:
    device = Device(FakeImage(IMAGE[: 7 * CHUNK]), CHUNK)
    zero = [is_zero for _, _, is_zero in device.extents(0, 7 * CHUNK)]
    assert zero == [False, False, True, True, False, True, False]
    assert list(device.extents(2 * CHUNK, 5 * CHUNK, one=True)) == [(2 * CHUNK, CHUNK, True)]


def open_golden(
    golden: Path, snapshot: str, archive: str, key: CryptConfig | None = None
) -> Device:
    datastore = open_datastore(str(golden / "datastore"))
    selection = Selection(Namespace(), Snapshot.parse(snapshot), archive)
    name = Exports(datastore, selection).default()
    return Device.open(datastore, name, key, ChunkCache(64 << 20))


def golden_key(golden: Path, name: str) -> CryptConfig:
    return KeyFile.decode((golden / "keys" / name).read_text()).unlock(b"key-password")


@pytest.mark.parametrize(
    ("snapshot", "archive", "key", "revision"),
    [
        ("vm/100/2025-01-01T00:00:00Z", "drive-scsi0.img", "", 1),
        ("vm/100/2025-01-02T00:00:00Z", "drive-scsi0.img", "", 2),
        ("vm/101/2025-01-02T00:00:00Z", "drive-scsi0.img", "pbkdf2.json", 2),
        ("host/several/2025-01-01T00:00:00Z", "disk.img", "", 1),
    ],
)
def test_golden(golden: Path, snapshot: str, archive: str, key: str, revision: int) -> None:
    device = open_golden(golden, snapshot, archive, golden_key(golden, key) if key else None)
    expected = (golden / f"expected/disk.{revision}.sha256").read_text().strip()
    whole = read(device, 0, device.size)
    assert hashlib.sha256(whole).hexdigest() == expected
    extents = list(device.extents(0, device.size))
    assert sum(length for _, length, _ in extents) == device.size
    for start, length, is_zero in extents:
        assert not is_zero or not any(whole[start : start + length])
    assert any(is_zero for _, _, is_zero in extents)
    device.close()


@pytest.mark.parametrize(("key", "error"), [("", KeyRequired), ("none.json", WrongKey)])
def test_unreadable_opens_with_its_size(golden: Path, key: str, error: type[KeyRequired]) -> None:
    wrong = golden_key(golden, key) if key else None
    device = open_golden(golden, "vm/101/2025-01-01T00:00:00Z", "drive-scsi0.img", wrong)
    plain = open_golden(golden, "vm/100/2025-01-01T00:00:00Z", "drive-scsi0.img")
    assert device.size == plain.size
    assert list(device.extents(0, device.size)) == [(0, device.size, False)]
    fingerprint = json.loads((golden / "keys/pbkdf2.json").read_text())["fingerprint"]
    with pytest.raises(error, match=fingerprint):
        read(device, 0, 512)
