"""A datastore that may be read, and nothing else."""

from collections.abc import Sequence
from typing import NoReturn, Self

from store.backends.base import Backend
from store.backends.wrappers.wrapper import Wrapper
from store.errors import PermissionDenied
from store.format.buffer import Buffer
from store.progress import SILENT, Progress


class ReadOnly(Wrapper):
    """A Backend whose changes raise PermissionDenied, with the reason.

    Its locks hold nothing: whoever else writes knows nothing of ours.
    """

    def __init__(self, inner: Backend, reason: str) -> None:
        """`reason` ends the sentence "… is read-only: "."""
        super().__init__(inner)
        self._reason = reason

    def _refuse(self) -> NoReturn:
        raise PermissionDenied(f"{self.location} is read-only: {self._reason}")

    def create(self, progress: Progress = SILENT) -> None:
        self._refuse()

    def read_into(self, name: str, room: memoryview) -> Buffer:
        return self.inner.read_into(name, room)

    def write(
        self, name: str, parts: Sequence[Buffer], *, exclusive: bool = False, durable: bool = False
    ) -> None:
        self._refuse()

    def create_temporary(self, name: str, temporary: str, size: int = 0) -> NoReturn:
        self._refuse()

    def touch(self, name: str) -> int | None:
        self._refuse()

    def rename(self, old: str, new: str) -> None:
        self._refuse()

    def delete(self, name: str) -> None:
        self._refuse()

    def mkdir(self, name: str, *, durable: bool = False) -> bool:
        self._refuse()

    def rmdir(self, name: str) -> bool:
        self._refuse()

    def remove_tree(self, name: str) -> None:
        self._refuse()

    def repair(self, name: str, good: Buffer) -> None:
        """Leaves it as it is: who reads and finds a good copy elsewhere needs to hear no more."""

    def lock(
        self, name: str, lock_names: Sequence[str], *, exclusive: bool, timeout_s: float = 0
    ) -> "_NoLock":
        return _NoLock()

    def forget_lock(self, lock_names: Sequence[str]) -> None:
        """There are none."""

    def lock_store(self, *, exclusive: bool = False) -> "_NoLock":
        return _NoLock()


class _NoLock:
    """Holds nothing."""

    def check(self) -> None:
        """Nothing can be lost."""

    confirm = check

    def release(self) -> None:
        """Nothing to give back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
