"""The pool of workers: order, bounds, and what happens when a worker fails."""

# ruff: noqa: PT012 - what is raised comes out at one of several calls, or at the pool's end

import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from store.errors import BackendError, OutOfSpace
from store.names import Digest
from store.operations.backup.chunks import ChunkPool, IndexedSink
from store.operations.backup.image import worker_count


class Writer:
    """A ChunkWriter that does what it is told."""

    def __init__(self, action: Callable[[bytes], None] = lambda _: None) -> None:
        self.action = action
        self.stored: list[bytes] = []

    def store(self, plain: bytes) -> Digest:
        self.action(plain)
        self.stored.append(plain)
        return Digest(plain[:1] * 32)


class Index:
    """A DynamicIndexFile that only remembers."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, Digest]] = []

    def add(self, end: int, digest: Digest) -> None:
        self.entries.append((end, digest))

    def close(self) -> bytes:
        return b"csum"


def pool_of(writer: Writer, **options: Any) -> ChunkPool:
    return ChunkPool(writer, **options)  # type: ignore[arg-type]


def sink_of(pool: ChunkPool, index: Index) -> IndexedSink:
    return IndexedSink(pool, index)  # type: ignore[arg-type]


def running_workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("chunk")]


def test_the_index_is_in_stream_order() -> None:
    """The first chunk is done last: its worker waits for the second one's."""
    second = threading.Event()

    def action(plain: bytes) -> None:
        if plain == b"a":
            second.wait()
        else:
            second.set()

    index = Index()
    with pool_of(Writer(action), workers=2) as pool:
        sink = sink_of(pool, index)
        sink.emit(b"a")
        sink.emit(b"bb")
        sink.emit_known([(Digest(b"k" * 32), 5), (Digest(b"l" * 32), 6)])
        sink.emit(b"c")
        assert sink.close() == b"csum"
    assert [(end, digest[:1]) for end, digest in index.entries] == [
        (1, b"a"),
        (3, b"b"),
        (8, b"k"),
        (14, b"l"),
        (15, b"c"),
    ]
    assert sink.size == 15


def test_known_chunks_do_not_pile_up() -> None:
    index = Index()
    with pool_of(Writer(), workers=1) as pool:
        sink = sink_of(pool, index)
        for number in range(1000):
            sink.emit_known([(Digest(bytes(32)), 1)])
            assert len(index.entries) == number + 1


def test_bytes_in_flight_are_bounded() -> None:
    """One chunk larger than the bound passes, alone."""
    held: list[int] = []
    most = []
    lock = threading.Lock()

    def action(plain: bytes) -> None:
        with lock:
            held.append(len(plain))
            most.append(sum(held))
        with lock:
            held.remove(len(plain))

    with pool_of(Writer(action), workers=8, bytes_in_flight=100) as pool:
        for size in [60, 50, 40, 100, 500, 1, 99] * 20:
            pool.submit(bytes(size))
    assert max(most) == 500
    assert all(total <= 100 for total in most if total < 500)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("workers", [1, 3])
def test_failing_workers_never_block_the_feeder(workers: int) -> None:
    def fail(_: bytes) -> None:
        raise OutOfSpace("no room")

    with (
        pytest.raises(OutOfSpace, match="no room"),
        pool_of(Writer(fail), workers=workers, bytes_in_flight=10) as pool,
    ):
        sink = sink_of(pool, Index())
        for _ in range(100):
            sink.emit(bytes(10))
        sink.close()
    assert running_workers() == []


@pytest.mark.timeout(20)
def test_one_failure_late_is_found_at_the_end() -> None:
    def fail(plain: bytes) -> None:
        if plain == b"9":
            raise OutOfSpace("no room")

    index = Index()
    with pytest.raises(OutOfSpace), pool_of(Writer(fail)) as pool:
        sink = sink_of(pool, index)
        for number in range(10):
            sink.emit(b"%d" % number)
        sink.close()
    assert len(index.entries) == 9


def test_an_os_error_is_the_storages() -> None:
    """The walk would take it for one of its files', leave that out and go on: with a chunk less."""

    def fail(_: bytes) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    with (
        pytest.raises(BackendError, match="storing a chunk: "),
        pool_of(Writer(fail)) as pool,
    ):
        sink = sink_of(pool, Index())
        sink.emit(b"a")
        sink.close()


@pytest.mark.timeout(20)
def test_an_interrupt_of_a_waiting_feeder() -> None:
    """Ctrl-C while the feeder waits for room: it leaves, and no thread stays behind."""
    main = threading.main_thread().ident
    assert main is not None
    interrupted = threading.Event()

    def action(_: bytes) -> None:
        while not pool._room._waiters:  # type: ignore[attr-defined]
            pass
        signal.pthread_kill(main, signal.SIGINT)
        while not interrupted.wait(1):  # it came just before the feeder slept: Python looks later
            signal.pthread_kill(main, signal.SIGINT)

    pool = pool_of(Writer(action), workers=1, bytes_in_flight=10)
    with pytest.raises(KeyboardInterrupt), pool:
        pool.submit(bytes(10))
        try:
            pool.submit(bytes(10))
        finally:
            interrupted.set()
    assert running_workers() == []


def test_what_has_not_begun_is_dropped() -> None:
    started, go_on = threading.Event(), threading.Event()

    def action(_: bytes) -> None:
        started.set()
        go_on.wait()

    writer = Writer(action)
    with pytest.raises(ZeroDivisionError), pool_of(writer, workers=1) as pool:
        for _ in range(10):
            pool.submit(b"x")
        started.wait()
        go_on.set()
        raise ZeroDivisionError
    assert len(writer.stored) <= 10


def test_at_least_one_worker() -> None:
    assert 1 <= worker_count() <= 8
