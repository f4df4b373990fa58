"""A writable device over an image in memory."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockgw.writing.device import WritableDevice
from blockgw.writing.gate import Gate
from store.errors import BackendError
from store.format.buffer import Buffer
from store.format.fixed_index import CHUNK_SIZE

SIZE = CHUNK_SIZE + 5000


class FakeImage:
    """Bytes; `log` is what was asked to last."""

    def __init__(self) -> None:
        self.size, self.content = SIZE, bytearray(SIZE)
        self.log: list[str] = []

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.content[offset : offset + size])

    def peek(self, offset: int, size: int) -> Buffer | None:
        return None if offset % 3 == 0 else self.read(offset, size)

    def prefetch(self, offset: int) -> None:
        self.log.append("prefetch")

    def is_zero(self, position: int) -> bool:
        return not any(self.content[position * CHUNK_SIZE :][:CHUNK_SIZE])

    def extents(self, offset: int, size: int) -> Iterator[tuple[int, int, bool]]:
        yield offset, 1, True
        yield offset + 1, size - 1, False

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        self.content[offset : offset + len(data)] = data
        self.log += ["flush"] if fua else []

    def zero(self, offset: int, size: int, *, fua: bool = False) -> None:
        self.write(offset, bytes(size), fua=fua)

    trim = zero

    def flush(self) -> None:
        self.log.append("flush")


WRITE = st.tuples(st.integers(0, SIZE), st.binary(max_size=600))


@given(st.lists(WRITE, max_size=8), st.integers(0, SIZE), st.integers(0, SIZE))
def test_reads_see_writes(writes: list[tuple[int, bytes]], start: int, size: int) -> None:
    image, model = FakeImage(), bytearray(SIZE)
    device, other = WritableDevice(image, Gate()), WritableDevice(image, Gate())
    for offset, data in writes:
        data = data[: SIZE - offset]
        device.write(offset, memoryview(data), fua=False)
        model[offset : offset + len(data)] = data
    target = bytearray(min(size, SIZE - start))
    other.read_into(memoryview(target), start)
    assert target == model[start : start + len(target)]


def test_what_lasts() -> None:
    image = FakeImage()
    device = WritableDevice(image, Gate())
    device.write(0, b"x", fua=False)
    device.trim(0, 1, fua=False)
    assert image.log == []
    device.write(0, b"x", fua=True)
    device.zero(0, 1, fua=True)
    device.trim(0, 1, fua=True)
    device.flush()
    assert image.log == ["flush"] * 4


def test_extents_one_or_all() -> None:
    device = WritableDevice(FakeImage(), Gate())
    assert list(device.extents(10, 5)) == [(10, 1, True), (11, 4, False)]
    assert list(device.extents(10, 5, one=True)) == [(10, 1, True)]


def test_after_the_end() -> None:
    gate = Gate()
    image = FakeImage()
    device = WritableDevice(image, gate)
    running = device.extents(0, 10)
    next(running)
    running.close()  # or the gate would wait for it
    gate.shut()
    with pytest.raises(BackendError, match="is ending"):
        device.write(0, b"x", fua=False)
    with pytest.raises(BackendError):
        device.read_into(memoryview(bytearray(1)), 0)
    with pytest.raises(BackendError):
        device.flush()
    with pytest.raises(BackendError):
        list(device.extents(0, 10))
    assert not any(image.content)
