"""Listing and removing directories, as if there were no shadows.

A shadow is what an NFS client makes of a file that is removed while somebody there has it open:
`.nfs…` in the same directory, until it is closed. No name of a datastore begins so.
"""

import errno
import os
from contextlib import suppress

from store.backends.base import Listed

SHADOW = ".nfs"
NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST)


def list_directory(path: str) -> list[Listed]:
    """The names in a directory. Raises OSError."""
    with os.scandir(path) as entries:
        return [
            Listed(entry.name, _is_directory(entry))
            for entry in entries
            if not entry.name.startswith(SHADOW)
        ]


def _is_directory(entry: os.DirEntry[str]) -> bool:
    """Whether it is one or a symlink to one. A symlink that leads nowhere hides no other entry."""
    try:
        return entry.is_dir()
    except OSError:
        if entry.is_symlink():
            return False
        raise


def remove_directory(path: str) -> bool:
    """Remove an empty directory; False when it is not empty. Raises OSError.

    With shadows alone in it, it counts as removed: it stays until they go, and whoever removes it
    again then succeeds.
    """
    try:
        os.rmdir(path)
    except OSError as error:
        if error.errno not in NOT_EMPTY:
            raise
        return not list_directory(path)
    return True


def remove_tree(path: str) -> None:
    """Remove a directory with all in it, but for shadows; follows no symlink. Raises OSError."""
    for _, directories, files, here in os.fwalk(path, topdown=False, onerror=_raise):
        for name in files:
            if not name.startswith(SHADOW):
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=here)
        for name in directories:
            _remove_directory_at(name, here)
    if not remove_directory(path):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)


def _remove_directory_at(name: str, parent: int) -> None:
    try:
        os.rmdir(name, dir_fd=parent)
    except NotADirectoryError:
        os.unlink(name, dir_fd=parent)  # a symlink to one
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in NOT_EMPTY:  # else its parent will not go either, and says so
            raise


def _raise(error: OSError) -> None:
    raise error
