"""Requests of a head's trees that are answered at once, without an event loop: see _fuse_direct.c.

Each function does what the handler of that name in operations.py does when nothing has to wait, or
nothing at all: then it returns None, or raises WouldWait, and that handler is called.
"""

import errno
from struct import Struct
from typing import TYPE_CHECKING

from fsgateway import extra_handlers
from fsgateway.attributes import IMMUTABLE_S
from fsgateway.bridge import as_fuse_error
from fsgateway.handles import HandleTable
from fsgateway.inodes import HEAD, MAX_OFFSET, MAX_TREES, OFFSET_BITS, PXAR
from fsgateway.waiting import Activity
from fsgateway.writing.files import FIRST_HANDLE, TreeFile, WritableFile
from fsgateway.writing.trees import HeadTrees
from store.format.buffer import Buffer
from store.heads import DEFAULT_ACL, Attributes, Tree, WouldWait

if TYPE_CHECKING:
    from collections.abc import Callable

SHOWN = Struct("<QIIIIQQQqqqd")
NO_SUCH_NAME = SHOWN.pack(*[0] * 11, IMMUTABLE_S)
PLACE = (MAX_TREES - 1) << OFFSET_BITS | HEAD
NUMBER = MAX_OFFSET - 1

Answer = bytes | int | None
"""A packed inode, an errno (0: done), or that somebody else has to answer."""


class DirectHandlers:
    """What the C module calls."""

    def __init__(
        self,
        trees: HeadTrees,
        files: HandleTable[WritableFile],
        read_snapshot: "Callable[[int, int, int], Buffer | None]",
    ) -> None:
        """`read_snapshot` reads all other files (`Reader.read_now`)."""
        self._trees = trees
        self._files = files
        self._read_snapshot = read_snapshot

    def install(self, activity: Activity, *, with_xattrs: bool) -> None:
        """Let them answer in sessions that begin from now on."""
        handlers: dict[str, Callable[..., object]] = {
            "lookup": self.lookup,
            "getattr": self.getattr,
            "setattr": self.setattr,
            "mkdir": self.mkdir,
            "symlink": self.symlink,
            "create": self.create,
            "unlink": self.unlink,
            "rmdir": self.rmdir,
            "read": self.read,
            "write": self.write,
            "release": self.release,
            "complete": self.complete,
        }
        if with_xattrs:
            handlers["getxattr"] = self.getxattr
        extra_handlers.set_direct_handlers(
            handlers, failed, self._trees.bare, activity, (HEAD, PXAR)
        )

    def lookup(self, parent: int, name: bytes) -> Answer:
        tree = self._trees.tree(parent)
        found = tree.at_once(tree.find, parent & NUMBER, name)
        return NO_SUCH_NAME if found is None else self._told(parent, found)

    def _told(self, sibling: int, found: Attributes) -> bytes:
        inode = sibling & PLACE | found.number
        self._trees.remember(inode)
        return _shown(inode, found)

    def getattr(self, inode: int) -> Answer:
        return _shown(inode, self._trees.tree(inode).at_hand(inode & NUMBER))

    def setattr(
        self,
        inode: int,
        mode: int | None,
        uid: int | None,
        gid: int | None,
        size: int | None,
        atime_ns: int | None,
        mtime_ns: int | None,
        ctime_ns: int | None,
    ) -> Answer:
        tree = self._trees.tree(inode)
        found = tree.at_once(
            tree.setattr,
            inode & NUMBER,
            mode=mode,
            uid=uid,
            gid=gid,
            size=size,
            atime_ns=atime_ns,
            mtime_ns=mtime_ns,
            ctime_ns=ctime_ns,
        )
        return _shown(inode, found)

    def mkdir(self, parent: int, name: bytes, mode: int, umask: int, uid: int, gid: int) -> Answer:
        tree = self._trees.tree(parent)
        mode = _masked(tree, parent & NUMBER, mode, umask)
        return self._told(parent, tree.at_once(tree.mkdir, parent & NUMBER, name, mode, uid, gid))

    def symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Answer:
        tree = self._trees.tree(parent)
        return self._told(
            parent, tree.at_once(tree.symlink, parent & NUMBER, name, target, uid, gid)
        )

    def create(
        self, parent: int, name: bytes, mode: int, umask: int, uid: int, gid: int
    ) -> Answer | tuple[bytes, int, int]:
        tree = self._trees.tree(parent)
        mode = _masked(tree, parent & NUMBER, mode, umask)
        # By the kernel, and as an open file.
        found = tree.at_once(tree.create, parent & NUMBER, name, mode, uid, gid, holds=2)
        inode = parent & PLACE | found.number
        self._trees.remember_new(inode)
        handle = self._files.add(TreeFile(tree, found.number, is_held=True))
        return _shown(inode, found), handle, 0 if found.xattrs else tree.room()

    def unlink(self, parent: int, name: bytes) -> Answer:
        tree = self._trees.tree(parent)
        tree.at_once(tree.unlink, parent & NUMBER, name)
        return 0

    def rmdir(self, parent: int, name: bytes) -> Answer:
        tree = self._trees.tree(parent)
        tree.at_once(tree.rmdir, parent & NUMBER, name)
        return 0

    def read(self, handle: int, offset: int, size: int) -> Buffer | None:
        if handle < FIRST_HANDLE:
            return self._read_snapshot(handle, offset, size)
        return self._files.get(handle).read_now(offset, size)

    def write(self, handle: int, offset: int, data: bytes) -> Answer:
        self._files.get(handle).write_now(offset, data)
        return 0

    def release(self, handle: int) -> Answer:
        file = self._files.get(handle)
        if not isinstance(file, TreeFile):
            return None
        self._files.remove(handle)
        file.close()
        return 0

    def complete(
        self,
        handle: int,
        is_closed: bool,
        data: memoryview,
        mode: int,
        uid: int,
        gid: int,
        atime_ns: int,
        mtime_ns: int,
        ctime_ns: int,
    ) -> Answer:
        """Do to a file that `create` made what was collected since."""
        file = self._files.get(handle)
        assert isinstance(file, TreeFile)
        if is_closed:
            self._files.remove(handle)
        file.complete(data, mode, uid, gid, atime_ns, mtime_ns, ctime_ns, releases=is_closed)
        return 0

    def getxattr(self, inode: int, name: bytes) -> Answer:
        tree = self._trees.tree(inode)
        return tree.at_once(tree.getxattr, inode & NUMBER, name)


def failed(error: BaseException) -> Answer:
    """What to answer after an exception; POSIX' everyday errors are no lines in the log."""
    if isinstance(error, WouldWait):
        return None
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    if isinstance(error, Exception):
        return as_fuse_error(error, "a request").errno
    raise error


def _masked(tree: Tree, parent: int, mode: int, umask: int) -> int:
    """The mode of something new: a default ACL of its directory stands in for the umask."""
    if mode & umask and DEFAULT_ACL not in tree.at_once(tree.listxattr, parent):
        return mode & ~umask
    return mode


def _shown(inode: int, found: Attributes) -> bytes:
    """What the kernel is told, and keeps: nobody else changes a head."""
    return SHOWN.pack(
        inode,
        found.mode,
        found.nlink,
        found.uid,
        found.gid,
        found.rdev,
        found.size,
        found.blocks,
        found.atime_ns,
        found.mtime_ns,
        found.ctime_ns,
        IMMUTABLE_S,
    )
