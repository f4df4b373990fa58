"""Opening what the walk meets: no symlink followed, nothing blocked on, no access time changed."""

import contextlib
import errno
import os
import stat
from collections.abc import Collection
from pathlib import Path

from store.errors import SourceError
from store.operations.directories import Inode

_CHILD = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OTHER_KIND = frozenset((errno.ELOOP, errno.ENOTDIR, errno.ENXIO))


def open_directory(path: str) -> int:
    """Open the root of a source; a symlink there is followed. Raises SourceError."""
    try:
        with contextlib.suppress(PermissionError):
            return os.open(path, _DIRECTORY | os.O_NOATIME)
        return os.open(path, _DIRECTORY)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error


def open_child(name: bytes, directory: int, flags: int = 0) -> int | None:
    """Open a regular file, or with O_DIRECTORY a directory.

    None when it turns out to be a symlink or socket, or no directory. Raises OSError.
    """
    try:
        return os.open(name, _CHILD | os.O_NOATIME | flags, dir_fd=directory)
    except PermissionError:  # O_NOATIME is for the owner alone
        return os.open(name, _CHILD | flags, dir_fd=directory)
    except BlockingIOError:
        return _open_leased(name, directory)
    except OSError as error:
        if error.errno in _OTHER_KIND:
            return None
        raise


def is_within(path: str, directories: Collection[Inode]) -> bool:
    """Whether a path is one of the directories or lies below one."""
    whole = Path(path).resolve()
    return any(inode_of(place) in directories for place in (whole, *whole.parents))


def inode_of(path: str | Path) -> Inode | None:
    """What a path leads to; None when it leads nowhere."""
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _open_leased(name: bytes, directory: int) -> int | None:
    """Open a file that has a lease (Samba's oplocks): waits until the kernel has broken it.

    Only regular files have leases, and only of those the name is looked up a second time.
    """
    handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return None
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(handle)
