"""An object store in memory that counts what would be requests to S3, and can be slow or stuck."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from store.backends.base import Listed, ObjectStat, Walked
from store.backends.memory import MemoryBackend
from store.backends.wrappers.wrapper import Wrapper
from store.datastore.datastore import Datastore
from store.errors import BackendError
from store.format.buffer import Buffer
from store.names import SAFE_ID

PAGE = 1000
CHUNKS = ".chunks"
SNAPSHOT_DEPTH = 2
"""Slashes in `host/web01/<time>`: shared locks and snapshots have a second look, as the store's."""


def pages(names: int) -> int:
    """Requests that list so many names."""
    return max(1, -(-names // PAGE))


class ObjectStore(Wrapper):
    """A bucket: objects by key, no directories.

    `requests` counts by kind of call. `log` has each call's name and object.
    """

    def __init__(self, parallelism: int = 16) -> None:
        super().__init__(MemoryBackend("s3://bucket/test"))
        self.inner.create()
        self._parallelism = parallelism
        self.requests: Counter[str] = Counter()
        self.log: list[tuple[str, str]] = []

    def open(self) -> Datastore:
        """A datastore, at the price of one request: for the marker that says who uses it."""
        self.count("open", ".in-use")
        return Datastore("test", self)

    @property
    def total(self) -> int:
        return self.requests.total()

    def forget(self) -> None:
        """Count from zero."""
        self.requests.clear()
        self.log.clear()

    def count(self, kind: str, name: str, number: int = 1) -> None:
        self.requests[kind] += number
        self.log.append((kind, name))

    @property
    def parallelism(self) -> int:
        return self._parallelism

    @property
    def is_object_store(self) -> bool:
        return True

    def read(self, name: str) -> bytes:
        self.count("read", name)
        return super().read(name)

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        self.count("read", name)
        return super().read_range(name, offset, size)

    def map(self, name: str) -> Buffer:
        self.count("read", name)
        return super().map(name)

    def write(
        self, name: str, parts: Sequence[Buffer], *, exclusive: bool = False, durable: bool = False
    ) -> None:
        self.count("write", name)
        self.inner.mkdir(name.rpartition("/")[0])
        super().write(name, parts, exclusive=exclusive, durable=durable)

    def create_temporary(self, name: str, temporary: str, size: int = 0) -> "_Upload":
        self.inner.mkdir(name.rpartition("/")[0])
        return _Upload(self, name, super().create_temporary(name, temporary, size))

    def stat(self, name: str) -> ObjectStat | None:
        if name != CHUNKS:
            self.count("stat", name)
        return super().stat(name)

    def touch(self, name: str) -> int | None:
        self.count("stat", name)
        return super().touch(name)

    def rename(self, old: str, new: str) -> None:
        self.count("rename", old, 2)
        super().rename(old, new)

    def delete(self, name: str) -> None:
        self.count("delete", name)
        super().delete(name)

    def scan(self, name: str) -> list[Listed]:
        found = super().scan(name)
        self.count("list", name, pages(len(found)))
        return found

    def subdirectories(self, name: str, mark: str) -> Sequence[Any]:
        self.count("list", name, pages(len(list(self.inner.walk(name)))))
        return super().subdirectories(name, mark)

    def walk(self, name: str, after: str = "") -> Iterator[Walked]:
        self.count("list", name)
        for number, found in enumerate(super().walk(name, after), 1):
            if number > PAGE and number % PAGE == 1:
                self.count("list", name)
            yield found

    def mkdir(self, name: str, *, durable: bool = False) -> bool:
        if name.startswith("ns/") and SAFE_ID.fullmatch(name.rpartition("ns/")[2]):
            self.count("write", name)
        return super().mkdir(name, durable=durable)

    def remove_tree(self, name: str) -> None:
        self.count("list", name)
        self.count("delete", name, pages(len(list(self.inner.walk(name)))))
        super().remove_tree(name)

    def lock(
        self, name: str, lock_names: Sequence[str], *, exclusive: bool, timeout_s: float = 0
    ) -> "_Lease":
        lock = super().lock(name, lock_names, exclusive=exclusive, timeout_s=timeout_s)
        is_snapshot = name.count("/") == SNAPSHOT_DEPTH
        self.count("lock", name, 2 if is_snapshot else 1)
        return _Lease(self, name, lock)

    def lock_store(self, *, exclusive: bool = False) -> "_Lease":
        self.count("lock", ".lock", 2)
        return _Lease(self, ".lock", super().lock_store(exclusive=exclusive))


class _Upload:
    """An object that is put when it is complete."""

    def __init__(self, store: ObjectStore, name: str, file: Any) -> None:
        self._store, self._name, self._file = store, name, file

    def __getattr__(self, name: str) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(self._file, name)
        return found

    def commit(self, *, durable: bool = False) -> None:
        self._store.count("write", self._name)
        self._file.commit(durable=durable)


class _Lease:
    """A lock, with a request to give it back."""

    def __init__(self, store: ObjectStore, name: str, lock: Any) -> None:
        self._store, self._name, self._lock = store, name, lock
        self._held = True

    def check(self) -> None:
        self._lock.check()

    def confirm(self) -> None:
        self._store.count("confirm", self._name)
        self._lock.confirm()

    def release(self) -> None:
        if self._held:
            self._held = False
            self._store.count("unlock", self._name)
            self._lock.release()

    def __enter__(self) -> "_Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class StuckStore(ObjectStore):
    """Its calls of some kinds wait, from `stick` on, until they are interrupted.

    Not those of the main thread. `stuck` is released once for each call that waits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stuck = threading.Semaphore(0)
        self.interrupts = 0
        self._kinds: tuple[str, ...] = ()
        self._after = 0
        self._end = threading.Event()

    def stick(self, *kinds: str, after: int = 0) -> None:
        self._kinds, self._after = kinds, after

    def count(self, kind: str, name: str, number: int = 1) -> None:
        super().count(kind, name, number)
        if kind in self._kinds and threading.current_thread() is not threading.main_thread():
            self._after -= 1
            if self._after >= 0:
                return
            end = self._end
            self.stuck.release()
            end.wait()
            raise BackendError(f"{self.location}/{name}: interrupted")

    def interrupt(self) -> None:
        self.interrupts += 1
        self._end, end = threading.Event(), self._end
        end.set()


class SlowStore(ObjectStore):
    """Every read and write takes `delay_s` more, in its own thread."""

    def __init__(self, delay_s: float) -> None:
        super().__init__()
        self._delay_s = delay_s

    def count(self, kind: str, name: str, number: int = 1) -> None:
        super().count(kind, name, number)
        if kind in ("read", "write"):
            threading.Event().wait(self._delay_s)


__all__ = ["ObjectStore", "SlowStore", "StuckStore"]
