"""How deep trees are walked with few descriptors: the outer ones are closed, and found again."""

import errno
import os

Inode = tuple[int, int]
"""st_dev and st_ino."""

OPEN_DIRECTORIES = 256
"""The innermost directories of which descriptors are kept, however deep the tree is."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def inode_of_file(file: int) -> Inode:
    """What an open file is."""
    info = os.fstat(file)
    return info.st_dev, info.st_ino


def open_parent(directory: int, inode: Inode) -> int:
    """Open the directory around an open one. Raises OSError, also when it is not `inode`."""
    parent = os.open("..", _DIRECTORY, dir_fd=directory)
    if inode_of_file(parent) != inode:
        os.close(parent)
        raise FileNotFoundError(errno.ENOENT, "is in another directory now")
    return parent
