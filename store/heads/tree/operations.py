"""HeadTree: a tree archive of a head as Tree promises it."""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, NoReturn, ParamSpec, TypeVar

from store.format.buffer import Buffer
from store.heads.base import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    DirectoryEntry,
    FileSystemStatus,
    WouldWait,
)
from store.heads.tree import acl, files
from store.heads.tree.below import ROOT, Base
from store.heads.tree.inodes import ACCESS_ACL, CAPABILITY, DEFAULT_ACL, NO_BASE, Inode
from store.heads.tree.listings import listing
from store.heads.tree.table import Table

if TYPE_CHECKING:
    from store.heads.journal import Journal

P = ParamSpec("P")
T = TypeVar("T")
MAX_NAME = 255
MAX_TARGET = 4095
MAX_LINKS = 1 << 16
MAX_XATTR_NAME, MAX_XATTR_VALUE, MAX_XATTRS = 255, 65536, 1 << 20
PAGE = 128
RENAME_FLAGS = {
    0,
    RENAME_NOREPLACE,
    RENAME_EXCHANGE,
    RENAME_WHITEOUT,
    RENAME_NOREPLACE | RENAME_WHITEOUT,
}
OTHER_XATTRS = (CAPABILITY, b"security.NTACL", ACCESS_ACL, DEFAULT_ACL)


def fail(number: int) -> NoReturn:
    """Raise the OSError of this errno."""
    raise OSError(number, os.strerror(number))


def _check_name(name: bytes) -> None:
    if len(name) > MAX_NAME:
        fail(errno.ENAMETOOLONG)
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        fail(errno.EINVAL)


class HeadTree:
    """A Tree over a Table. Every operation is whole under the journal's lock."""

    root = ROOT

    def __init__(self, table: Table) -> None:
        self.table = table
        self.journal: Journal = table.journal
        self._lock = table.journal.lock
        self._changing = _Changing(self)
        self._freeing = _Changing(self, frees=True)

    @property
    def base(self) -> Base | None:
        return self.table.base

    def at_once(self, operation: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        if not self._lock.acquire(blocking=False):
            raise WouldWait
        hurry = self.journal.hurry
        hurry.now = True
        try:
            return operation(*arguments, **named)
        finally:
            hurry.now = False
            self._lock.release()

    # Looking

    def at_hand(self, number: int) -> Inode:
        inode = self.table.at_hand(number)
        if inode is None:
            raise WouldWait
        return inode

    def find(self, parent: int, name: bytes) -> Inode | None:
        with self._lock:
            directory = self._directory(parent)
            if len(name) > MAX_NAME:
                fail(errno.ENAMETOOLONG)
            number = self.table.find(directory, name)
            if not number:
                return None
            inode = self.table.get(number)
            if inode.is_directory:
                inode.parent = parent
            return inode

    def getattr(self, number: int) -> Inode:
        with self._lock:
            return self.table.get(number)

    def lookup(self, parent: int, name: bytes) -> Inode:
        with self._lock:
            if name == b"..":
                return self.table.get(self.parent(parent))
            if name == b".":
                return self._directory(parent)
            inode = self.find(parent, name)
            if inode is None:
                fail(errno.ENOENT)
            return inode

    def iterate(self, directory: int, after: int = 0) -> Iterator[DirectoryEntry]:
        while page := self.listing(directory, after):
            yield from page
            after = page[-1].cookie

    def listing(self, directory: int, after: int = 0, count: int = PAGE) -> list[DirectoryEntry]:
        with self._lock:
            found = self._directory(directory)
            return list(islice(listing(self.table, found, after), count))

    def parent(self, directory: int) -> int:
        with self._lock:
            inode = self._directory(directory)
            if directory == ROOT:
                return ROOT
            if not inode.parent:
                assert self.table.base is not None
                inode.parent = self.table.number_of(self.table.base.parent(inode.base))
            return inode.parent

    def readlink(self, number: int) -> bytes:
        with self._lock:
            inode = self.table.get(number)
            if not stat.S_ISLNK(inode.mode):
                fail(errno.EINVAL)
            return inode.target

    # Making and removing names

    def create(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, *, holds: int = 0
    ) -> Inode:
        with self._changing:
            directory = self._free(parent, name)
            inode = self._new(directory, stat.S_IFREG | stat.S_IMODE(mode), uid, gid)
            self._enter(directory, name, inode)
            if holds:
                self.table.held[inode.number] = holds
            return inode

    def create_unlinked(self, parent: int, mode: int, uid: int, gid: int) -> Inode:
        with self._changing:
            directory = self._directory(parent)
            inode = self._new(directory, stat.S_IFREG | stat.S_IMODE(mode), uid, gid)
            inode.nlink = 0
            self.hold(inode.number)
            return inode

    def mkdir(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Inode:
        with self._changing:
            directory = self._free(parent, name)
            inode = self._new(directory, stat.S_IFDIR | stat.S_IMODE(mode), uid, gid)
            inode.nlink, inode.parent = 2, parent
            self.table.fill(inode)
            self._enter(directory, name, inode)
            self._count_directory(directory, 1)
            return inode

    def mknod(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0
    ) -> Inode:
        with self._changing:
            if stat.S_IFMT(mode) in (stat.S_IFDIR, stat.S_IFLNK):
                fail(errno.EINVAL)
            directory = self._free(parent, name)
            if not stat.S_IFMT(mode):
                mode |= stat.S_IFREG
            inode = self._new(directory, mode, uid, gid)
            if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
                inode.rdev = rdev
            self._enter(directory, name, inode)
            return inode

    def symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Inode:
        with self._changing:
            if not target:
                fail(errno.ENOENT)
            if len(target) > MAX_TARGET:
                fail(errno.ENAMETOOLONG)
            directory = self._free(parent, name)
            inode = self._new(directory, stat.S_IFLNK | 0o777, uid, gid)
            inode.target, inode.size = bytes(target), len(target)
            self._enter(directory, name, inode)
            return inode

    def link(self, number: int, parent: int, name: bytes) -> Inode:
        with self._changing:
            inode = self.table.get(number)
            if inode.is_directory:
                fail(errno.EPERM)
            directory = self._free(parent, name)
            if not inode.nlink and number not in self.table.held:
                fail(errno.ENOENT)
            if inode.nlink >= MAX_LINKS:
                fail(errno.EMLINK)
            self.table.change(inode)
            inode.nlink += 1
            inode.ctime_ns = time.time_ns()
            self._enter(directory, name, inode)
            return inode

    def unlink(self, parent: int, name: bytes) -> None:
        with self._freeing:
            directory, inode = self._found(parent, name)
            if inode.is_directory:
                fail(errno.EISDIR)
            self._leave(directory, name)
            self._drop_name(inode)

    def rmdir(self, parent: int, name: bytes) -> None:
        with self._freeing:
            if name == b".":
                fail(errno.EINVAL)
            if name == b"..":
                fail(errno.ENOTEMPTY)
            directory, inode = self._found(parent, name)
            self._check_empty(inode)
            self._leave(directory, name)
            self._count_directory(directory, -1)
            self._drop_directory(inode)

    def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int = 0,
        *,
        uid: int = 0,
        gid: int = 0,
    ) -> None:
        with self._changing:
            if flags not in RENAME_FLAGS:
                fail(errno.EINVAL)
            old, inode = self._found(parent, name)
            new = self._directory(new_parent)
            _check_name(new_name)
            self._check_not_within(inode, new_parent)
            number = self.table.find(new, new_name)
            if flags == RENAME_EXCHANGE:
                self._exchange(old, name, inode, new, new_name, number)
                return
            if number and flags & RENAME_NOREPLACE:
                fail(errno.EEXIST)
            if number == inode.number:
                return
            if number:
                self._replace(inode, new, self.table.get(number))
            self._leave(old, name)
            self._arrive(inode, old, new)
            self._enter(new, new_name, inode)
            if flags & RENAME_WHITEOUT:
                self._enter(old, name, self.table.new(stat.S_IFCHR, uid, gid, time.time_ns()))

    def _exchange(
        self, old: Inode, name: bytes, inode: Inode, new: Inode, new_name: bytes, number: int
    ) -> None:
        if not number:
            fail(errno.ENOENT)
        other = self.table.get(number)
        self._check_not_within(other, old.number)
        if other is inode:
            return
        self._enter(old, name, other)
        self._enter(new, new_name, inode)
        self._arrive(inode, old, new)
        self._arrive(other, new, old)

    def _replace(self, inode: Inode, new: Inode, other: Inode) -> None:
        """Take away what a rename replaces."""
        if other.is_directory:
            if not inode.is_directory:
                fail(errno.EISDIR)
            self._check_empty(other)
            self._count_directory(new, -1)
            self._drop_directory(other)
        else:
            if inode.is_directory:
                fail(errno.ENOTDIR)
            self._drop_name(other)

    def _arrive(self, inode: Inode, old: Inode, new: Inode) -> None:
        """An inode changes its directory, or its name there."""
        self.table.change(inode)
        inode.ctime_ns = time.time_ns()
        if inode.is_directory:
            inode.parent = new.number
            if old is not new:
                self._count_directory(old, -1)
                self._count_directory(new, 1)

    def _check_not_within(self, inode: Inode, directory: int) -> None:
        """Raise EINVAL if a directory would go into itself."""
        if not inode.is_directory:
            return
        while True:
            if directory == inode.number:
                fail(errno.EINVAL)
            if directory == ROOT:
                return
            directory = self.parent(directory)

    def _new(self, directory: Inode, mode: int, uid: int, gid: int) -> Inode:
        """A new inode to be put into a directory, with what it inherits."""
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        inode = self.table.new(mode, uid, gid, time.time_ns())
        if directory.xattrs and DEFAULT_ACL in directory.xattrs and not stat.S_ISLNK(mode):
            default = directory.xattrs[DEFAULT_ACL]
            access, inode.mode = acl.inherited(default, mode)
            if access is not None:
                inode.xattrs[ACCESS_ACL] = access
            if stat.S_ISDIR(mode):
                inode.xattrs[DEFAULT_ACL] = default
        return inode

    def _directory(self, number: int) -> Inode:
        inode = self.table.get(number)
        if inode.mode & 0o170000 != 0o040000:
            fail(errno.ENOTDIR)
        return inode

    def _free(self, parent: int, name: bytes) -> Inode:
        """The directory, which has no such name. Raises EEXIST, ENOENT (it is removed)."""
        directory = self._directory(parent)
        if name in (b".", b".."):
            fail(errno.EEXIST)
        _check_name(name)
        if not directory.nlink:
            fail(errno.ENOENT)
        if self.table.find(directory, name):
            fail(errno.EEXIST)
        return directory

    def _found(self, parent: int, name: bytes) -> tuple[Inode, Inode]:
        """The directory, and what its name means. Raises ENOENT."""
        directory = self._directory(parent)
        _check_name(name)
        number = self.table.find(directory, name)
        if not number:
            fail(errno.ENOENT)
        inode = self.table.get(number)
        if inode.is_directory:
            inode.parent = parent
        return directory, inode

    def _enter(self, directory: Inode, name: bytes, inode: Inode) -> None:
        self.table.change(directory)
        directory.mtime_ns = directory.ctime_ns = time.time_ns()
        self.table.set_name(directory, bytes(name), inode.number)

    def _leave(self, directory: Inode, name: bytes) -> None:
        self.table.change(directory)
        directory.mtime_ns = directory.ctime_ns = time.time_ns()
        self.table.set_name(directory, bytes(name), 0)

    def _count_directory(self, directory: Inode, change: int) -> None:
        """Count a subdirectory where they are counted: a base's are not, it has one link."""
        if directory.nlink >= 2:
            directory.nlink += change

    def _drop_name(self, inode: Inode) -> None:
        self.table.change(inode)
        inode.nlink -= 1
        inode.ctime_ns = time.time_ns()
        if not inode.nlink and inode.number not in self.table.held:
            self.table.remove(inode)

    def _drop_directory(self, inode: Inode) -> None:
        self.table.change(inode)
        inode.nlink, inode.base = 0, NO_BASE
        self.table.fill(inode)
        if inode.number not in self.table.held:
            self.table.remove(inode)

    def _check_empty(self, inode: Inode) -> None:
        if not inode.is_directory:
            fail(errno.ENOTDIR)
        if next(listing(self.table, inode, 0), None) is not None:
            fail(errno.ENOTEMPTY)

    # Attributes

    def setattr(
        self,
        number: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
    ) -> Inode:
        with self._freeing:
            inode = self.table.get(number)
            if size is not None:
                files.prepare(self.table, inode, size, size)
            self.table.change(inode)
            if size is not None:
                files.truncate(self.table, inode, size)
            if mode is not None:
                self._set_mode(inode, stat.S_IMODE(mode))
            inode.uid = inode.uid if uid is None else uid
            inode.gid = inode.gid if gid is None else gid
            inode.atime_ns = inode.atime_ns if atime_ns is None else atime_ns
            inode.mtime_ns = inode.mtime_ns if mtime_ns is None else mtime_ns
            inode.ctime_ns = time.time_ns() if ctime_ns is None else ctime_ns
            return inode

    def _set_mode(self, inode: Inode, mode: int) -> None:
        inode.mode = stat.S_IFMT(inode.mode) | mode
        access = inode.xattrs.get(ACCESS_ACL) if inode.xattrs else None
        if access is not None:
            inode.xattrs[ACCESS_ACL] = acl.encode(acl.with_mode(acl.parse(access), mode))

    def getxattr(self, number: int, name: bytes) -> bytes:
        with self._lock:
            value = self.table.get(number).xattrs.get(name)
            if value is None:
                fail(errno.ENODATA)
            return value

    def listxattr(self, number: int) -> list[bytes]:
        with self._lock:
            return list(self.table.get(number).xattrs)

    def setxattr(self, number: int, name: bytes, value: bytes, flags: int = 0) -> None:
        with self._changing:
            inode = self.table.get(number)
            self._check_xattr(inode, name, value, flags)
            if name in (ACCESS_ACL, DEFAULT_ACL):
                self._set_acl(inode, name, value)
            else:
                inode.xattrs[bytes(name)] = bytes(value)
            self.table.change(inode)
            inode.ctime_ns = time.time_ns()

    def _check_xattr(self, inode: Inode, name: bytes, value: bytes, flags: int) -> None:
        if not name.startswith((b"user.", b"trusted.")) and name not in OTHER_XATTRS:
            fail(errno.EOPNOTSUPP)  # a snapshot has no room for it
        if name in (b"user.", b"trusted."):
            fail(errno.EINVAL)
        if not name or len(name) > MAX_XATTR_NAME:
            fail(errno.ERANGE)
        if len(value) > MAX_XATTR_VALUE:
            fail(errno.E2BIG)
        others = sum(len(key) + len(there) for key, there in inode.xattrs.items() if key != name)
        if others + len(name) + len(value) > MAX_XATTRS:
            fail(errno.ENOSPC)
        if flags & os.XATTR_CREATE and name in inode.xattrs:
            fail(errno.EEXIST)
        if flags & os.XATTR_REPLACE and name not in inode.xattrs:
            fail(errno.ENODATA)

    def _set_acl(self, inode: Inode, name: bytes, value: bytes) -> None:
        if stat.S_ISLNK(inode.mode):
            fail(errno.EOPNOTSUPP)
        if name == DEFAULT_ACL and not inode.is_directory:
            fail(errno.EACCES)
        entries = acl.parse(value)
        if name == ACCESS_ACL:
            inode.mode = acl.mode_of(entries, inode.mode)
            if acl.is_minimal(entries):
                inode.xattrs.pop(name, None)
                return
        inode.xattrs[name] = bytes(value)

    def removexattr(self, number: int, name: bytes) -> None:
        with self._freeing:
            inode = self.table.get(number)
            if name not in inode.xattrs:
                if name in (ACCESS_ACL, DEFAULT_ACL):
                    return  # without one the mode is the ACL
                fail(errno.ENODATA)
            self.table.change(inode)
            del inode.xattrs[name]
            inode.ctime_ns = time.time_ns()

    # Content

    def read(self, number: int, offset: int, size: int) -> bytes:
        with self._lock:
            pieces, entry, base = files.plan(self.table, self._file(number), offset, size)
        return files.fetch(self.journal, pieces, entry, base)

    def write(self, number: int, offset: int, data: Buffer) -> int:
        self.journal.admit(len(data))
        with self._changing:
            return files.write(self.table, self._file(number), offset, data)

    def room(self) -> int:
        return self.journal.room()

    def complete(
        self,
        number: int,
        data: Buffer,
        mode: int,
        uid: int,
        gid: int,
        atime_ns: int,
        mtime_ns: int,
        ctime_ns: int,
        *,
        releases: bool = False,
    ) -> None:
        self.journal.count(len(data))
        with self._lock:
            try:
                inode = self.table.get(number)
                self.table.change(inode)
                if data:
                    files.begin(self.table, inode, data)
                inode.mode, inode.uid, inode.gid = mode, uid, gid
                inode.atime_ns, inode.mtime_ns, inode.ctime_ns = atime_ns, mtime_ns, ctime_ns
            except Exception as error:
                self.journal.give_up(error)
                raise
            if releases:
                self.release(number)

    def append(self, number: int, data: Buffer) -> int:
        self.journal.admit(len(data))
        with self._changing:
            inode = self._file(number)
            offset = inode.size
            files.write(self.table, inode, offset, data)
            return offset

    def fallocate(self, number: int, offset: int, length: int, mode: int = 0) -> None:
        with self._changing:
            files.fallocate(self.table, self._file(number), offset, length, mode)

    def seek(self, number: int, offset: int, whence: int) -> int:
        with self._lock:
            return files.seek(self.table, self._file(number), offset, whence)

    def _file(self, number: int) -> Inode:
        inode = self.table.get(number)
        if inode.mode & 0o170000 != 0o100000:
            fail(errno.EISDIR if inode.is_directory else errno.EINVAL)
        return inode

    # Being open

    def hold(self, number: int) -> None:
        with self._lock:
            held = self.table.held
            held[number] = held.get(number, 0) + 1

    def release(self, number: int) -> None:
        with self._lock:
            held = self.table.held
            left = held.get(number, 0) - 1
            if left > 0:
                held[number] = left
                return
            held.pop(number, None)
            if left == 0:
                inode = self.table.get(number)
                if not inode.nlink:
                    self.table.remove(inode)

    def sync(self, number: int | None = None, *, data_only: bool = False) -> None:
        if self.journal.hurry.now:
            raise WouldWait
        self.journal.sync()

    def statfs(self) -> FileSystemStatus:
        return files.status(self.table)


class _Changing:
    """The lock, with room for what changes. An operation in it is whole or not there.

    What `frees` room goes on when the disk is full.
    """

    __slots__ = ("_admit", "_lock", "_make_room")

    def __init__(self, tree: HeadTree, *, frees: bool = False) -> None:
        self._admit = tree.journal.check if frees else tree.journal.admit
        self._lock, self._make_room = tree._lock, tree.table.make_room

    def __enter__(self) -> None:
        self._admit()
        self._lock.acquire()
        try:
            self._make_room()
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        self._lock.release()
