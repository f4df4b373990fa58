"""Locks of a datastore in a directory: `flock` on paths, a record lock on `.lock`.

PBS 4 locks files below /run/proxmox-backup/locks, PBS 3 the directories themselves. We take both:
the first keeps us and a PBS 4 on this host apart, the second us and a PBS 3, and all processes of
ours, root or not.
"""

import errno
import fcntl
import os
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

from store.backends.base import storage_error
from store.errors import Locked, NotFound

POLL_S = 0.02
LOCK_FILE_MODE = 0o660
BUSY = (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK)


class HeldLocks:
    """Descriptors whose closing gives the lock back; the latest first."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._descriptors = list(descriptors)

    def add(self, descriptor: int) -> None:
        """Hold one more."""
        self._descriptors.append(descriptor)

    def check(self) -> None:
        """The kernel takes none away."""

    confirm = check

    def release(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def lock_path(path: str, *, exclusive: bool, deadline: float) -> int:
    """Lock an existing file or directory with `flock`; the descriptor that holds the lock.

    Whoever removes or replaces `path` holds its lock, so after locking we look whether the path
    still leads to what we locked, and start again if it leads elsewhere.

    Raises Locked after `deadline` (time.monotonic), NotFound when the path is gone, other
    StoreErrors.
    """
    while True:
        descriptor = _open(path)
        try:
            if not _flock(descriptor, exclusive=exclusive):
                if time.monotonic() >= deadline:
                    raise Locked(f"{path} is in use{holder(descriptor)}")
                time.sleep(POLL_S)
            elif os.path.samestat(os.fstat(descriptor), os.stat(path)):
                held, descriptor = descriptor, -1
                return held
        except OSError as error:
            raise storage_error(error, path) from error
        finally:
            if descriptor >= 0:
                os.close(descriptor)


def lock_file(
    base: str, name: str, owner: tuple[int, int] | None, *, exclusive: bool, deadline: float
) -> int:
    """Lock PBS's lock file `name` below `base`, making it and its directories when missing.

    Errors: `lock_path`.
    """
    path = f"{base}/{name}"
    while True:
        try:
            make_lock_file(path, owner)
            return lock_path(path, exclusive=exclusive, deadline=deadline)
        except NotFound:
            continue  # removed between the two steps by its last holder
        except OSError as error:
            raise storage_error(error, path) from error


def make_lock_file(path: str, owner: tuple[int, int] | None) -> None:
    """Make an empty lock file, mode 0660, owner as given, if there is none. Raises OSError."""
    missing = []
    directory = os.path.dirname(path)
    while not os.path.isdir(directory):
        missing.append(directory)
        directory = os.path.dirname(directory)
    for directory in reversed(missing):
        with suppress(FileExistsError):
            os.mkdir(directory, 0o755)
            if owner is not None:
                os.chown(directory, *owner)
    try:
        descriptor = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, LOCK_FILE_MODE
        )
    except FileExistsError:
        return
    with os.fdopen(descriptor, "rb"):
        os.fchmod(descriptor, LOCK_FILE_MODE)
        if owner is not None:
            os.fchown(descriptor, *owner)


def lock_record(path: str, *, exclusive: bool) -> int:
    """Lock `.lock` as PBS does (a record lock, whole file); the descriptor that holds the lock.

    PBS's own kind belongs to the process, and closing any descriptor of the file drops it. The
    open-file-description kind conflicts with it in the same way but belongs to our descriptor
    alone, so nothing else can drop it.

    Raises Locked, NotFound, PermissionDenied, BackendError.
    """
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
    descriptor = _open(path)
    try:
        fcntl.fcntl(
            descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)
        )
    except OSError as error:
        message = f"{path} is held{holder(descriptor)}: " + (
            "backups are running" if exclusive else "garbage collection is running"
        )
        os.close(descriptor)
        if error.errno in BUSY:
            raise Locked(message) from error
        raise storage_error(error, path) from error
    return descriptor


def _open(path: str) -> int:
    """Open for locking: to write where we may (exclusive locks on NFS), else to read."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        try:
            return os.open(path, os.O_RDWR | flags)
        except (IsADirectoryError, PermissionError):
            return os.open(path, os.O_RDONLY | flags)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            return os.open(path, os.O_RDONLY | flags)
    except OSError as error:
        raise storage_error(error, path) from error


def _flock(descriptor: int, *, exclusive: bool) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holder(descriptor: int) -> str:
    """` by process 123 (name)` for an open file, or nothing when the kernel does not tell."""
    try:
        status = os.fstat(descriptor)
        wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        with open("/proc/locks", encoding="ascii") as locks:
            fields = [line.split() for line in locks]
        pids = [int(field[4]) for field in fields if "->" not in field and field[5] == wanted]
        return "".join(f" by process {pid}{_process_name(pid)}" for pid in pids[:1] if pid > 0)
    except (OSError, ValueError, IndexError):
        return ""


def _process_name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
            return f" ({comm.read().strip()})"
    except OSError:
        return ""
