"""Reading open files: at once where the answer is in memory, else through the loader."""

from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest
import trio
from pyfuse3 import FileHandleT, InodeT

from fsgateway.bridge import Bridge
from fsgateway.handles import BytesFile, GuestFile, OpenFile, StreamFile
from fsgateway.operations import failed
from fsgateway.readahead import MIB, Loader, Way
from fsgateway.reading import Reader
from fsgateway.view import Content
from store.backends.memory import MemoryBackend
from store.errors import ChunkMissing
from tests.unit.fsgateway.test_readahead import CHUNK, Chunks


class Filled(Chunks):
    """Chunk n is full of n."""

    def peek(self, offset: int, size: int) -> bytes | None:
        number = offset // CHUNK
        return bytes([number]) * size if number in self.cached else None


class Guest:
    """A file that somebody else brings."""

    def read(self, offset: int, size: int) -> bytes:
        return b"0123456789"[offset : offset + size]


Main = Callable[[Reader, FileHandleT], Coroutine[Any, Any, None]]


def run(file: OpenFile, main: Main) -> None:
    """Run `main(reader, handle)` with the file open."""

    async def with_reader() -> None:
        async with trio.open_nursery() as nursery:
            bridge = Bridge()
            loader = Loader(bridge, 2, 1 << 30, MemoryBackend())
            loader.start_soon = nursery.start_soon
            reader = Reader(bridge, loader)
            await main(reader, reader.files.add(file))
            await trio.to_thread.run_sync(loader.threads.shutdown)

    trio.run(with_reader)


def part(chunks: Chunks, start: int, size: int) -> StreamFile:
    return StreamFile(InodeT(1), chunks.stream, start, size, Way(start), is_exact=False)


def test_what_is_in_memory() -> None:
    chunks = Filled(8)
    chunks.cached.add(2)

    async def main(reader: Reader, handle: FileHandleT) -> None:
        assert reader.read_now(handle, MIB, 3) == bytes([2]) * 3
        assert reader.read_now(handle, CHUNK - 2, 9) == bytes([2]) * 2
        for offset in (CHUNK, CHUNK + 1, 1 << 60):
            assert reader.read_now(handle, offset, 9) == b""

    run(part(chunks, 2 * CHUNK, CHUNK), main)
    assert 2 not in chunks.reads


def test_what_is_not_comes_from_a_thread() -> None:
    chunks = Filled(8)

    async def main(reader: Reader, handle: FileHandleT) -> None:
        assert reader.read_now(handle, 0, 3) is None
        assert await reader.read(handle, 0, 3) == bytes([2]) * 3
        assert reader.read_now(handle, 0, 3) == bytes([2]) * 3

    run(part(chunks, 2 * CHUNK, CHUNK), main)
    assert chunks.reads == [2]


def test_who_is_answered_at_once_is_read_ahead_of() -> None:
    chunks = Filled(8)
    chunks.cached.add(0)

    async def main(reader: Reader, handle: FileHandleT) -> None:
        assert reader.read_now(handle, 0, MIB)

    run(part(chunks, 0, chunks.size), main)
    assert sorted(chunks.reads) == [1, 2, 3]


@pytest.mark.expect_warnings
def test_damage_is_an_error_of_those_who_wait() -> None:
    chunks = Filled(8, bad=2)

    async def main(reader: Reader, handle: FileHandleT) -> None:
        assert reader.read_now(handle, 0, 3) is None
        with pytest.raises(ChunkMissing) as caught:
            await reader.read(handle, 0, 3)
        assert failed(caught.value) == ChunkMissing.errno

    run(part(chunks, 2 * CHUNK, CHUNK), main)


def test_bytes() -> None:
    async def main(reader: Reader, handle: FileHandleT) -> None:
        assert reader.read_now(handle, 1, 9) == await reader.read(handle, 1, 9) == b"bc"
        assert reader.read_now(handle, 3, 9) == b""

    run(BytesFile(b"abc"), main)


def test_what_others_bring_is_waited_for() -> None:
    async def main(reader: Reader, handle: FileHandleT) -> None:
        assert reader.read_now(handle, 0, 3) is None
        assert await reader.read(handle, 2, 3) == b"234"

    run(GuestFile(Content(cast("Any", Guest()), 0, 10)), main)


def test_what_is_not_open() -> None:
    async def main(reader: Reader, handle: FileHandleT) -> None:
        reader.files.remove(handle)
        with pytest.raises(KeyError):
            reader.read_now(handle, 0, 1)

    run(BytesFile(b"abc"), main)
