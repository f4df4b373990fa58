"""A FUSE file system that does nothing: one file, `f`, whose reads are slices of memory. The limit
of our mount.

usage: empty_fuse.py MOUNTPOINT SIZE
"""

import errno
import os
import stat
import sys
from typing import Any

import pyfuse3
import trio

CHUNK = 4 << 20
FILE_INODE = 2
TIMEOUT_S = 300


class EmptyFile(pyfuse3.Operations):
    """Slices of sixteen random chunks, for ever."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.chunks = [memoryview(os.urandom(CHUNK)) for _ in range(16)]

    async def getattr(self, inode: int, ctx: Any = None) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        is_root = inode == pyfuse3.ROOT_INODE
        entry.st_ino = inode
        entry.st_mode = stat.S_IFDIR | 0o755 if is_root else stat.S_IFREG | 0o644
        entry.st_size = 0 if is_root else self.size
        entry.st_nlink = 1
        entry.attr_timeout = entry.entry_timeout = TIMEOUT_S
        return entry

    async def lookup(self, parent: int, name: bytes, ctx: Any = None) -> pyfuse3.EntryAttributes:
        if name != b"f":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(FILE_INODE)

    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=inode)

    async def read(self, fh: int, offset: int, size: int) -> memoryview | bytes:
        size = min(size, self.size - offset)
        number, start = divmod(offset, CHUNK)
        part = self.chunks[number % len(self.chunks)][start : start + size]
        return (
            part
            if len(part) == size
            else bytes(part) + await self.read(fh, offset + len(part), size - len(part))
        )


def main() -> None:
    mountpoint, size = sys.argv[1], int(sys.argv[2])
    pyfuse3.init(EmptyFile(size), mountpoint, set(pyfuse3.default_options) | {"fsname=empty"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main()
