"""Locks of a datastore in a directory: `flock` on paths, a record lock on `.lock`.

PBS 4 locks files below /run/proxmox-backup/locks, PBS 3 the directories themselves. We take both:
the first keeps us and a PBS 4 on this host apart, the second us and a PBS 3, and all processes of
ours, root or not. Locks that reach other hosts are in lock_files.
"""

import errno
import fcntl
import os
import struct
import time
from contextlib import suppress
from typing import Self

from store.backends.base import Lock, storage_error
from store.backends.local.reading import open_existing
from store.errors import Locked, NotFound

POLL_S = 0.02
LOCK_FILE_MODE = 0o660
MAX_CONTENT = 1 << 10
FLOCK = "hhqqi4x"
BUSY = (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK)


class HeldLock:
    """A lock whose descriptor's closing gives it back."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def check(self) -> None:
        """The kernel takes none away."""

    def confirm(self) -> None:
        self.check()

    def release(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class HeldRecordLock(HeldLock):
    """A record lock, which an NFS server may forget."""

    def __init__(self, descriptor: int, kind: int, path: str) -> None:
        """`kind`: F_WRLCK or F_RDLCK. What is in the file now must stay in it."""
        super().__init__(descriptor)
        self._kind, self._path = kind, path
        self._content = self._read()

    @property
    def is_held(self) -> bool:
        return self._descriptor >= 0

    def is_only_holder(self) -> bool:
        """Whether it is known that nobody shares it, by any descriptor but ours. Raises OSError.

        Found out by having it exclusively for a moment: `F_OFD_GETLK` answers "free" over NFSv3
        while we hold a lock, and over NFSv4 while the server delegates the file to us.
        """
        try:
            is_only = set_record_lock(self._descriptor, fcntl.F_WRLCK)
        except OSError:  # opened to read alone, or lost
            return False
        set_record_lock(self._descriptor, self._kind)
        return is_only

    def _read(self) -> bytes:
        return os.pread(self._descriptor, MAX_CONTENT, 0)

    def check(self) -> None:
        """Ask for the lock again: the server says whether it is ours or was lost meanwhile."""
        try:
            is_ours = self._is_ours()
        except OSError:  # what was locked cannot be read any more under a lost lock
            is_ours = False
        if not is_ours:
            raise Locked(f"{self._path}: the lock was lost, and somebody else may have taken it")

    def _is_ours(self) -> bool:
        return set_record_lock(self._descriptor, self._kind) and self._read() == self._content


class HeldLocks:
    """Several locks as one, given back the latest first."""

    def __init__(self) -> None:
        self._locks: list[Lock] = []

    def add(self, lock: Lock) -> None:
        """Hold one more."""
        self._locks.append(lock)

    def check(self) -> None:
        for lock in self._locks:
            lock.check()

    def confirm(self) -> None:
        self.check()

    def release(self) -> None:
        while self._locks:
            self._locks.pop().release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def lock_path(path: str, *, exclusive: bool, deadline: float) -> HeldLock:
    """Lock an existing file or directory with `flock`.

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
                return HeldLock(held)
        except OSError as error:
            raise storage_error(error, path) from error
        finally:
            if descriptor >= 0:
                os.close(descriptor)


def lock_file(
    base: str, name: str, owner: tuple[int, int] | None, *, exclusive: bool, deadline: float
) -> HeldLock:
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


def make_lock_file(path: str, owner: tuple[int, int] | None, mode: int = LOCK_FILE_MODE) -> None:
    """Make an empty lock file, its mode and owner as given, if there is none. Raises OSError."""
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
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "rb"):
        os.fchmod(descriptor, mode)
        if owner is not None:
            os.fchown(descriptor, *owner)


def lock_record(path: str, *, exclusive: bool) -> HeldRecordLock:
    """Lock `.lock` as PBS does (a record lock, whole file), without waiting.

    Raises Locked, NotFound, PermissionDenied; OSError where the file system has no such locks.
    """
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
    descriptor = _open(path)
    try:
        if set_record_lock(descriptor, kind):
            held, descriptor = descriptor, -1
            return HeldRecordLock(held, kind, path)
        raise Locked(
            f"{path} is held{holder(descriptor)}: "
            + ("backups are running" if exclusive else "garbage collection is running")
        )
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def set_record_lock(descriptor: int, kind: int) -> bool:
    """Lock a whole file for this descriptor (`F_OFD_SETLK`); False when somebody else has it.

    PBS's own kind belongs to the process, and closing any descriptor of the file drops it. The
    open-file-description kind conflicts with it in the same way but belongs to our descriptor
    alone, so nothing else can drop it. A second call asks again.

    Raises OSError.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _whole_file(kind))
    except OSError as error:
        if error.errno in BUSY:
            return False
        raise
    return True


def _whole_file(kind: int) -> bytes:
    """A `struct flock`."""
    return struct.pack(FLOCK, kind, os.SEEK_SET, 0, 0, 0)


def _open(path: str) -> int:
    """Open for locking: to write where we may (exclusive locks on NFS), else to read."""
    try:
        try:
            return open_existing(path, os.O_RDWR)
        except (IsADirectoryError, PermissionError):
            return open_existing(path)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            return open_existing(path)
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
