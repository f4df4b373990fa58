"""What all wrappers share: each call goes on to the backend inside."""

from collections.abc import Iterator, Sequence

from store.backends.base import (
    Backend,
    Listed,
    Lock,
    ObjectStat,
    Space,
    Subdirectory,
    TemporaryFile,
    Walked,
)
from store.format.buffer import Buffer
from store.progress import SILENT, Progress


class Wrapper:
    """A Backend that hands every call to `inner`. See store.backends.base for the promises."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r})"

    @property
    def location(self) -> str:
        return self.inner.location

    @property
    def parallelism(self) -> int:
        return self.inner.parallelism

    @property
    def is_object_store(self) -> bool:
        return self.inner.is_object_store

    def create(self, progress: Progress = SILENT) -> None:
        self.inner.create(progress)

    def status(self) -> Space:
        return self.inner.status()

    def read(self, name: str) -> bytes:
        return self.inner.read(name)

    def read_into(self, name: str, room: memoryview) -> Buffer:
        return self.read(name)  # whatever a wrapper makes of that; who does better says so

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        return self.inner.read_range(name, offset, size)

    def map(self, name: str) -> Buffer:
        return self.inner.map(name)

    def write(
        self, name: str, parts: Sequence[Buffer], *, exclusive: bool = False, durable: bool = False
    ) -> None:
        self.inner.write(name, parts, exclusive=exclusive, durable=durable)

    def create_temporary(self, name: str, temporary: str, size: int = 0) -> TemporaryFile:
        return self.inner.create_temporary(name, temporary, size)

    def stat(self, name: str) -> ObjectStat | None:
        return self.inner.stat(name)

    def touch(self, name: str) -> int | None:
        return self.inner.touch(name)

    def rename(self, old: str, new: str) -> None:
        self.inner.rename(old, new)

    def delete(self, name: str) -> None:
        self.inner.delete(name)

    def scan(self, name: str) -> list[Listed]:
        return self.inner.scan(name)

    def subdirectories(self, name: str, mark: str) -> Sequence[Subdirectory]:
        return self.inner.subdirectories(name, mark)

    def walk(self, name: str, after: str = "") -> Iterator[Walked]:
        return self.inner.walk(name, after)

    def mkdir(self, name: str, *, durable: bool = False) -> bool:
        return self.inner.mkdir(name, durable=durable)

    def rmdir(self, name: str) -> bool:
        return self.inner.rmdir(name)

    def remove_tree(self, name: str) -> None:
        self.inner.remove_tree(name)

    def sync(self) -> None:
        self.inner.sync()

    def lock(
        self, name: str, lock_names: Sequence[str], *, exclusive: bool, timeout_s: float = 0
    ) -> Lock:
        return self.inner.lock(name, lock_names, exclusive=exclusive, timeout_s=timeout_s)

    def forget_lock(self, lock_names: Sequence[str]) -> None:
        self.inner.forget_lock(lock_names)

    def lock_store(self, *, exclusive: bool = False) -> Lock:
        return self.inner.lock_store(exclusive=exclusive)

    def is_alone(self) -> bool:
        return self.inner.is_alone()

    def copies(self, name: str) -> Iterator[bytes]:
        return self.inner.copies(name)

    def repair(self, name: str, good: Buffer) -> None:
        self.inner.repair(name, good)

    def interrupt(self) -> None:
        self.inner.interrupt()

    def close(self) -> None:
        self.inner.close()


class WrappedFile:
    """A TemporaryFile that hands every call to `inner`."""

    def __init__(self, inner: TemporaryFile) -> None:
        self.inner = inner

    def write(self, data: Buffer) -> None:
        self.inner.write(data)

    def write_at(self, offset: int, data: Buffer) -> None:
        self.inner.write_at(offset, data)

    def map(self) -> memoryview:
        return self.inner.map()

    def commit(self, *, durable: bool = False) -> None:
        self.inner.commit(durable=durable)

    def discard(self) -> None:
        self.inner.discard()
