"""The cache of decoded chunks: its budget, its order, one load for many askers."""

import os
import sys
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.backends.memory import MemoryBackend
from store.datastore.chunk_cache import ENTRY_OVERHEAD, ChunkCache, cache_over, reads_at_once
from store.datastore.rooms import HUGE_PAGE, room_of
from store.errors import ChunkMissing, IntegrityError
from store.names import Digest, Fingerprint
from tests.fakes.interrupts import InterruptingLock

KEY = Fingerprint(b"k" * 32)


def digest(number: int) -> Digest:
    return Digest(number.to_bytes(32, "big"))


def load(cache: ChunkCache, number: int, size: int = 1000) -> bytes:
    return cache.load(digest(number), None, lambda: bytes([number]) * size)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5000))), st.integers(0, 12_000))
def test_the_budget_is_held(steps: list[tuple[int, int]], budget: int) -> None:
    cache = ChunkCache(budget)
    for number, size in steps:
        data = load(cache, number, size)
        assert data[:1] == bytes([number])
        assert cache.used_bytes <= budget
    kept = [cache.get(digest(number), None) for number in range(10)]
    assert cache.used_bytes == sum(len(data) + ENTRY_OVERHEAD for data in kept if data is not None)
    cache.clear()
    assert (cache.used_bytes, len(cache)) == (0, 0)


def test_the_least_recently_used_goes() -> None:
    cache = ChunkCache(3 * (1000 + ENTRY_OVERHEAD))
    for number in (1, 2, 3, 1, 4):
        load(cache, number)
    assert [number for number in range(1, 5) if cache.get(digest(number), None)] == [1, 3, 4]


MIB = 1 << 20
ROOM = HUGE_PAGE


def load_room(cache: ChunkCache, number: int) -> bytes | memoryview:
    """A chunk of 1 MiB as they are decoded: in a room of the cache."""

    def fill() -> memoryview:
        room = cache.rooms.take(MIB)
        assert room is not None
        room[:] = bytes([number]) * MIB
        return room.toreadonly()

    return cache.load(digest(number), None, fill)


def read_through(cache: ChunkCache, count: int) -> int:
    """The most that was used by a reader who leaves chunk after chunk behind."""
    most = 0
    for number in range(count):
        load_room(cache, number)
        most = max(most, cache.used_bytes)
        cache.passed(digest(number))
    return most


def test_a_sequential_reader_takes_little_memory() -> None:
    cache = ChunkCache(64 * MIB)
    load(cache, 200)
    assert read_through(cache, 100) < 10 * MIB
    assert cache.get(digest(200), None) is not None
    assert cache.get(digest(99), None) == bytes([99]) * MIB  # who follows close by has it
    assert cache.get(digest(0), None) is None


def test_who_comes_back_is_believed() -> None:
    cache = ChunkCache(64 * MIB)
    for _ in range(2):
        read_through(cache, 20)
    cache.passed(digest(0))
    assert all(cache.get(digest(number), None) is not None for number in range(12))
    assert cache.used_bytes <= 64 * MIB


def test_what_was_passed_makes_room_first() -> None:
    cache = ChunkCache(3 * (ROOM + ENTRY_OVERHEAD))
    cache.passed(digest(9))  # is not here
    for number in range(3):
        load_room(cache, number)
    cache._passed[digest(1)] = cache._entries.pop(digest(1))
    cache._used_by_passed = ROOM + ENTRY_OVERHEAD
    load_room(cache, 3)
    assert [number for number in range(4) if cache.get(digest(number), None)] == [0, 2, 3]
    assert cache._used_by_passed == 0


def test_hits_meanwhile_do_not_disturb_who_makes_room() -> None:
    """The order of use changes without a lock; a dictionary that is looked through notices."""
    cache, end = ChunkCache(10 * (1000 + ENTRY_OVERHEAD)), time.monotonic() + 1.5

    def hit() -> None:
        while time.monotonic() < end:
            for number in range(40):
                cache.get(digest(number), None)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        hits = threading.Thread(target=hit)
        hits.start()
        while time.monotonic() < end:
            for number in range(40):
                assert cache.load(digest(number), None, lambda: bytes(1000)) == bytes(1000)
        hits.join()
    finally:
        sys.setswitchinterval(interval)


def test_a_room_is_used_again_when_nobody_looks_into_it() -> None:
    cache = ChunkCache(ROOM + ENTRY_OVERHEAD)
    views = []
    for number in range(20):
        view = memoryview(load_room(cache, number))[10:20]
        if number % 2:
            views.append((number, view))
        del view
    assert [bytes(view) for _, view in views] == [bytes([number]) * 10 for number, _ in views]
    assert len({id(view.obj) for _, view in views}) == len(views)
    kept = memoryview(cache.get(digest(19), None) or b"").obj
    views.clear()
    load_room(cache, 20)
    del kept
    load_room(cache, 21)
    assert len(cache.rooms) > 0
    cache.clear()
    assert len(cache.rooms) == 0


@pytest.mark.parametrize(
    ("budget", "most"), [(0, 6), (16, 6), (32, 8), (64, 16), (128, 32), (256, 32), (1024, 32)]
)
def test_free_rooms_are_a_share_of_a_small_budget(budget: int, most: int) -> None:
    """They come on top of it, of each kind."""
    cache = ChunkCache(budget * MIB)
    for rooms in (cache.rooms, cache.raw_rooms):
        views = [rooms.take(2 * MIB) for _ in range(20)]
        left = [*filter(None, map(room_of, views))]
        views.clear()
        rooms.give_back(left)
        assert len(rooms) * 2 == most


def test_a_chunk_of_another_protection_is_no_hit() -> None:
    cache = ChunkCache(10_000)
    load(cache, 1)
    assert cache.get(digest(1), KEY) is None
    assert cache.load(digest(1), KEY, lambda: b"decrypted") == b"decrypted"
    assert cache.get(digest(1), None) is None


def in_threads(count: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_many_threads_load_a_chunk_once() -> None:
    cache, loads, got = ChunkCache(0), [], []
    started = threading.Barrier(8)

    def slow() -> bytes:
        loads.append(1)
        time.sleep(0.05)
        return b"x"

    def ask() -> None:
        started.wait()
        got.append(cache.load(digest(1), None, slow))

    in_threads(8, ask)
    assert got == [b"x"] * 8
    assert len(loads) == 1


def test_an_error_reaches_everyone_and_is_not_kept() -> None:
    cache, errors = ChunkCache(10_000), []
    started = threading.Barrier(4)

    def fail() -> bytes:
        time.sleep(0.05)
        raise ChunkMissing("gone")

    def ask() -> None:
        started.wait()
        try:
            cache.load(digest(1), None, fail)
        except ChunkMissing as error:
            errors.append(str(error))

    in_threads(4, ask)
    assert errors == ["gone"] * 4
    assert load(cache, 1)


def test_an_interrupted_load_is_taken_over() -> None:
    cache = ChunkCache(10_000)

    def interrupted() -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.load(digest(1), None, interrupted)
    assert load(cache, 1)


def test_an_interrupt_before_a_load_begins_leaves_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = ChunkCache(10_000)
    monkeypatch.setattr(cache, "_lock", InterruptingLock())
    with pytest.raises(KeyboardInterrupt):
        load(cache, 1)
    later = threading.Thread(target=load, args=(cache, 1), daemon=True)
    later.start()
    later.join(10)
    assert not later.is_alive()


def test_prefetch_loads_in_the_background_and_drops_what_is_too_much() -> None:
    cache, gate, done = ChunkCache(100_000), threading.Event(), []

    def work() -> None:
        gate.wait()
        done.append(1)
        raise IntegrityError("for the reader to find")

    for number in range(100):
        cache.prefetch(digest(number), None, work)
    gate.set()
    assert cache._prefetchers is not None
    cache._prefetchers.shutdown(wait=True)
    assert len(done) == 8
    cache.prefetch(digest(101), None, work)
    cache.close()


def test_what_is_on_its_way_is_not_prefetched_again() -> None:
    """Readers ask for the same chunks again with every step; that must not use up the threads."""
    cache, gate, loads = ChunkCache(100_000, prefetchers=3), threading.Event(), []

    def work(number: int) -> Callable[[], object]:
        def run() -> None:
            loads.append(number)
            gate.wait()

        return run

    for _ in range(10):
        for number in range(3):
            cache.prefetch(digest(number), None, work(number))
    gate.set()
    cache.close()
    assert sorted(loads) == [0, 1, 2]


def test_a_network_is_read_further_ahead_than_a_disk() -> None:
    backend = MemoryBackend()
    backend.parallelism = len(os.sched_getaffinity(0))
    assert reads_at_once(backend, 3, 100) == 3
    assert cache_over(backend, 1 << 30).prefetchers == 2
    backend.parallelism = 1000
    assert reads_at_once(backend, 3, 100) == 100
    assert reads_at_once(backend, 3, 1) == 3
    assert cache_over(backend, 64 << 20).prefetchers == 8


def test_close_without_prefetch() -> None:
    cache = ChunkCache(1000)
    load(cache, 1, 100)
    cache.close()
    assert len(cache) == 0
