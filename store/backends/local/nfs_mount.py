"""Which file system a directory is on, and what an NFS mount promises: its options, its locks."""

import ctypes
import errno
import os
from dataclasses import dataclass
from pathlib import Path

from store.backends.base import storage_error
from store.errors import BackendError, StoreError

NFS_SUPER_MAGIC = 0x6969
MOUNTINFO = Path("/proc/self/mountinfo")
STATFS_SIZE = 256  # struct statfs has 120 bytes on 64-bit Linux; the type comes first
NO_LOCKS = ("nolock", "local_lock=all", "local_lock=posix")
STALE = "nocto"


@dataclass(frozen=True, slots=True)
class NfsMount:
    """An NFS mount by its options, as /proc/self/mountinfo shows them."""

    options: frozenset[str] = frozenset()

    @property
    def is_soft(self) -> bool:
        """Whether a server that does not answer becomes EIO; on a hard mount calls wait."""
        return not self.options.isdisjoint({"soft", "softerr"})

    @property
    def why_no_locks(self) -> str:
        """Why writers on several hosts are not kept apart, and what to do; "" when they are."""
        for option in NO_LOCKS:
            if option in self.options:
                return (
                    f"it is mounted with {option}, so locks do not reach other hosts; "
                    "mount it without to write"
                )
        if STALE in self.options:
            return f"it is mounted with {STALE}, so what other hosts write is seen too late; " + (
                "mount it without to write"
            )
        return ""

    def error(self, error: OSError, path: str) -> StoreError:
        """The StoreError for `error`: on a soft mount EIO is a time-out, and may be tried again."""
        if self.is_soft and error.errno == errno.EIO:
            message = f"{path}: {error.strerror}; the NFS server may not have answered in time"
            return BackendError(message, retryable=True)
        return storage_error(error, path)


def find_nfs(path: str, mountinfo: Path = MOUNTINFO) -> NfsMount | None:
    """The NFS mount that `path`, or its nearest parent that exists, is on; None for all else.

    Options that mountinfo does not show (a container may hide it) count as not set.
    Raises OSError.
    """
    while not os.path.exists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    if file_system_type(path) != NFS_SUPER_MAGIC:
        return None
    device = os.stat(path).st_dev
    return NfsMount(_options(f"{os.major(device)}:{os.minor(device)}", mountinfo))


def file_system_type(path: str) -> int:
    """The magic number of `statfs`. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    answer = ctypes.create_string_buffer(STATFS_SIZE)
    if libc.statfs(os.fsencode(path), answer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return ctypes.c_long.from_buffer(answer).value


def _options(device: str, mountinfo: Path) -> frozenset[str]:
    """The options of a mount and of its file system, of the line for `device` (`0:30`)."""
    try:
        lines = mountinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        fields = line.split()
        if len(fields) > 9 and fields[2] == device:
            return frozenset(f"{fields[5]},{fields[-1]}".split(","))
    return frozenset()
