"""What a datastore needs from its storage: whole objects by name, a few directories, and locks.

Names are relative, '/' between components, without a leading slash; "" is the datastore itself. A
storage that has no directories (S3) makes `mkdir`, `rmdir` and a missing parent no-ops; everything
else has the same meaning there.
"""

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

from store.errors import (
    AlreadyExists,
    BackendError,
    InvalidName,
    NotFound,
    OutOfSpace,
    PermissionDenied,
    StoreError,
)
from store.format.buffer import Buffer
from store.progress import SILENT, Progress

MAX_READ = 256 << 20
"""Bytes: more than anything has that is read whole (the largest is a blob of 128 MiB)."""

RETRYABLE = frozenset((errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT))


class Listed(NamedTuple):
    """One name in a directory."""

    name: str
    is_directory: bool


class Walked(NamedTuple):
    """One object below a directory: its name from there on, and its size in bytes."""

    name: str
    size: int


class Subdirectory(Protocol):
    """A directory in a directory, from `Backend.subdirectories`."""

    @property
    def name(self) -> str:
        """Its last component."""

    @property
    def is_marked(self) -> bool:
        """Whether it holds the object asked for. May cost a look-up, each time."""


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """What is known of an object without reading it: bytes, and nanoseconds since the epoch."""

    size: int
    mtime_ns: int
    atime_ns: int
    is_directory: bool = False
    is_regular: bool = True


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of the storage as a whole; `available` is what an ordinary user may still write.

    All three are 0 where the storage has no size: a bucket grows as long as somebody pays.
    """

    total: int
    used: int
    available: int


class Lock(Protocol):
    """A lock that is held until `release`, the end of its `with`, or the end of the process."""

    def check(self) -> None:
        """Raise Locked if it was lost: where locks are leases, a process that sleeps loses them.

        To be called before the last step that others will see, and after it. Costs no request: it
        knows the time by the own clock, and by the storage's at its last answer to this thread.
        """

    def confirm(self) -> None:
        """The same, having asked the storage: who stood still for a while need not know it.

        Raises Locked, and errors of the storage.
        """

    def release(self) -> None:
        """Give the lock back. A second call does nothing."""

    def __enter__(self) -> Self:
        """The lock is held already."""

    def __exit__(self, *_: object) -> None:
        """Give the lock back."""


class TemporaryFile(Protocol):
    """An object being built beside its final name; no reader sees it before `commit`.

    Not thread-safe.
    """

    def write(self, data: Buffer) -> None:
        """Append. Raises OutOfSpace, BackendError."""

    def write_at(self, offset: int, data: Buffer) -> None:
        """Overwrite at `offset` (a header that is known last)."""

    def map(self) -> memoryview:
        """The `size` bytes asked for on creation as writable memory, valid until `commit`."""

    def commit(self, *, durable: bool = False) -> None:
        """Give it its final name, replacing what was there.

        `durable`: on disk, name included, when this returns.
        """

    def discard(self) -> None:
        """Drop it. Does nothing after `commit` or a second time."""


class Backend(Protocol):
    """Objects by name. Every method is safe to call from several threads and several processes.

    Errors of the storage come as StoreError that names the path: NotFound, AlreadyExists,
    PermissionDenied, OutOfSpace, else BackendError.
    """

    @property
    def location(self) -> str:
        """Where it is, for messages: `/mnt/backup`, `s3://bucket/name`."""

    @property
    def parallelism(self) -> int:
        """How many calls at once are worth having: processors on a disk, more over a network."""

    @property
    def is_object_store(self) -> bool:
        """Whether it has objects by key and nothing else (S3).

        Each look then costs a request: what is there is learnt a thousand names at a time, from
        `walk`. There are no access times, so `touch` leaves no trace; locks are leases, which can
        be lost.
        """

    def create(self, progress: Progress = SILENT) -> None:
        """Lay out an empty datastore (spec 1.1), finishing an interrupted `create`.

        `progress` counts directories: a disk takes seconds for all 65,536.

        Raises AlreadyExists when there is one, InvalidName when the place holds anything else,
        Locked.
        """

    def status(self) -> Space:
        """Size and fill of the storage."""

    def read(self, name: str) -> bytes:
        """The whole object. Raises FormatError over `chunks.max_read`: damage, or an attack."""

    def read_into(self, name: str, room: memoryview) -> Buffer:
        """`read`, without fresh memory where the storage can and it fits: then a view of `room`.

        What `room` holds else, or after an error, can be anything.
        """

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`, fewer at the end of the object."""

    def map(self, name: str) -> Buffer:
        """The whole object as memory that need not be resident.

        Stays valid when the object is deleted or replaced.
        """

    def write(
        self, name: str, parts: Sequence[Buffer], *, exclusive: bool = False, durable: bool = False
    ) -> None:
        """Store one object from `parts`, atomically: readers see the old one or the new one, whole.

        `exclusive`: AlreadyExists if it is there. `durable`: on disk, name included, when this
        returns.
        Raises NotFound when the directory is missing.
        """

    def create_temporary(self, name: str, temporary: str, size: int = 0) -> TemporaryFile:
        """Start an object `name` under the name `temporary` in the same directory.

        `size` bytes are reserved and can be reached with `map`; further `write`s append after them.
        """

    def stat(self, name: str) -> ObjectStat | None:
        """Of an object or directory, not following a symlink; None when there is none."""

    def touch(self, name: str) -> int | None:
        """Set atime to now, keep mtime; the object's size, or None when there is none."""

    def rename(self, old: str, new: str) -> None:
        """Give an object another name, replacing what was there."""

    def delete(self, name: str) -> None:
        """Remove one object. Raises NotFound."""

    def scan(self, name: str) -> list[Listed]:
        """The names in a directory, in no order; none when there is no such directory."""

    def subdirectories(self, name: str, mark: str) -> Sequence[Subdirectory]:
        """The directories in a directory, each with whether it holds an object named `mark`.

        In no order; none when there is no such directory.
        """

    def walk(self, name: str, after: str = "") -> Iterator[Walked]:
        """The objects below a directory, in the storage's own order; with `after`, from there on.

        `after` need not exist. Chunks are in order of digest. Lazy: on S3 a request for each
        thousand. Directories without an object do not appear;
        objects stored or removed meanwhile may.
        """

    def mkdir(self, name: str, *, durable: bool = False) -> bool:
        """Make a directory and its parents; False when it is known to have been there."""

    def rmdir(self, name: str) -> bool:
        """Remove a directory if it is empty; False when it is not. True when there was none."""

    def remove_tree(self, name: str) -> None:
        """Remove a directory with all in it, following no symlink.

        Does nothing when there is none.
        """

    def sync(self) -> None:
        """Return when everything written so far is on disk (`syncfs`)."""

    def lock(
        self, name: str, lock_names: Sequence[str], *, exclusive: bool, timeout_s: float = 0
    ) -> Lock:
        """Lock the existing directory or object `name`, against threads and processes alike.

        `lock_names` are the names a PBS on the same host uses for this lock, below its own
        lock directory.

        Raises:
            Locked: not had within `timeout_s`; names the holder where known.
            NotFound: `name` is gone. A storage without directories can't tell: look again at what
                the lock stands for when it is held.
        """

    def forget_lock(self, lock_names: Sequence[str]) -> None:
        """Remove PBS's lock files: the holder has removed what the lock stood for."""

    def lock_store(self, *, exclusive: bool = False) -> Lock:
        """Take the `.lock` of spec 1.6: shared to write an index, exclusive to collect garbage.

        Never waits.

        Raises Locked. Several shared holders in one process do not disturb one another.
        """

    def is_alone(self) -> bool:
        """Whether what nobody has locked is nobody's.

        False while somebody writes whose locks can't be seen from here: a PBS on another host,
        over NFS. Then nothing may be taken for left over.
        """

    def copies(self, name: str) -> Iterator[bytes]:
        """The object as `read` did not give it: other copies, nearest first, for who found it bad.

        A plain storage has none. Those that can't be read are left out.
        """

    def repair(self, name: str, good: Buffer) -> None:
        """Put `good` wherever a copy is missing or another; the other is set aside as `.N.bad`.

        Logs what was repaired, and what could not be: it raises nothing. Does nothing on a plain
        storage.
        """

    def interrupt(self) -> None:
        """Make the calls that other threads are in end soon, with BackendError.

        For who was told to stop and still has to clean up: later calls work.
        """

    def close(self) -> None:
        """Give descriptors back; nothing may be called afterwards."""


class OneCopy:
    """What a storage has that keeps each object once, waits for nothing, and sees all locks."""

    def is_alone(self) -> bool:
        return True

    def copies(self, name: str) -> Iterator[bytes]:
        return iter(())

    def repair(self, name: str, good: Buffer) -> None:
        pass

    def interrupt(self) -> None:
        pass


def storage_error(error: OSError, path: str) -> StoreError:
    """The StoreError that says what `error` means for `path`, to be raised `from` it."""
    message = f"{path}: {error.strerror or error}"
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return NotFound(message)
        case errno.EEXIST:
            return AlreadyExists(message)
        case errno.EACCES | errno.EPERM:
            return PermissionDenied(message)
        case errno.ENOSPC | errno.EDQUOT:
            return OutOfSpace(message)
        case errno.ENAMETOOLONG:
            return InvalidName(message)
    return BackendError(message, retryable=error.errno in RETRYABLE)
