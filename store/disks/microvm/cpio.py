"""Writes the archive a Linux kernel unpacks as its first root directory. Pure.

Source: linux Documentation/driver-api/early-userspace/buffer-format.rst (newc).
"""

import stat
from collections.abc import Iterable, Iterator

_MAGIC = b"070701"
_TRAILER = b"TRAILER!!!"
_ALIGNMENT = 4

File = tuple[str, int, bytes]


def encode_cpio(files: Iterable[File]) -> bytes:
    """The archive, not compressed: unpacking costs an emulated processor more than copying.

    Args:
        files: (path, mode, content); a path's directory comes before it. Directories have no
            content.
    """
    return b"".join(_pieces(files))


def directory(path: str) -> File:
    """An empty directory."""
    return path, stat.S_IFDIR | 0o755, b""


def regular(path: str, content: bytes, permissions: int = 0o644) -> File:
    """A file."""
    return path, stat.S_IFREG | permissions, content


def _pieces(files: Iterable[File]) -> Iterator[bytes]:
    number = 0
    for number, (path, mode, content) in enumerate(files, 1):
        yield from _member(number, path.encode(), mode, content)
    yield from _member(number + 1, _TRAILER, 0, b"")


def _member(number: int, path: bytes, mode: int, content: bytes) -> Iterator[bytes]:
    """Header, name and content, the last two padded to four bytes."""
    name = path + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name, checksum
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields)
    yield _padded(header + name)
    yield _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
