"""A datastore in a directory on NFS: what a local disk promises and NFS does not, made good.

See store/notes/0017-nfs.md for what NFS does, and what is tried again where and why.
"""

import ctypes
import errno
import logging
import os
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from mmap import mmap
from pathlib import Path
from stat import S_ISDIR

from store.backends.base import Lock, storage_error
from store.backends.local.backend import MAP_FROM, LocalBackend
from store.backends.local.create import pbs_user
from store.backends.local.lock_files import HeldLockFile, LockFiles
from store.backends.local.locks import HeldLocks, lock_path
from store.backends.local.nfs_mount import NfsMount, find_nfs
from store.backends.local.reading import open_existing, open_regular, read_rest
from store.backends.local.writing import LocalTemporaryFile, write_at
from store.errors import BackendError, NotFound, PermissionDenied, StoreError
from store.format.buffer import Buffer

log = logging.getLogger(__name__)

ATTEMPTS = 3
PARALLELISM = 8
BLOCK = 1 << 20
MAX_CLOCK_DIFFERENCE_NS = 60 * 10**9
NO_LOCKS = frozenset((errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO))


def open_directory(path: str, *, pbs_lock_directory: str | None = None) -> LocalBackend:
    """The backend for a directory, there or not, by the file system it is on; as LocalBackend.

    Raises StoreError.
    """
    try:
        mount = find_nfs(str(Path(path).absolute()))
    except OSError as error:
        raise storage_error(error, path) from error
    if mount is None:
        return LocalBackend(path, pbs_lock_directory=pbs_lock_directory)
    return NfsBackend(path, mount, pbs_lock_directory=pbs_lock_directory)


class NfsBackend(LocalBackend):
    """A LocalBackend for NFS: safe beside other hosts on the same export."""

    def __init__(
        self, path: str, mount: NfsMount, *, pbs_lock_directory: str | None = None
    ) -> None:
        self._mount = mount
        self._clocks_compared = False
        super().__init__(path, pbs_lock_directory=pbs_lock_directory)

    def __repr__(self) -> str:
        return f"NfsBackend({self._root!r})"

    @property
    def why_no_locks(self) -> str:
        """Why writers on several hosts are not kept apart here; "" when they are."""
        return self._mount.why_no_locks

    @property
    def parallelism(self) -> int:
        return max(PARALLELISM, super().parallelism)

    def _error(self, error: OSError, path: str) -> StoreError:
        return self._mount.error(error, path)

    # What other hosts did

    def _may_change(self, error: OSError, path: str, attempt: int, *, must_be_sure: bool) -> bool:
        """Also when a name is missing that its directory has: looked up from an old memory."""
        if super()._may_change(error, path, attempt, must_be_sure=must_be_sure):
            return True
        if error.errno != errno.ENOENT or not must_be_sure or not self._is_listed(path):
            return False
        if attempt < ATTEMPTS:
            return True
        message = f"{path}: in its directory, but cannot be looked up: try again in a minute"
        raise BackendError(message, retryable=True) from error

    def _is_listed(self, path: str) -> bool:
        """Whether the server has this name: reading a directory asks it, a look-up may not."""
        directory, name = os.path.split(path)
        try:
            return name in os.listdir(directory)
        except FileNotFoundError:
            return len(directory) > len(self._root) and self._is_listed(directory)
        except NotADirectoryError:
            return False
        except OSError as error:
            raise self._error(error, directory) from error

    # Memory that another host cannot take away: a page of a removed file would be SIGBUS

    def _map(self, path: str) -> Buffer:
        with open_regular(path) as (descriptor, size):
            if size < MAP_FROM:
                return read_rest(descriptor, b"", size, path)
            memory = memoryview(scratch_memory(size))
            for offset in range(0, size, BLOCK):
                part = memory[offset : offset + BLOCK]
                if os.preadv(descriptor, [part], offset) != len(part):
                    raise BackendError(f"{path}: shorter than its {size} bytes", retryable=True)
            return memory.toreadonly()

    def create_temporary(self, name: str, temporary: str, size: int = 0) -> LocalTemporaryFile:
        return NfsTemporaryFile(self._files, self._path(name), self._path(temporary), size)

    # Time is the server's

    def _touch(self, path: str) -> int:
        """Set atime by the server's clock, as PBS does: its collector compares with that alone."""
        touch_by_server(path)
        return os.lstat(path).st_size

    def _compare_clocks(self, lock: Lock, asked_ns: int) -> None:
        """Warn once when the server's clock and ours are apart."""
        if self._clocks_compared or not isinstance(lock, HeldLockFile):
            return
        self._clocks_compared = True
        theirs, ours = lock.written_ns, time.time_ns()
        if not asked_ns - MAX_CLOCK_DIFFERENCE_NS <= theirs <= ours + MAX_CLOCK_DIFFERENCE_NS:
            log.warning(
                "%s: the NFS server's clock says %s, this host's %s; set both by NTP, or a garbage "
                "collection may remove what is in use",
                self._root,
                _time(theirs),
                _time(ours),
            )

    # Locks

    def _lock_creation(self) -> Lock:
        files = LockFiles(self._root, pbs_user())
        return self._take(lambda: files.lock("create", exclusive=True, deadline=0), needed=True)

    def _lock(self, held: HeldLocks, name: str, *, exclusive: bool, deadline: float) -> None:
        if self.stat(name) is None:
            raise NotFound(f"{self._path(name)} does not exist")
        asked_ns = time.time_ns()
        lock = self._take(
            lambda: self._lock_files.lock(name, exclusive=exclusive, deadline=deadline),
            needed=exclusive,
        )
        held.add(lock)
        is_directory = self._do(name, lambda path: _see(path, is_ours=exclusive))
        if self._pbs_lock_directory is not None and is_directory:  # PBS 3; this host alone knows
            held.add(lock_path(self._path(name), exclusive=exclusive, deadline=deadline))
        if exclusive:
            self._compare_clocks(lock, asked_ns)

    def lock_store(self, *, exclusive: bool = False) -> Lock:
        return self._take(lambda: self._lock_record(exclusive=exclusive), needed=True)

    def is_alone(self) -> bool:
        return self._is_only_writer()

    def _take(self, take: Callable[[], Lock], *, needed: bool) -> Lock:
        """A lock. Where there are none, readers go without, and writers are refused."""
        reason = self._mount.why_no_locks
        try:
            if not reason:
                return take()
        except OSError as error:
            if error.errno not in NO_LOCKS or self._mount.is_soft:
                raise self._error(error, self._root) from error
            reason = (
                f"the NFS server gives no locks ({error.strerror}): mount it with vers=4.2, or let "
                "rpc.statd run on both sides"
            )
        if needed:
            raise PermissionDenied(f"{self._root} can only be read: {reason}")
        log.info("%s is read without locks: %s", self._root, reason)
        return HeldLocks()


def _see(path: str, *, is_ours: bool) -> bool:
    """Look at what was locked as it is now; whether it is a directory. Raises OSError.

    Opening asks the server. What is ours gets a new mtime there, so that nothing this host knows
    of its contents is taken for new, even where times are coarse (NFSv3).
    """
    descriptor = open_existing(path)
    try:
        is_directory = S_ISDIR(os.fstat(descriptor).st_mode)
        if is_directory and is_ours:
            os.utime(descriptor)
        return is_directory
    finally:
        os.close(descriptor)


class NfsTemporaryFile(LocalTemporaryFile):
    """A TemporaryFile on NFS: what is mapped is memory of our own until `commit`."""

    def _reserve(self, size: int) -> mmap:
        os.lseek(self._descriptor, size, os.SEEK_SET)
        return scratch_memory(size)

    def _flush(self) -> None:
        if self._map is not None:
            with memoryview(self._map) as memory:
                for offset in range(0, len(memory), BLOCK):
                    write_at(self._descriptor, offset, memory[offset : offset + BLOCK])


def scratch_memory(size: int) -> mmap:
    """Zeros; much of it in a file without a name on a local disk, so that it need not be resident.

    The disk is that of TMPDIR, else of /var/tmp. Raises OutOfSpace, BackendError.
    """
    if size < MAP_FROM:
        return mmap(-1, size)
    directory = os.environ.get("TMPDIR", "/var/tmp")  # noqa: S108 - the file has no name
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return mmap(file.fileno(), size)
    except OSError as error:
        raise storage_error(error, directory) from error


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
AT_FDCWD, AT_SYMLINK_NOFOLLOW = -100, 0x100


def touch_by_server(path: str) -> None:
    """Set atime to the file server's now, and leave mtime. Raises OSError."""
    times = (_Timespec * 2)(_Timespec(0, UTIME_NOW), _Timespec(0, UTIME_OMIT))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.utimensat(AT_FDCWD, os.fsencode(path), times, AT_SYMLINK_NOFOLLOW) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)


def _time(ns: int) -> str:
    return datetime.fromtimestamp(ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
