"""The pool of workers: order, bounds, and what happens when a worker fails."""

# ruff: noqa: PT012 - what is raised comes out at one of several calls, or at the pool's end

import signal
import threading
from collections.abc import Callable

import pytest

from store.backends.memory import MemoryBackend
from store.datastore import workers
from store.datastore.memory import Memory
from store.datastore.workers import worker_count
from store.errors import BackendError, OutOfSpace
from store.names import Digest
from store.operations.backup.chunks import ChunkPool, EncodedChunk, IndexedSink


class Writer:
    """A ChunkWriter that does what it is told."""

    def __init__(
        self,
        action: Callable[[bytes], None] = lambda _: None,
        threads: int = 2,
        bytes_in_flight: int = 1 << 20,
    ) -> None:
        self.action = action
        self.stored: list[bytes] = []
        self.memory = Memory(bytes_in_flight * 8 // 3 + 1)
        self.backend = Interruptible()
        self.worker_count = threads

    def encode(self, plain: bytes) -> EncodedChunk:
        self.action(plain)
        self.stored.append(plain)
        return EncodedChunk(Digest(plain[:1] * 32), len(plain), None, None)

    def send(self, chunk: EncodedChunk) -> None:
        pass


class Interruptible(MemoryBackend):
    """Lets go of who waits in `wait`."""

    def __init__(self) -> None:
        super().__init__()
        self.interrupts = 0
        self._interrupted = threading.Event()

    def wait(self) -> None:
        event = self._interrupted
        event.wait()
        raise BackendError("interrupted")

    def interrupt(self) -> None:
        self.interrupts += 1
        self._interrupted, event = threading.Event(), self._interrupted
        event.set()


class Index:
    """A DynamicIndexFile that only remembers."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, Digest]] = []

    def add(self, end: int, digest: Digest) -> None:
        self.entries.append((end, digest))

    def close(self) -> bytes:
        return b"csum"


def pool_of(writer: Writer) -> ChunkPool:
    return ChunkPool(writer)  # type: ignore[arg-type]


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
    with pool_of(Writer(action)) as pool:
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
    with pool_of(Writer(threads=1)) as pool:
        sink = sink_of(pool, index)
        for number in range(1000):
            sink.emit_known([(Digest(bytes(32)), 1)])
            assert len(index.entries) == number + 1


def test_bytes_in_flight_are_bounded() -> None:
    """Each counts plain and encoded; one larger than the bound passes, alone."""
    held: list[int] = []
    most = []
    lock = threading.Lock()

    def action(plain: bytes) -> None:
        with lock:
            held.append(len(plain))
            most.append(sum(held))
        with lock:
            held.remove(len(plain))

    with pool_of(Writer(action, 8, bytes_in_flight=200)) as pool:
        for size in [60, 50, 40, 100, 500, 1, 99] * 20:
            pool.store(bytes(size))
    assert max(most) == 500
    assert all(total <= 100 for total in most if total < 500)


class SlowWriter(Writer):
    """Sends when it is told to."""

    def __init__(self, threads: int, bytes_in_flight: int) -> None:
        super().__init__(threads=threads, bytes_in_flight=bytes_in_flight)
        self.sending, self.may_send = threading.Semaphore(0), threading.Event()

    def send(self, chunk: EncodedChunk) -> None:
        self.sending.release()
        self.may_send.wait()


@pytest.mark.timeout(20)
def test_a_chunk_that_is_sent_counts_once() -> None:
    """Three of 50 are on their way, 150 of 250 bytes: another has room to be encoded, not two."""
    writer = SlowWriter(threads=8, bytes_in_flight=250)
    with pool_of(writer) as pool:
        for _ in range(3):
            pool.store(bytes(50))
            writer.sending.acquire()
        assert pool._free == 100
        pool.store(bytes(50))
        writer.sending.acquire()
        assert pool._free == 50
        writer.may_send.set()
    assert pool._free == 250


@pytest.mark.timeout(20)
@pytest.mark.parametrize("workers", [1, 3])
def test_failing_workers_never_block_the_feeder(workers: int) -> None:
    def fail(_: bytes) -> None:
        raise OutOfSpace("no room")

    with (
        pytest.raises(OutOfSpace, match="no room"),
        pool_of(Writer(fail, workers, bytes_in_flight=10)) as pool,
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
    with pytest.raises(OutOfSpace), pool_of(Writer(fail, threads=1)) as pool:
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

    pool = pool_of(Writer(action, 1, bytes_in_flight=10))
    with pytest.raises(KeyboardInterrupt), pool:
        pool.store(bytes(10))
        try:
            pool.store(bytes(10))
        finally:
            interrupted.set()
    assert running_workers() == []


def test_what_has_not_begun_is_dropped() -> None:
    started, go_on = threading.Event(), threading.Event()

    def action(_: bytes) -> None:
        started.set()
        go_on.wait()

    writer = Writer(action, threads=1)
    with pytest.raises(ZeroDivisionError), pool_of(writer) as pool:
        for _ in range(10):
            pool.store(b"x")
        started.wait()
        go_on.set()
        raise ZeroDivisionError
    assert len(writer.stored) <= 10


def test_an_error_interrupts_the_others() -> None:
    """One worker fails while another sits in a call to the storage: nobody waits for that."""
    stuck = threading.Event()

    def action(plain: bytes) -> None:
        if plain == b"a":
            stuck.set()
            writer.backend.wait()
        stuck.wait()
        raise OutOfSpace("no room")

    writer = Writer(action, bytes_in_flight=4)
    with pytest.raises(OutOfSpace, match="no room"), pool_of(writer) as pool:
        for plain in (b"a", b"b", b"c", b"d"):
            pool.store(plain)
    assert writer.backend.interrupts > 0
    assert running_workers() == []


def test_a_thread_between_two_calls_is_interrupted_in_the_next() -> None:
    stopping = threading.Event()

    def action(_: bytes) -> None:
        stopping.wait()
        while not writer.backend.interrupts:
            pass
        writer.backend.wait()

    writer = Writer(action)
    with pytest.raises(ZeroDivisionError), pool_of(writer) as pool:
        pool.store(b"a")
        stopping.set()
        raise ZeroDivisionError
    assert writer.backend.interrupts > 1
    assert running_workers() == []


def test_threads_by_storage_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that compute have their chunks twice, the others once."""
    monkeypatch.setattr(workers, "processors", lambda: 2)
    backend = MemoryBackend()
    backend.parallelism = 16
    for mebibytes, threads in ((0, 1), (8, 1), (64, 4), (128, 10), (256, 16), (1024, 16)):
        assert worker_count(backend, Memory(mebibytes << 20), 4 << 20) == threads
