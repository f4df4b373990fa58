"""The FUSE handlers of a writable mount: those of the read-only one, and what heads add.

What is in memory is done on the event loop; what has to wait crosses the bridge to a thread. The
kernel checks permissions, keeps locks, and takes setuid bits away where that is due.
"""

import errno
import os
from collections.abc import Callable, Coroutine
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from fsgateway.attributes import IMMUTABLE_S, Facts, Presentation
from fsgateway.bridge import Bridge, as_fuse_error, guarded, turn_of_the_loop, unanswered
from fsgateway.handles import HandleTable
from fsgateway.inodes import Forgets, is_entry, is_in_head, place_in_head
from fsgateway.operations import WRITING, VaultwayOperations
from fsgateway.reading import Reader
from fsgateway.tree import Directory, Node, TypeNode
from fsgateway.view import View
from fsgateway.writing.direct import DirectHandlers
from fsgateway.writing.files import FIRST_HANDLE, BlobFile, TreeFile, WritableFile
from fsgateway.writing.nodes import CurrentNode, HeadFileNode, HeadImageNode, HeadTreeNode
from fsgateway.writing.open_heads import OpenHeads
from fsgateway.writing.trees import HeadTrees
from store.format.buffer import Buffer
from store.format.pxar.entries import Entry
from store.heads import DEFAULT_ACL, Attributes, Tree, WouldWait
from store.names import BackupGroup

if TYPE_CHECKING:
    from fsgateway._fuse_extra import Request

P = ParamSpec("P")
T = TypeVar("T")

SEAL_CHECK_S = 1.0
# They may wait for room in a journal, or for its disk: nobody who reads snapshots waits with them.
WRITERS = 16
LISTED = 128
"""Names to look at for one answer to readdir."""


def for_head(
    handler: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """As `guarded`, but POSIX' everyday errors are no lines in the log."""

    @wraps(handler)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(*args, **kwargs)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from error

    return guarded(wrapper)


class WritableOperations(VaultwayOperations):
    """A datastore as a file system whose `current/` directories can be written to."""

    def __init__(
        self,
        view: View,
        root: Directory,
        presentation: Presentation,
        bridge: Bridge,
        reader: Reader,
        heads: OpenHeads,
        *,
        enforce_acls: bool = True,
    ) -> None:
        super().__init__(view, root, presentation, bridge, reader, enforce_acls=enforce_acls)
        self._heads = heads
        self._trees = HeadTrees(presentation)
        self._writing = Bridge(WRITERS, bridge.activity)
        self._files: HandleTable[WritableFile] = HandleTable(FIRST_HANDLE)
        self._lists: HandleTable[int] = HandleTable(FIRST_HANDLE)
        DirectHandlers(self._trees, self._files, reader.read_now).install(
            bridge.activity, with_xattrs=self.enable_acl
        )

    async def _run(
        self, tree: Tree, operation: Callable[P, T], *args: P.args, **named: P.kwargs
    ) -> T:
        """At once if it needs not wait, else in a thread."""
        try:
            return tree.at_once(operation, *args, **named)
        except WouldWait:
            return await self._writing.run(partial(operation, *args, **named))

    # ----- names and attributes

    def _number(self, node: Node) -> InodeT:
        if isinstance(node, HeadTreeNode):
            return self._trees.root(node.tree())
        return super()._number(node)

    def _attributes(self, node: Node, described: Facts | Entry) -> EntryAttributes:
        if isinstance(node, HeadTreeNode):
            tree = node.tree()
            return self._trees.present(self._trees.number(tree), tree.getattr(tree.root))
        return super()._attributes(node, described)

    def _remember(self, node: Node, described: Facts | Entry, inode: InodeT) -> None:
        if is_in_head(inode):
            self._trees.remember(inode)
        else:
            super()._remember(node, described, inode)

    def _told(self, sibling: InodeT, found: Attributes) -> EntryAttributes:
        """Tell the kernel of an inode of the same tree as `sibling`."""
        attributes = self._trees.present(place_in_head(sibling)[0], found)
        self._trees.remember(attributes.st_ino)
        return attributes

    @for_head
    async def lookup(
        self, parent_inode: InodeT, name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """Find a name. The kernel remembers that there is none: it makes all new ones itself."""
        if not is_in_head(parent_inode):
            return await super().lookup(parent_inode, name, ctx)
        tree, parent = self._trees.of(parent_inode)
        try:
            found = await self._run(tree, tree.lookup, parent, name)
        except FileNotFoundError:
            return _no_such_name()
        return self._told(parent_inode, found)

    @for_head
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """Stat."""
        if not is_in_head(inode):
            return await super().getattr(inode, ctx)
        tree, number = self._trees.of(inode)
        found = await self._run(tree, tree.getattr, number)
        return self._trees.present(place_in_head(inode)[0], found)

    @for_head
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Change mode, owner, size and times."""
        if not is_in_head(inode):
            return await self._resize_node(inode, attr, fields)
        tree, number = self._trees.of(inode)
        found = await self._run(
            tree,
            tree.setattr,
            number,
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
        )
        return self._trees.present(place_in_head(inode)[0], found)

    async def _resize_node(
        self, inode: InodeT, attr: EntryAttributes, fields: SetattrFields
    ) -> EntryAttributes:
        """Truncate an image or blob; their owner, mode and times are not stored, nor refused."""
        node = None if is_entry(inode) else self._nodes.get(inode)
        if not isinstance(node, HeadFileNode):
            raise FUSEError(errno.EROFS)
        if fields.update_size:
            await self._writing.run(node.truncate, attr.st_size)
        return self._attributes(node, await self._writing.run(node.facts))

    @unanswered
    async def forget(self, inode_list: Forgets) -> None:
        """The kernel dropped inodes from its memory."""
        others = []
        for inode, lookups in inode_list:
            if is_in_head(inode):
                self._trees.forget(inode, lookups)
            else:
                others.append((inode, lookups))
        if others:
            await super().forget(others)

    @for_head
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> bytes:
        """Where a symlink points."""
        if not is_in_head(inode):
            return await super().readlink(inode, ctx)
        tree, number = self._trees.of(inode)
        return await self._run(tree, tree.readlink, number)

    # ----- making and removing names

    def _place(self, parent_inode: InodeT) -> tuple[Tree, int]:
        """The tree and directory something is to be made in. Raises FUSEError(EROFS)."""
        if not is_in_head(parent_inode):
            raise FUSEError(errno.EROFS)
        return self._trees.of(parent_inode)

    async def _masked(self, tree: Tree, parent: int, mode: int, ctx: RequestContext) -> int:
        """The mode of something new: a default ACL of its directory stands in for the umask."""
        umask = ctx.umask
        if not umask or not mode & umask:
            return mode
        try:
            await self._run(tree, tree.getxattr, parent, DEFAULT_ACL)
        except OSError:
            return mode & ~umask
        return mode

    @for_head
    async def create(
        self, parent_inode: InodeT, name: bytes, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """A new regular file, opened."""
        if not is_in_head(parent_inode):
            return await self._create_archive(parent_inode, name, flags)
        tree, parent = self._trees.of(parent_inode)
        mode = await self._masked(tree, parent, mode, ctx)
        found = await self._run(tree, tree.create, parent, name, mode, ctx.uid, ctx.gid)
        attributes = self._told(parent_inode, found)
        self._trees.bare.add(attributes.st_ino)
        return self._opened(TreeFile(tree, found.number)), attributes

    async def _create_archive(
        self, parent_inode: InodeT, name: bytes, flags: int
    ) -> tuple[FileInfo, EntryAttributes]:
        parent = self._writable_node(parent_inode)
        node = await self._writing.run(parent.make_file, os.fsdecode(name))
        attributes = await self._describe_new(node)
        return self._opened(await self._writing.run(node.open, flags)), attributes

    def _writable_node(self, inode: InodeT) -> CurrentNode:
        node = None if is_entry(inode) or is_in_head(inode) else self._nodes.get(inode)
        if not isinstance(node, CurrentNode):
            raise FUSEError(errno.EROFS)
        return node

    async def _describe_new(self, node: Node) -> EntryAttributes:
        facts = await self._writing.run(node.facts)
        attributes = self._attributes(node, facts)
        self._remember(node, facts, attributes.st_ino)
        return attributes

    @for_head
    async def mkdir(
        self, parent_inode: InodeT, name: bytes, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        """A directory; in `current/` a tree archive, in `host`, `vm` or `ct` a group."""
        if not is_in_head(parent_inode):
            return await self._make_node(parent_inode, os.fsdecode(name), mode, ctx)
        tree, parent = self._trees.of(parent_inode)
        mode = await self._masked(tree, parent, mode, ctx)
        made = await self._run(tree, tree.mkdir, parent, name, mode, ctx.uid, ctx.gid)
        return self._told(parent_inode, made)

    async def _make_node(
        self, parent_inode: InodeT, name: str, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        parent = None if is_entry(parent_inode) else self._nodes.get(parent_inode)
        if isinstance(parent, TypeNode):
            await self._writing.run(
                self._heads.get, parent.namespace, BackupGroup(parent.kind, name)
            )
            return await self._describe_new(await self._writing.run(parent.child, name))
        current = self._writable_node(parent_inode)
        mode &= 0o7777 & ~ctx.umask
        node = await self._writing.run(current.make_tree, name, mode, ctx.uid, ctx.gid)
        return await self._describe_new(node)

    @for_head
    async def mknod(
        self, parent_inode: InodeT, name: bytes, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """A device, fifo, socket or regular file."""
        tree, parent = self._place(parent_inode)
        mode = await self._masked(tree, parent, mode, ctx)
        made = await self._run(tree, tree.mknod, parent, name, mode, ctx.uid, ctx.gid, rdev)
        return self._told(parent_inode, made)

    @for_head
    async def symlink(
        self, parent_inode: InodeT, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """A symlink."""
        tree, parent = self._place(parent_inode)
        made = await self._run(tree, tree.symlink, parent, name, target, ctx.uid, ctx.gid)
        return self._told(parent_inode, made)

    @for_head
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """Another name of a file, in the same tree."""
        tree, parent = self._place(new_parent_inode)
        number = self._same_tree(inode, new_parent_inode)
        return self._told(inode, await self._run(tree, tree.link, number, parent, new_name))

    def _same_tree(self, inode: InodeT, other: InodeT) -> int:
        """The number of `inode`, which must be in the tree of `other`. Raises FUSEError(EXDEV)."""
        place, number = place_in_head(inode)
        if not is_in_head(inode) or place != place_in_head(other)[0]:
            raise FUSEError(errno.EXDEV)
        return number

    @for_head
    async def unlink(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> None:
        """Remove a name; an archive in `current/` is left out of the next snapshot."""
        if is_in_head(parent_inode):
            tree, parent = self._trees.of(parent_inode)
            await self._run(tree, tree.unlink, parent, name)
        else:
            await self._writing.run(self._writable_node(parent_inode).remove, os.fsdecode(name))

    @for_head
    async def rmdir(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> None:
        """Remove an empty directory; of `current/` an empty tree."""
        if is_in_head(parent_inode):
            tree, parent = self._trees.of(parent_inode)
            await self._run(tree, tree.rmdir, parent, name)
        else:
            current = self._writable_node(parent_inode)
            await self._writing.run(_remove_tree, current, os.fsdecode(name))

    @for_head
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: bytes,
        parent_inode_new: InodeT,
        name_new: bytes,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        """Move a name within a tree, over another one, or exchange two; also a blob's."""
        if not is_in_head(parent_inode_old) and not is_in_head(parent_inode_new):
            await self._rename_node(
                parent_inode_old, name_old, parent_inode_new, name_new, replaces=not flags
            )
            return
        tree, old = self._place(parent_inode_old)
        if not is_in_head(parent_inode_new):
            raise FUSEError(errno.EXDEV)
        new = self._same_tree(parent_inode_new, parent_inode_old)
        owner = {"uid": ctx.uid, "gid": ctx.gid}
        await self._run(tree, tree.rename, old, name_old, new, name_new, flags, **owner)

    async def _rename_node(
        self, old: InodeT, name: bytes, new: InodeT, new_name: bytes, *, replaces: bool
    ) -> None:
        """Editors save by renaming. Raises FUSEError(EXDEV), at which `mv` copies."""
        current = self._writable_node(old)
        if self._writable_node(new) != current:
            raise FUSEError(errno.EXDEV)
        names = os.fsdecode(name), os.fsdecode(new_name)
        await self._writing.run(partial(current.rename, *names, replaces=replaces))

    # ----- extended attributes

    @for_head
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        """One extended attribute, ACLs included. After ENOSYS the kernel asks for none again."""
        if not self.enable_acl:
            raise FUSEError(errno.ENOSYS)
        if not is_in_head(inode):
            return await super().getxattr(inode, name, ctx)
        tree, number = self._trees.of(inode)
        return await self._run(tree, tree.getxattr, number, name)

    @for_head
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> list[XAttrNameT]:
        """Their names."""
        if not self.enable_acl:
            raise FUSEError(errno.ENOSYS)
        if not is_in_head(inode):
            return [*await super().listxattr(inode, ctx)]
        tree, number = self._trees.of(inode)
        return [XAttrNameT(name) for name in await self._run(tree, tree.listxattr, number)]

    @for_head
    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        """Set one. pyfuse3 does not say whether it must be new or there: the kernel asks before."""
        if not self.enable_acl:
            raise FUSEError(errno.ENOSYS)
        tree, number = self._with_xattrs(inode)
        self._trees.bare.discard(inode)
        await self._run(tree, tree.setxattr, number, name, value)

    @for_head
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        """Remove one."""
        tree, number = self._with_xattrs(inode)
        await self._run(tree, tree.removexattr, number, name)

    def _with_xattrs(self, inode: InodeT) -> tuple[Tree, int]:
        """Raises FUSEError: EOPNOTSUPP for images and blobs, which `cp -a` takes; else EROFS."""
        is_node = not is_entry(inode) and not is_in_head(inode)
        if is_node and isinstance(self._nodes.get(inode), HeadFileNode):
            raise FUSEError(errno.EOPNOTSUPP)
        return self._place(inode)

    # ----- directories

    @for_head
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Open a directory; of a head's tree it is read as readdir goes on."""
        if not is_in_head(inode):
            return await super().opendir(inode, ctx)
        return self._lists.add(inode)

    @for_head
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """As many names as fit."""
        if fh < FIRST_HANDLE:
            await super().readdir(fh, start_id, token)
            return
        inode = InodeT(self._lists.get(fh))
        tree, number = self._trees.of(inode)
        place = place_in_head(inode)[0]
        while found := await self._run(tree, tree.listing, number, start_id, LISTED):
            for name, attributes, cookie in found:
                shown = self._trees.present(place, attributes)
                if not pyfuse3.readdir_reply(token, name, shown, cookie):
                    return
                self._trees.remember(shown.st_ino)
                start_id = cookie

    @for_head
    async def releasedir(self, fh: FileHandleT) -> None:
        """Close a directory."""
        if fh < FIRST_HANDLE:
            await super().releasedir(fh)
        else:
            self._lists.remove(fh)

    @for_head
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Make the names in a directory durable."""
        if fh >= FIRST_HANDLE:
            tree, number = self._trees.of(self._lists.get(fh))
            await self._writing.run(partial(tree.sync, number))

    # ----- files

    def _opened(self, file: WritableFile, *, keep_cache: bool = True) -> FileInfo:
        return FileInfo(fh=self._files.add(file), keep_cache=keep_cache, direct_io=file.is_uncached)

    @for_head
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """Open a file; O_TRUNC comes with it."""
        if is_in_head(inode):
            tree, number = self._trees.of(inode)
            if flags & os.O_TRUNC:
                await self._run(tree, tree.setattr, number, size=0)
            return self._opened(TreeFile(tree, number))
        node = None if is_entry(inode) else self._nodes.get(inode)
        if not isinstance(node, HeadFileNode):
            if flags & WRITING:
                raise FUSEError(errno.EROFS)
            return await super().open(inode, flags, ctx)
        if flags & os.O_TRUNC and not isinstance(node, HeadImageNode):
            await self._writing.run(node.truncate, 0)
        # NBD may write to an image, too: nothing of it is kept.
        return self._opened(await self._writing.run(node.open, flags), keep_cache=False)

    async def read(self, fh: FileHandleT, off: int, size: int) -> Buffer:  # type: ignore[override] # views are not copied
        """Read."""
        if fh < FIRST_HANDLE:
            return await super().read(fh, off, size)
        try:
            file = self._files.get(fh)
            try:
                return file.read_now(off, size)
            except WouldWait:
                return await self._writing.run(file.read, off, size)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from error
        except Exception as error:
            raise as_fuse_error(error, "read") from error

    @for_head
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Write all of it."""
        file = self._files.get(fh)
        try:
            return file.write_now(off, buf)
        except WouldWait:
            return await self._writing.run(file.write, off, buf)

    @for_head
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Make a file durable."""
        if fh >= FIRST_HANDLE:
            await self._writing.run(partial(self._files.get(fh).sync, data_only=datasync))

    @for_head
    async def release(self, fh: FileHandleT) -> None:
        """Close a file."""
        if fh < FIRST_HANDLE:
            await super().release(fh)
            return
        file = self._files.get(fh)
        self._files.remove(fh)
        if isinstance(file, BlobFile):
            await self._writing.run(file.close)
        else:
            file.close()

    def fallocate(
        self, request: "Request", inode: int, fh: int, mode: int, offset: int, length: int
    ) -> None:
        """The handler for `extra_handlers.set_handler`: make room, punch holes, write zeros."""
        self._answer(request, fh, lambda file: file.allocate(offset, length, mode))

    def lseek(self, request: "Request", inode: int, fh: int, offset: int, whence: int) -> None:
        """The same for SEEK_DATA and SEEK_HOLE."""
        self._answer(request, fh, lambda file: file.seek(offset, whence))

    def _answer(
        self, request: "Request", fh: int, work: Callable[[WritableFile], int | None]
    ) -> None:
        if self.start_soon is None or fh < FIRST_HANDLE:
            request.reply_error(errno.EIO if fh >= FIRST_HANDLE else errno.EROFS)
        else:
            self.start_soon(self._answer_soon, request, fh, work)

    async def _answer_soon(
        self, request: "Request", fh: int, work: Callable[[WritableFile], int | None]
    ) -> None:
        try:
            found = await self._writing.run(work, self._files.get(fh))
        except OSError as error:
            request.reply_error(error.errno or errno.EIO)
        except Exception as error:  # noqa: BLE001 - as for every handler: an errno, no end of the mount
            request.reply_error(as_fuse_error(error, "fallocate").errno)
        else:
            request.reply_error(0) if found is None else request.reply_offset(found)

    async def seal_idle_heads(self) -> None:
        """Look for heads that the policy says to seal, for ever."""
        while True:
            await trio.sleep(SEAL_CHECK_S)
            await self._writing.run(self._heads.seal_idle)

    def begin(self) -> None:
        """The event loop runs: what seals a head waits for it to have handed over all it has.

        Whatever it collects (_fuse_direct.c) it hands over before it goes on to anything else.
        """
        self._heads.settle = turn_of_the_loop()

    start_soon: Callable[..., object] | None = None
    """Starts a background task; None before the mount runs and at its end."""

    @for_head
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """The datastore's own space: what is written goes there in the end."""
        return await super().statfs(ctx)


def _remove_tree(current: CurrentNode, name: str) -> None:
    """Raises OSError(ENOTEMPTY), NotFound."""
    node = current.child(name)
    if not isinstance(node, HeadTreeNode):
        raise OSError(errno.ENOTDIR, "not a tree")
    tree = node.tree()
    if tree.listing(tree.root, 0, 1):
        raise OSError(errno.ENOTEMPTY, "the tree is not empty")
    current.remove(name)


def _no_such_name() -> EntryAttributes:
    """Tells the kernel to remember that there is no such name, until it makes one."""
    attributes = EntryAttributes()
    attributes.st_ino = InodeT(0)
    attributes.entry_timeout = IMMUTABLE_S
    return attributes
