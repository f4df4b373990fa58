"""How a command opens what it reads."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest

from store.backends.base import Backend
from store.backends.memory import MemoryBackend
from store.cli.reading import Reading
from store.datastore.snapshot_indexes import SnapshotIndexes
from store.errors import BackendError, FormatError, Locked, NotFound
from store.format.buffer import Buffer
from store.format.fixed_index import CHUNK_SIZE, FixedIndexBuilder
from store.names import MANIFEST_BLOB_NAME, Digest, Namespace, Snapshot
from tests.fakes.object_store import ObjectStore, StuckStore

SNAPSHOT = Snapshot.parse("vm/1/2026-01-02T03:04:05Z")
FILES = ("disk.img.fidx", "bad.img.fidx", "tree.mpxar.didx", "tree.ppxar.didx", "a.conf.blob")
MANIFEST: Any = SimpleNamespace(files=[SimpleNamespace(filename=name) for name in FILES])
TIMEOUT_S = 20


class Datastore:
    """Says which thread asked it for what."""

    def __init__(self, error: Exception | None = None, backend: Backend | None = None) -> None:
        self.backend, self.error = backend or MemoryBackend(), error
        self.asked: dict[str, threading.Thread] = {}
        self.released = 0

    def lock_snapshot_shared(self, *_: object) -> AbstractContextManager[None]:
        self.asked["lock"] = threading.current_thread()
        if isinstance(self.error, Locked):
            raise self.error
        held = ExitStack()
        held.callback(self._release)
        held.enter_context(nullcontext())
        return cast("AbstractContextManager[None]", held)

    def _release(self) -> None:
        self.released += 1

    def read_manifest(self, *_: object) -> Any:
        self.asked["manifest"] = threading.current_thread()
        if isinstance(self.error, NotFound):
            raise self.error
        return MANIFEST


def lock(datastore: Datastore, held: ExitStack, *paths: str | None) -> SnapshotIndexes:
    reading: Any = SimpleNamespace(datastore=datastore, namespace=Namespace())
    return Reading._lock(reading, SNAPSHOT, held, paths)


def test_the_lock_is_taken_where_an_interrupt_can_give_it_back() -> None:
    """An interrupt ends the storage's calls in other threads, also that which takes a lock back."""
    datastore = Datastore()
    with ExitStack() as held:
        assert lock(datastore, held).manifest is MANIFEST
        assert datastore.released == 0
    assert datastore.released == 1
    assert datastore.asked["lock"] is threading.current_thread()
    assert datastore.asked["manifest"] is not threading.current_thread()


@pytest.mark.parametrize("error", [Locked("in use"), NotFound("gone")])
def test_what_fails_is_told_and_nothing_stays_locked(error: Exception) -> None:
    datastore = Datastore(error)
    with pytest.raises(type(error)), ExitStack() as held:
        lock(datastore, held)
    assert datastore.released == isinstance(error, NotFound)


# Indexes


def an_index() -> bytes:
    memory = bytearray(32)
    builder = FixedIndexBuilder(memoryview(memory), CHUNK_SIZE)
    builder.set(0, Digest(bytes(32)))
    return builder.finish(bytes(16), 0) + bytes(memory)


@pytest.fixture
def store() -> ObjectStore:
    made = ObjectStore()
    folder = SNAPSHOT.path(Namespace())
    made.write(f"{folder}/disk.img.fidx", (an_index(),))
    made.write(f"{folder}/bad.img.fidx", (b"no index",))
    made.forget()
    return made


def read_files(store: ObjectStore) -> list[str]:
    return [name.rpartition("/")[2] for _, name in store.log]


@pytest.mark.parametrize(
    ("path", "files"),
    [
        ("disk.img", {"disk.img.fidx"}),
        ("disk.img.fidx", {"disk.img.fidx"}),
        ("/disk.img/part1/etc", {"disk.img.fidx"}),
        ("disk.img.d", {"disk.img.fidx"}),
        ("tree.pxar/etc", {"tree.mpxar.didx", "tree.ppxar.didx"}),
        ("a.conf", set()),
        ("other.img", set()),
        ("", set()),
        (None, set()),
    ],
)
def test_the_indexes_behind_a_path_are_read_with_the_manifest(
    store: ObjectStore, path: str | None, files: set[str]
) -> None:
    with ExitStack() as held:
        lock(Datastore(backend=store), held, path)
    assert set(read_files(store)) == files


def test_what_was_read_is_not_read_again(store: ObjectStore) -> None:
    with ExitStack() as held:
        indexes = lock(Datastore(backend=store), held, "disk.img", "disk.img/part1")
    assert indexes.open("disk.img.fidx").size == CHUNK_SIZE
    assert indexes.open("disk.img.fidx") is indexes.open("disk.img.fidx")
    assert read_files(store) == ["disk.img.fidx"]


def test_an_index_that_is_bad_or_gone_is_an_error_when_it_is_opened(store: ObjectStore) -> None:
    with ExitStack() as held:
        indexes = lock(Datastore(backend=store), held, "bad.img", "tree.pxar")
    with pytest.raises(FormatError, match=r"bad\.img\.fidx"):
        indexes.open("bad.img.fidx")
    with pytest.raises(NotFound, match=r"tree\.mpxar\.didx"):
        indexes.open("tree.mpxar.didx")


class Together(ObjectStore):
    """Two indexes are asked for at once."""

    def __init__(self) -> None:
        super().__init__()
        self.both = threading.Barrier(2)

    def map(self, name: str) -> Buffer:
        self.both.wait(TIMEOUT_S)
        return super().map(name)


def test_both_indexes_of_a_tree_are_asked_for_at_once() -> None:
    with ExitStack() as held:
        lock(Datastore(backend=(store := Together())), held, "tree.pxar")
    assert not store.both.broken


# The snapshot's name

Open = Callable[[Any, Callable[[Backend], AbstractContextManager[None]]], Any]


@contextmanager
def opened_by(monkeypatch: pytest.MonkeyPatch, open_: Open) -> Iterator[Callable[..., Reading]]:
    args = SimpleNamespace(ns="", settings=SimpleNamespace(namespace=None), keyfile=None, keyfd=3)
    with monkeypatch.context() as patch:
        patch.setattr("store.cli.reading.open_repository", open_)
        yield lambda name: Reading(cast("Any", args), name)


@pytest.mark.parametrize("name", ["vm/1", str(SNAPSHOT)])
def test_a_snapshot_is_looked_for_while_the_storage_is_opened(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    looked = threading.Event()
    store.write(f"{SNAPSHOT.path(Namespace())}/{MANIFEST_BLOB_NAME}", (b"",))
    store.forget()
    count = store.count
    monkeypatch.setattr(store, "count", lambda *what: (count(*what), looked.set()))

    def open_(_: object, beside: Callable[[Backend], AbstractContextManager[None]]) -> object:
        with beside(store):
            assert looked.wait(TIMEOUT_S)
            return store.open()

    with opened_by(monkeypatch, open_) as reading:
        made = reading(name)
    assert made.resolve(name) == SNAPSHOT
    assert store.total == 2
    made.resolve("vm/1/latest")
    assert store.total == 3


def test_a_storage_that_needs_no_request_is_asked_afterwards(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened_by(monkeypatch, lambda *_: store.open()) as reading:
        made = reading("vm/1")
    assert store.total == 1
    with pytest.raises(NotFound, match="backup group vm/1 has no snapshot"):
        made.resolve("vm/1")


def test_what_was_not_found_is_told_when_it_is_asked_for(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_(_: object, beside: Callable[[Backend], AbstractContextManager[None]]) -> object:
        with beside(store):
            return store.open()

    with opened_by(monkeypatch, open_) as reading:
        made = reading("vm/1")
    assert store.total == 2
    with pytest.raises(NotFound, match="backup group vm/1 has no snapshot"):
        made.resolve("vm/1")
    assert store.total == 2


@pytest.mark.timeout(60)
@pytest.mark.parametrize("error", [BackendError("no answer"), KeyboardInterrupt()])
def test_a_storage_that_is_not_opened_ends_the_look(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    store = StuckStore()
    store.stick("list")

    def open_(_: object, beside: Callable[[Backend], AbstractContextManager[None]]) -> object:
        with beside(store):
            store.stuck.acquire()
            raise error

    with opened_by(monkeypatch, open_) as reading, pytest.raises(type(error)):
        reading("vm/1")
    assert store.interrupts
    assert not [one for one in threading.enumerate() if one.name.startswith("meanwhile")]
