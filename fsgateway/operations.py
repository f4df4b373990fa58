"""The FUSE handlers of a read-only mount.

They are short: what they know comes from tree, archive and reading.

Whatever goes wrong in one is an errno for its caller and nothing else: every handler is `guarded`.
What is in memory is answered on the event loop; only what has to be read crosses the bridge to a
thread.

Not here on purpose: flush, fsync and access. Without them the kernel asks once and never again.
"""

import errno
import os
from collections.abc import Sequence

import pyfuse3
from pyfuse3 import (
    ROOT_INODE,
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FlagT,
    FUSEError,
    InodeT,
    ReaddirToken,
    RequestContext,
    StatvfsData,
    XAttrNameT,
    readdir_reply,
)

from fsgateway import extra_handlers
from fsgateway.archive import Archive
from fsgateway.attributes import (
    FILE,
    IMMUTABLE_S,
    Facts,
    Presentation,
    immutable_attributes,
    xattrs_of,
)
from fsgateway.bridge import Bridge, as_fuse_error, guarded, unanswered
from fsgateway.entries import TreeEntries
from fsgateway.handles import EntryDirectory, HandleTable, NodeDirectory, OpenDirectory
from fsgateway.hardlinks import names_of
from fsgateway.inodes import Forgets, NodeTable, entry_inode, is_entry, sibling
from fsgateway.names import PID_XATTR
from fsgateway.node_xattrs import PREFIX, own_names, own_value
from fsgateway.reading import Reader
from fsgateway.tree import Directory, LinkNode, Node, TreeNode
from fsgateway.view import View
from store.errors import StoreError
from store.format.buffer import Buffer
from store.format.pxar.entries import Entry, EntryKind
from store.format.pxar.items import ENTRY_SIZE

PID = PID_XATTR.encode()
DIRECTORY = EntryKind.DIRECTORY
WRITING = os.O_WRONLY | os.O_RDWR
STATFS_BLOCK = 4096
MAX_NAME = 255
NO_NUMBERS = (0, 0)

Described = tuple[Node, Facts | Entry]


class VaultwayOperations(pyfuse3.Operations):
    """A datastore as a file system.

    Args:
        view: what is mounted.
        root: its root node.
        presentation: owners and modes.
        bridge: runs what has to wait for the datastore.
        reader: opens files and reads them.
        enforce_acls: the kernel protects by modes, owners and ACLs (needs the option
            default_permissions).
    """

    def __init__(
        self,
        view: View,
        root: Directory,
        presentation: Presentation,
        bridge: Bridge,
        reader: Reader,
        *,
        enforce_acls: bool = False,
    ) -> None:
        super().__init__()
        self.supports_dot_lookup = False
        self.enable_acl = enforce_acls
        self._view = view
        self._presentation = presentation
        self._bridge = bridge
        self._reader = reader
        self._nodes: NodeTable[Node] = NodeTable(root)
        self.entries = TreeEntries(bridge)
        self._table = self.entries.table
        self._directories: HandleTable[OpenDirectory] = HandleTable()
        extra_handlers.set_direct_handlers(
            {"read": reader.read_now}, failed, set(), bridge.activity, NO_NUMBERS
        )
        extra_handlers.set_listing(
            self.entries.read_directory, self._table.remember_all, presentation, IMMUTABLE_S
        )

    # ----- names and attributes

    @guarded
    async def lookup(
        self, parent_inode: InodeT, name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """Find a name in a directory.

        The kernel remembers that there is none, inside an archive only.
        """
        if is_entry(parent_inode):
            return await self._lookup_entry(parent_inode, name)
        parent = self._directory_node(parent_inode)
        node, described = await self._bridge.of(parent).run(_find_child, parent, os.fsdecode(name))
        attributes = self._attributes(node, described)
        self._remember(node, described, attributes.st_ino)
        return attributes

    async def _lookup_entry(self, parent: InodeT, name: bytes) -> EntryAttributes:
        entry = await self.entries.lookup(parent, name)
        if entry is None:
            return _no_such_name()
        inode = sibling(parent, entry.offset)
        attributes = await self._attributes_of_entry(inode, entry)
        self.entries.remember(inode, entry)
        return attributes

    @guarded
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """Stat."""
        if not is_entry(inode):
            node = self._nodes.get(inode)
            return self._attributes(node, await self._bridge.of(node).run(node.describe))
        archive, offset = self._table.archive(inode)
        if not offset:
            return self._attributes(
                archive.node, await self._bridge.of(archive).run(archive.node.describe)
            )
        return await self._attributes_of_entry(inode, await self.entries.get(inode))

    def _attributes(self, node: Node, described: Facts | Entry) -> EntryAttributes:
        inode = self._number(node)
        if isinstance(described, Facts):
            return self._presentation.of_facts(inode, described)
        attributes = self._presentation.of_entry(inode, described, 1)
        if isinstance(node, TreeNode):
            attributes.entry_timeout = node.kept_s
        return attributes

    def _number(self, node: Node) -> InodeT:
        if isinstance(node, TreeNode):
            number = self._table.archive_number(node.identity, lambda: Archive(node))
            return entry_inode(number, 0)
        return self._nodes.number(node)

    async def _attributes_of_entry(self, inode: InodeT, entry: Entry) -> EntryAttributes:
        names = 1
        if entry.kind is FILE:
            names = names_of(entry, await self.entries.links(self._table.archive(inode)[0]))
        return self._presentation.of_entry(inode, entry, names)

    def _directory_node(self, inode: InodeT) -> Directory:
        node = self._nodes.get(inode)
        if not isinstance(node, Directory):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        return node

    def _remember(self, node: Node, described: Facts | Entry, inode: InodeT) -> None:
        if is_entry(inode):
            end = described.end if isinstance(described, Entry) else 0
            self._table.remember(inode, end)
        else:
            self._nodes.remember(inode, node)

    @unanswered
    async def forget(self, inode_list: Forgets) -> None:
        """The kernel dropped inodes from its memory."""
        for inode, lookups in inode_list:
            table = self._table if is_entry(inode) else self._nodes
            table.forget(inode, lookups)

    @guarded
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> bytes:
        """Where a symlink points, as it was backed up; for `latest`, as it is now."""
        if is_entry(inode):
            return (await self.entries.get(inode)).target
        node = self._nodes.get(inode)
        if not isinstance(node, LinkNode):
            raise OSError(errno.EINVAL, "not a symlink")
        # Every path below `latest` comes by here.
        target = node.known_target()
        return os.fsencode(
            target if target is not None else await self._bridge.of(node).run(node.target)
        )

    # ----- extended attributes

    @guarded
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        """One extended attribute, or ENODATA: `ls -l` asks for two of each, and most have none."""
        entry = self.entries.known(inode)
        if entry is not None and len(entry.raw_metadata) <= ENTRY_SIZE and entry.name:
            raise FUSEError(errno.ENODATA)
        value = await self._own_xattr(inode, name) if name.startswith(PREFIX) else None
        if value is None:
            value = (await self._xattrs(inode)).get(name)
        if value is None:
            raise FUSEError(errno.ENODATA)
        return value

    @guarded
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        """The names of all extended attributes."""
        node = self._own_node(inode)
        own = await self._bridge.of(node).run(own_names, node) if node is not None else []
        return [XAttrNameT(name) for name in (*own, *await self._xattrs(inode))]

    async def _own_xattr(self, inode: InodeT, name: bytes) -> bytes | None:
        if inode == ROOT_INODE and name == PID:
            return str(os.getpid()).encode()
        node = self._own_node(inode)
        return await self._bridge.of(node).run(own_value, node, name) if node is not None else None

    def _own_node(self, inode: InodeT) -> Node | None:
        """What we know of ourselves: nothing of what is inside of archives."""
        if not is_entry(inode):
            return self._nodes.get(inode)
        archive, offset = self._table.archive(inode)
        return None if offset else archive.node

    async def _xattrs(self, inode: InodeT) -> dict[bytes, bytes]:
        if not is_entry(inode):
            return {}
        archive, offset = self._table.archive(inode)
        if not offset and not await self._bridge.of(archive).run(archive.node.is_open):
            return {}  # `ls -l` of a disk does not open its file systems
        try:
            return xattrs_of(await self.entries.get(inode))
        except StoreError:
            if offset:
                raise
            return {}  # the root of a tree that cannot be opened can still be listed

    # ----- directories

    @guarded
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Read a directory whole, so that one pass over it sees it as it was."""
        if not is_entry(inode):
            directory = self._directory_node(inode)
            found = await self._bridge.of(directory).run(_list_children, directory)
            return self._directories.add(NodeDirectory(found))
        archive, _ = self._table.archive(inode)
        listing = await self.entries.listing(inode)
        links = await self.entries.links(archive)
        return self._directories.add(EntryDirectory(inode, listing, links))

    @guarded
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """Answer with as many entries as fit, each with its attributes."""
        directory = self._directories.get(fh)
        if isinstance(directory, EntryDirectory):
            self._reply_entries(directory, start_id, token)
        else:
            self._reply_nodes(directory, start_id, token)

    def _reply_entries(self, directory: EntryDirectory, start: int, token: ReaddirToken) -> None:
        """As _fuse_listing.c, for where that is missing."""
        attributes, write = immutable_attributes(), self._presentation.write_entry
        count, directories = 0, []
        for position in range(start, len(directory.listing)):
            entry = directory.listing.entry(position)
            inode = sibling(directory.inode, entry.offset)
            write(attributes, inode, entry, names_of(entry, directory.links))
            if not readdir_reply(token, entry.name, attributes, position + 1):
                break
            count += 1
            if entry.kind is DIRECTORY:
                directories.append((inode, entry.end))
        self._table.remember_all(directory.inode, count, directories)

    def _reply_nodes(self, directory: NodeDirectory, start: int, token: ReaddirToken) -> None:
        for position, (node, described) in enumerate(directory.children[start:], start):
            attributes = self._attributes(node, described)
            name = os.fsencode(node.path[-1])
            if not readdir_reply(token, name, attributes, position + 1):
                break
            self._remember(node, described, attributes.st_ino)

    @guarded
    async def releasedir(self, fh: FileHandleT) -> None:
        """Close a directory."""
        self._directories.remove(fh)

    # ----- files

    @guarded
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """Open a file for reading; EACCES without its key, EIO if it is damaged."""
        if flags & WRITING:
            raise FUSEError(errno.EROFS)
        if is_entry(inode):
            archive, _ = self._table.archive(inode)
            return await self._reader.open_entry(inode, archive, await self.entries.get(inode))
        return await self._reader.open_node(inode, self._nodes.get(inode))

    async def read(self, fh: FileHandleT, off: int, size: int) -> Buffer:  # type: ignore[override] # views are not copied
        """Read; `guarded` by hand, because here every microsecond counts."""
        try:
            return await self._reader.read(fh, off, size)
        except Exception as error:
            raise as_fuse_error(error, "read") from error

    @guarded
    async def release(self, fh: FileHandleT) -> None:
        """Close a file."""
        self._reader.files.remove(fh)

    @guarded
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """The datastore's own space."""
        status = await self._bridge.run(self._view.status)
        data = StatvfsData()
        data.f_bsize = data.f_frsize = STATFS_BLOCK
        data.f_blocks = status.total // STATFS_BLOCK
        data.f_bfree = (status.total - status.used) // STATFS_BLOCK
        data.f_bavail = status.avail // STATFS_BLOCK
        data.f_namemax = MAX_NAME
        return data


def failed(error: BaseException) -> int:
    """What to answer to a read that is answered at once."""
    if isinstance(error, Exception):
        return as_fuse_error(error, "read").errno
    raise error


def _find_child(parent: Directory, name: str) -> Described:
    node = parent.child(name)
    return node, node.describe()


def _list_children(directory: Directory) -> list[Described]:
    return [(node, node.describe()) for node in directory.children()]


def _no_such_name() -> EntryAttributes:
    """Tells the kernel to remember that there is no such name."""
    attributes = EntryAttributes()
    attributes.st_ino = InodeT(0)
    attributes.entry_timeout = IMMUTABLE_S
    return attributes
