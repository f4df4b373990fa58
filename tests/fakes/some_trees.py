"""A file system of directories of trees, whose listings are answered in every way there is.

usage: some_trees.py MOUNTPOINT TOLD

Its root has a directory for each member of `Way`. TOLD gets a line for each call of `told`.
"""

import errno
import sys
from enum import IntEnum
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from fsgateway import extra_handlers  # isort: skip - before pyfuse3

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FUSEError, InodeT, ModeT

from fsgateway.attributes import Presentation
from fsgateway.inodes import MAX_OFFSET, entry_inode
from fsgateway.listings import Listing
from store.format.pxar.entries import Entry, EntryKind, encode_stat
from store.format.pxar.hardlinks import Links
from store.format.pxar.packed import pack, pack_all

COUNT = 3000
PAST_THE_LAST_NUMBER = 1 << 50


class Way(IntEnum):
    """How a listing is answered; also the directory's number."""

    AT_ONCE = 1
    LATER = 2
    NEVER = 3
    FAILING = 4
    REFUSED = 5
    DAMAGED = 6
    TOO_FAR = 7
    NO_TREE = MAX_OFFSET  # the root of the next tree


def inode_of(way: Way) -> InodeT:
    return entry_inode(way // MAX_OFFSET, way % MAX_OFFSET)


def child(number: int) -> Entry:
    kind = EntryKind.FILE if number % 3 else EntryKind.DIRECTORY
    mode = 0o100640 if number % 3 else 0o40750
    metadata = encode_stat(mode, 0, 1000 + number, 7, 1_600_000_000 + number, 5)
    return Entry(b"%06d" % number, kind, 100 + number, 5000 + number, metadata, size=number)


CHILDREN = Listing(pack_all(map(child, range(COUNT))))
LINKS = Links([101, 101, 104])
nursery: Any = None


class SomeTrees(pyfuse3.Operations):
    supports_dot_lookup = False

    async def getattr(self, inode: InodeT, ctx: object = None) -> EntryAttributes:
        attributes = EntryAttributes()
        attributes.st_ino = inode
        attributes.st_mode = ModeT(0o40755)
        return attributes

    async def lookup(self, parent_inode: InodeT, name: bytes, ctx: object) -> EntryAttributes:
        if name.decode() not in Way.__members__:
            raise FUSEError(errno.ENOENT)
        return await self.getattr(inode_of(Way[name.decode()]))

    async def opendir(self, inode: InodeT, ctx: object) -> pyfuse3.FileHandleT:
        return pyfuse3.FileHandleT(1)

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        ways = [*Way]
        for position in range(start_id, len(ways)):
            attributes = await self.getattr(inode_of(ways[position]))
            name = ways[position].name.encode()
            if not pyfuse3.readdir_reply(token, name, attributes, position + 1):
                break

    async def releasedir(self, fh: int) -> None:
        pass


def read(request: Any, inode: int) -> None:
    def reply() -> None:
        request.reply_listing(CHILDREN.packed, CHILDREN.starts, LINKS.targets)

    async def later() -> None:
        await trio.sleep(0.1)
        reply()

    match Way(inode % (1 << 62)):
        case Way.AT_ONCE:
            reply()
        case Way.LATER:
            nursery.start_soon(later)
        case Way.FAILING:
            raise ValueError("injected")
        case Way.REFUSED:
            request.reply_error(errno.ENOSPC)
        case Way.DAMAGED:
            request.reply_listing(CHILDREN.packed[:-1], CHILDREN.starts, LINKS.targets)
        case Way.TOO_FAR:
            far = Listing(pack(Entry(b"x", EntryKind.FIFO, PAST_THE_LAST_NUMBER, 0, b"")))
            request.reply_listing(far.packed, far.starts, LINKS.targets)
        case Way.NO_TREE:
            request.reply_error(errno.EACCES)


def told(inode: int, count: int, directories: list[tuple[int, int]]) -> None:
    with Path(sys.argv[2]).open("a", encoding="ascii") as log:
        numbers = " ".join(f"{each % MAX_OFFSET}-{end}" for each, end in directories)
        print(inode % MAX_OFFSET, count, numbers, file=log)


async def main() -> None:
    global nursery
    async with trio.open_nursery() as nursery:
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    extra_handlers.set_listing(read, told, Presentation(0, 0, None, 8, 0o027), 3600.0)
    pyfuse3.init(SomeTrees(), sys.argv[1], {"fsname=some-trees"})
    try:
        trio.run(main)
    finally:
        pyfuse3.close()
