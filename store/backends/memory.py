"""A backend in memory: for tests, and the shortest statement of what a backend does."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from store.backends.base import Listed, ObjectStat, OneCopy, Space, Walked
from store.errors import AlreadyExists, InvalidName, Locked, NotFound
from store.format.buffer import Buffer
from store.progress import SILENT, Progress

POLL_S = 0.002
CHUNKS = ".chunks"


@dataclass(slots=True)
class _Object:
    data: bytes
    mtime_ns: int = field(default_factory=time.time_ns)
    atime_ns: int = field(default_factory=time.time_ns)


class _Subdirectory(NamedTuple):
    name: str
    is_marked: bool


class MemoryBackend(OneCopy):
    """A Backend of dictionaries. See store.backends.base for what each method promises."""

    parallelism = 2
    is_object_store = False

    def __init__(self, location: str = "memory") -> None:
        self.location = location
        self._objects: dict[str, _Object] = {}
        self._directories: set[str] = {""}
        self._locks: dict[str, list[_MemoryLock]] = {}
        self._lock = threading.RLock()

    def create(self, progress: Progress = SILENT) -> None:
        with self._lock:
            if CHUNKS in self._directories:
                raise AlreadyExists(f"{self.location}: there is a datastore already")
            if len(self._directories) > 1 or self._objects:
                raise InvalidName(f"{self.location}: not empty")
            self.mkdir(CHUNKS)
            self.write(".lock", ())

    def status(self) -> Space:
        used = sum(len(found.data) for found in list(self._objects.values()))
        return Space(total=1 << 40, used=used, available=(1 << 40) - used)

    def read(self, name: str) -> bytes:
        with self._lock:
            found = self._objects.get(name)
        if found is None:
            raise self._missing(name)
        return found.data

    def read_into(self, name: str, room: memoryview) -> Buffer:
        return self.read(name)

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        return self.read(name)[offset : offset + size]

    def map(self, name: str) -> Buffer:
        return self.read(name)

    def write(
        self, name: str, parts: Sequence[Buffer], *, exclusive: bool = False, durable: bool = False
    ) -> None:
        with self._lock:
            if name.rpartition("/")[0] not in self._directories:
                raise self._missing(name)
            if name in self._directories or (exclusive and name in self._objects):
                raise AlreadyExists(f"{self.location}/{name}: exists")
            self._objects[name] = _Object(b"".join(parts))

    def create_temporary(self, name: str, temporary: str, size: int = 0) -> "_MemoryTemporaryFile":
        self.write(temporary, ())
        return _MemoryTemporaryFile(self, name, temporary, size)

    def stat(self, name: str) -> ObjectStat | None:
        with self._lock:
            if name in self._directories:
                return ObjectStat(0, 0, 0, is_directory=True, is_regular=False)
            found = self._objects.get(name)
        return ObjectStat(len(found.data), found.mtime_ns, found.atime_ns) if found else None

    def touch(self, name: str) -> int | None:
        with self._lock:
            found = self._objects.get(name)
            if found is None:
                return None
            found.atime_ns = time.time_ns()
        return len(found.data)

    def rename(self, old: str, new: str) -> None:
        with self._lock:
            if old not in self._objects or new.rpartition("/")[0] not in self._directories:
                raise self._missing(old)
            self._objects[new] = self._objects.pop(old)

    def delete(self, name: str) -> None:
        with self._lock:
            if self._objects.pop(name, None) is None:
                raise self._missing(name)

    def scan(self, name: str) -> list[Listed]:
        prefix = f"{name}/" if name else ""
        with self._lock:
            return [
                Listed(path.removeprefix(prefix), path in self._directories)
                for path in (*self._objects, *self._directories)
                if path and path.startswith(prefix) and "/" not in path[len(prefix) :]
            ]

    def subdirectories(self, name: str, mark: str) -> list[_Subdirectory]:
        with self._lock:
            return [
                _Subdirectory(entry.name, f"{name}/{entry.name}/{mark}" in self._objects)
                for entry in self.scan(name)
                if entry.is_directory
            ]

    def walk(self, name: str, after: str = "") -> Iterator[Walked]:
        prefix = f"{name}/" if name else ""
        with self._lock:
            found = [
                Walked(path.removeprefix(prefix), len(held.data))
                for path, held in self._objects.items()
                if path.startswith(prefix) and path.removeprefix(prefix) > after
            ]
        return iter(sorted(found))

    def mkdir(self, name: str, *, durable: bool = False) -> bool:
        with self._lock:
            if name in self._directories:
                return False
            self.mkdir(name.rpartition("/")[0])
            self._directories.add(name)
            return True

    def rmdir(self, name: str) -> bool:
        with self._lock:
            if self.scan(name):
                return False
            self._directories.discard(name)
            return True

    def remove_tree(self, name: str) -> None:
        with self._lock:
            for path in [path for path in self._objects if path.startswith(f"{name}/")]:
                del self._objects[path]
            self._directories -= {
                path for path in self._directories if f"{path}/".startswith(f"{name}/")
            }

    def sync(self) -> None:
        """Memory is as durable as it gets."""

    def lock(
        self, name: str, lock_names: Sequence[str], *, exclusive: bool, timeout_s: float = 0
    ) -> "_MemoryLock":
        deadline = time.monotonic() + timeout_s
        while True:
            with self._lock:
                if name not in self._directories and name not in self._objects:
                    raise self._missing(name)
                with suppress(Locked):
                    return self._acquire(name, exclusive=exclusive)
            if time.monotonic() >= deadline:
                raise Locked(f"{self.location}/{name} is in use")
            time.sleep(POLL_S)

    def _acquire(self, name: str, *, exclusive: bool) -> "_MemoryLock":
        with self._lock:
            held = self._locks.setdefault(name, [])
            if any(exclusive or other.exclusive for other in held):
                raise Locked(f"{self.location}/{name} is in use")
            lock = _MemoryLock(self, name, exclusive)
            held.append(lock)
            return lock

    def unlock(self, lock: "_MemoryLock") -> None:
        with self._lock, suppress(ValueError, KeyError):
            self._locks[lock.name].remove(lock)

    def forget_lock(self, lock_names: Sequence[str]) -> None:
        """There are no lock files here."""

    def lock_store(self, *, exclusive: bool = False) -> "_MemoryLock":
        return self._acquire(".lock", exclusive=exclusive)

    def close(self) -> None:
        """What is in memory stays until nobody holds it."""

    def _missing(self, name: str) -> NotFound:
        return NotFound(f"{self.location}/{name}: no such object")


class _MemoryLock:
    """A lock of a MemoryBackend."""

    def __init__(self, backend: MemoryBackend, name: str, exclusive: bool) -> None:
        self._backend, self.name, self.exclusive = backend, name, exclusive

    def check(self) -> None:
        """Nobody takes it away."""

    confirm = check

    def release(self) -> None:
        self._backend.unlock(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class _MemoryTemporaryFile:
    """A TemporaryFile of a MemoryBackend."""

    def __init__(self, backend: MemoryBackend, name: str, temporary: str, size: int) -> None:
        self._backend, self._name, self._temporary = backend, name, temporary
        self._fixed, self._tail = bytearray(size), bytearray()
        self._open = True

    def write(self, data: Buffer) -> None:
        self._tail += data

    def write_at(self, offset: int, data: Buffer) -> None:
        target = self._tail if not self._fixed else self._fixed
        target[offset : offset + len(data)] = data

    def map(self) -> memoryview:
        return memoryview(self._fixed)

    def commit(self, *, durable: bool = False) -> None:
        self.discard()
        self._backend.write(self._name, (self._fixed, self._tail))

    def discard(self) -> None:
        if self._open:
            self._open = False
            with suppress(NotFound):
                self._backend.delete(self._temporary)
