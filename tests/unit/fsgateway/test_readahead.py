"""The loader: one decode per chunk, ahead of those who go straight on, and of nobody else."""

import threading
from typing import Any, cast

import pytest
import trio
import trio.testing

from fsgateway.bridge import Bridge
from fsgateway.readahead import MIB, Loader, Way, Ways
from store.backends.memory import MemoryBackend
from store.datastore.archives import IndexedStream
from store.errors import ChunkMissing
from store.names import Digest

CHUNK = 4 * MIB


class Chunks:
    """An index of chunks of 4 MiB, and a stream that only notes what is read."""

    def __init__(self, count: int, bad: int | None = None) -> None:
        self.count, self.bad = count, bad
        self.index = self
        self.size = count * CHUNK
        self.cached: set[int] = set()
        self.same: dict[int, int] = {}
        self.reads: list[int] = []
        self.reader, self.passed_by = self, list[int]()
        self.lock = threading.Lock()
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.are_read = threading.Semaphore(0)

    def __len__(self) -> int:
        return self.count

    def digest(self, number: int) -> Digest:
        return Digest(self.same.get(number, number).to_bytes(32, "big"))

    def passed(self, digest: Digest) -> None:
        self.passed_by.append(int.from_bytes(digest, "big"))

    def range(self, number: int) -> tuple[int, int]:
        return number * CHUNK, (number + 1) * CHUNK

    def position(self, offset: int) -> int:
        return offset // CHUNK

    def peek(self, offset: int, size: int) -> bytes | None:
        return b"" if offset // CHUNK in self.cached else None

    def read(self, offset: int, size: int) -> bytes:
        with self.lock:
            self.reads.append(offset // CHUNK)
        self.may_go_on.wait(10)
        self.are_read.release()
        if offset // CHUNK == self.bad:
            raise ChunkMissing("gone")
        self.cached.add(offset // CHUNK)
        return b""

    @property
    def stream(self) -> IndexedStream:
        return cast("IndexedStream", self)


def run(main: Any, cache_bytes: int = 1 << 30, parallelism: int = 1, threads: int = 2) -> None:
    """Run `main(loader)`, and all that it wanted to be read ahead."""
    backend = MemoryBackend()
    backend.parallelism = parallelism

    async def with_loader() -> None:
        async with trio.open_nursery() as nursery:
            loader = Loader(Bridge(4), threads, cache_bytes, backend)
            loader.start_soon = nursery.start_soon
            await main(loader)
            await trio.to_thread.run_sync(loader.threads.shutdown)

    trio.run(with_loader)


def test_the_nearest_comes_first() -> None:
    chunks = Chunks(8)

    async def main(loader: Loader) -> None:
        loader.follow(chunks.stream, Way(0), 0, MIB)

    run(main, threads=1)
    assert chunks.reads == [1, 2, 3]


def test_it_goes_on_while_the_event_loop_is_busy() -> None:
    chunks = Chunks(8)

    async def main(loader: Loader) -> None:
        loader.follow(chunks.stream, Way(0), 0, MIB)
        for _ in range(3):
            assert chunks.are_read.acquire(timeout=10)

    run(main, threads=1)


def test_without_threads_nothing_is_read_ahead_and_nothing_fails() -> None:
    chunks = Chunks(8)

    async def main(loader: Loader) -> None:
        loader.stop()  # submit then raises what it raises where no thread can be started
        loader.follow(chunks.stream, Way(0), 0, MIB)
        assert not loader._wanted

    run(main)
    assert chunks.reads == []


def test_it_is_nothing_that_the_scheduler_has_to_be_there_for_until_somebody_waits() -> None:
    chunks = Chunks(2)
    chunks.may_go_on.clear()

    async def main(loader: Loader) -> None:
        activity = loader.bridge.activity
        loader.follow(chunks.stream, Way(0), 0, MIB)
        await trio.testing.wait_all_tasks_blocked()
        assert not activity.count
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loader.fill, chunks.stream, CHUNK, MIB)
            await trio.testing.wait_all_tasks_blocked()
            assert activity.count == 1
            chunks.may_go_on.set()
        assert not activity.count

    run(main)
    assert chunks.reads == [1]


def test_who_waits_for_what_is_read_ahead_is_told_of_its_error() -> None:
    chunks = Chunks(2, bad=1)
    chunks.may_go_on.clear()

    async def main(loader: Loader) -> None:
        loader.follow(chunks.stream, Way(0), 0, MIB)
        while not chunks.reads:
            await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, loader)
            await trio.testing.wait_all_tasks_blocked()
            chunks.may_go_on.set()

    async def wait(loader: Loader) -> None:
        with pytest.raises(ChunkMissing):
            await loader.fill(chunks.stream, CHUNK, 1)

    run(main)
    assert chunks.reads == [1]


def test_at_the_end_what_is_only_wanted_is_left() -> None:
    chunks = Chunks(8)
    chunks.may_go_on.clear()

    async def main(loader: Loader) -> None:
        loader.follow(chunks.stream, Way(0), 0, MIB)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loader.close)
            await trio.testing.wait_all_tasks_blocked()
            chunks.may_go_on.set()

    run(main, threads=1)
    assert len(chunks.reads) <= 1


def test_many_waiters_one_decode() -> None:
    chunks = Chunks(3)

    async def main(loader: Loader) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(loader.fill, chunks.stream, CHUNK - 10, 20)

    run(main)
    assert sorted(chunks.reads) == [0, 1]


def test_all_waiters_are_told_of_an_error_and_the_next_one_tries_again() -> None:
    chunks = Chunks(1, bad=0)
    failed = []

    async def wait(loader: Loader) -> None:
        try:
            await loader.fill(chunks.stream, 0, 1)
        except ChunkMissing:
            failed.append(1)

    async def main(loader: Loader) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(wait, loader)
        chunks.bad = None
        await loader.fill(chunks.stream, 0, 1)

    run(main)
    assert len(failed) == 5
    assert chunks.reads == [0, 0]


def test_a_sequential_reader_is_read_ahead_of() -> None:
    chunks, way = Chunks(10), Way(0)

    async def main(loader: Loader) -> None:
        for position in range(0, MIB, 128 * 1024):
            if position + 128 * 1024 > way.mark:
                loader.follow(chunks.stream, way, position, 128 * 1024)

    run(main)
    assert sorted(chunks.reads) == [1, 2, 3]
    assert way.mark == CHUNK


def read_on(loader: Loader, chunks: Chunks, way: Way, start: int, end: int) -> None:
    """As `Reader.read` does: what is before the mark is only read."""
    for position in range(start, end, MIB):
        if position + MIB > way.mark:
            loader.follow(chunks.stream, way, position, MIB)


def test_what_a_sequential_reader_has_behind_him_is_told() -> None:
    chunks, way = Chunks(10), Way(0)

    async def main(loader: Loader) -> None:
        read_on(loader, chunks, way, 0, 3 * CHUNK + MIB)

    run(main)
    assert sorted(set(chunks.passed_by)) == [0, 1, 2]


def test_a_chunk_read_in_part_is_not_passed() -> None:
    chunks, way = Chunks(10), Way(0)

    async def main(loader: Loader) -> None:
        read_on(loader, chunks, way, CHUNK + 2 * MIB, 3 * CHUNK + MIB)

    run(main)
    assert sorted(set(chunks.passed_by)) == [2]


def test_what_comes_behind_a_run_of_one_chunk_is_read_ahead() -> None:
    chunks, way = Chunks(12), Way(0)
    chunks.same = dict.fromkeys(range(1, 6), 0)

    async def main(loader: Loader) -> None:
        loader.follow(chunks.stream, way, 0, MIB)

    run(main)
    assert sorted(chunks.reads) == [6, 7, 8]


def test_the_end_and_a_small_cache_limit_it() -> None:
    chunks, way = Chunks(10), Way(8 * CHUNK)

    async def main(loader: Loader) -> None:
        loader.follow(chunks.stream, way, 8 * CHUNK, MIB)

    run(main)
    assert chunks.reads == [9]
    chunks, way = Chunks(10), Way(0)

    async def small(loader: Loader) -> None:
        loader.follow(chunks.stream, way, 0, MIB)

    run(small, cache_bytes=32 * MIB)
    assert chunks.reads == [1]


def test_over_a_network_it_goes_further() -> None:
    chunks = Chunks(100)

    async def main(loader: Loader) -> None:
        loader.follow(chunks.stream, Way(0), 0, MIB)

    run(main, parallelism=1000, cache_bytes=256 * MIB)
    assert sorted(chunks.reads) == list(range(1, 16))


@pytest.mark.parametrize("positions", [[0, 30, 9, 21, 3, 17, 36], [36, 32, 28, 24, 20, 16]])
def test_other_readers_are_not(positions: list[int]) -> None:
    chunks, way = Chunks(10), Way(0)

    async def main(loader: Loader) -> None:
        for position in positions:
            loader.follow(chunks.stream, way, position * MIB, 4096)

    run(main)
    assert not chunks.reads


def test_read_ahead_fails_quietly() -> None:
    chunks = Chunks(3, bad=1)

    async def main(loader: Loader) -> None:
        loader.follow(chunks.stream, Way(0), 0, MIB)

    run(main)
    assert sorted(chunks.reads) == [1, 2]


def test_small_files_in_a_row_go_one_way() -> None:
    ways = Ways()
    way = ways.of(0)
    way.position = 100_000
    assert ways.of(100_100) is way
    other = ways.of(50 * MIB)
    assert other is not way
    assert ways.of(100_200) is way
    for number in range(100):
        ways.of((100 + 10 * number) * MIB)
    assert len(ways.recent) <= 8
