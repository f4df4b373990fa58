"""A file system of one file, `f`, that answers some requests in every way a handler can.

usage: one_file.py MOUNTPOINT

The handlers for lseek and fallocate go by the offset: at 0 the answer comes at once, at 1 later, at
2 never, at 3 the handler fails, at 4 it is ENOSPC. Reads likewise, by blocks of 4 KiB: what comes
at once is a `d` in each byte, what comes later (at 1 and 2) is pyfuse3's, `p`.
"""

import errno
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from fsgateway import extra_handlers  # isort: skip - before pyfuse3
import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, InodeT, ModeT

from fsgateway.waiting import Activity

FILE, SIZE, BLOCK = InodeT(2), 1 << 20, 4096
nursery: Any = None


class OneFile(pyfuse3.Operations):
    async def getattr(self, inode: InodeT, ctx: object = None) -> EntryAttributes:
        attributes = EntryAttributes()
        attributes.st_ino = inode
        attributes.st_mode = ModeT(0o100666 if inode == FILE else 0o40755)
        attributes.st_size = SIZE if inode == FILE else 0
        return attributes

    async def lookup(self, parent_inode: InodeT, name: bytes, ctx: object) -> EntryAttributes:
        if name != b"f":
            raise FUSEError(errno.ENOENT)
        return await self.getattr(FILE)

    async def open(self, inode: InodeT, flags: int, ctx: object) -> FileInfo:
        return FileInfo(fh=pyfuse3.FileHandleT(77), direct_io=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return b"p" * size


def answer(request: Any, offset: int, reply: Any) -> None:
    async def later() -> None:
        await trio.sleep(0.1)
        reply()

    match offset:
        case 0:
            reply()
        case 1:
            nursery.start_soon(later)
        case 3:
            raise ValueError("injected")
        case 4:
            request.reply_error(errno.ENOSPC)


def lseek(request: Any, inode: int, handle: int, offset: int, whence: int) -> None:
    assert (inode, handle) == (FILE, 77)
    answer(request, offset, lambda: request.reply_offset(1000 * whence + offset))


def fallocate(request: Any, inode: int, handle: int, mode: int, offset: int, length: int) -> None:
    assert (inode, handle) == (FILE, 77)
    right = (mode, length) == (3, 4096)  # punch a hole, keep the size
    answer(request, offset, lambda: request.reply_error(0 if right else errno.EINVAL))


def read(handle: int, offset: int, size: int) -> bytes | int | None:
    assert handle == 77
    match offset // BLOCK:
        case 0:
            return b"d" * size
        case 3:
            raise ValueError("injected")
        case 4:
            return errno.ENOSPC
    return None


async def main() -> None:
    global nursery
    async with trio.open_nursery() as nursery:
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


extra_handlers.set_handler("lseek", lseek)
extra_handlers.set_handler("fallocate", fallocate)
extra_handlers.set_direct_handlers({"read": read}, lambda _: errno.EIO, set(), Activity(), (0, 0))
pyfuse3.init(OneFile(), sys.argv[1], {"fsname=one-file"})
try:
    trio.run(main)
finally:
    pyfuse3.close()
