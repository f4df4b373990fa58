"""A site far away: slow by a fake clock, unreachable or read-only when told, counting its calls."""

from collections.abc import Iterator, Sequence

from store.backends.base import Listed, Lock, ObjectStat, Walked
from store.backends.memory import MemoryBackend
from store.backends.wrappers.wrapper import Wrapper
from store.errors import BackendError, PermissionDenied, StoreError
from store.format.buffer import Buffer


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class RemoteSite(Wrapper):
    """A MemoryBackend with a datastore in it, behind a network."""

    def __init__(self, location: str, clock: Clock | None = None, delay_s: float = 0.01) -> None:
        self.memory = MemoryBackend(location)
        self.memory.create()
        super().__init__(self.memory)
        self.clock, self.delay_s = clock or Clock(), delay_s
        self.trouble: StoreError | None = None
        self.is_read_only = False
        self.reads: list[str] = []
        self.interrupted = False

    def go_down(self) -> None:
        self.trouble = BackendError(f"{self.location}: connection refused", retryable=True)

    def come_back(self) -> None:
        self.trouble = None

    def _travel(self, *, writing: bool = False) -> None:
        self.clock.now += self.delay_s
        if self.trouble is not None:
            raise self.trouble
        if writing and self.is_read_only:
            raise PermissionDenied(f"{self.location}: read-only")

    def read(self, name: str) -> bytes:
        self.reads.append(name)
        self._travel()
        return super().read(name)

    def stat(self, name: str) -> ObjectStat | None:
        self._travel()
        return super().stat(name)

    def scan(self, name: str) -> list[Listed]:
        self._travel()
        return super().scan(name)

    def walk(self, name: str, after: str = "") -> Iterator[Walked]:
        for found in super().walk(name, after):
            self._travel()
            yield found

    def write(
        self, name: str, parts: Sequence[Buffer], *, exclusive: bool = False, durable: bool = False
    ) -> None:
        self._travel(writing=True)
        super().write(name, parts, exclusive=exclusive, durable=durable)

    def rename(self, old: str, new: str) -> None:
        self._travel(writing=True)
        super().rename(old, new)

    def lock(
        self, name: str, lock_names: Sequence[str], *, exclusive: bool, timeout_s: float = 0
    ) -> Lock:
        self._travel()
        return super().lock(name, lock_names, exclusive=exclusive, timeout_s=timeout_s)

    def lock_store(self, *, exclusive: bool = False) -> Lock:
        self._travel()
        return super().lock_store(exclusive=exclusive)

    def interrupt(self) -> None:
        self.interrupted = True
