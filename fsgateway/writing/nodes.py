"""`current/` of a group: its head's archives. What is inside a tree are inodes of it (trees.py)."""

import errno
import stat
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from fsgateway.attributes import CHANGING_S, Facts
from fsgateway.tree import Directory, GroupNode, Node
from fsgateway.writing.files import ImageFile, WritableFile
from fsgateway.writing.open_heads import MountedHead, OpenHeads
from store.errors import InvalidName
from store.heads import Tree
from store.names import BackupGroup, Namespace

CURRENT = "current"
OPEN_DIRECTORY = stat.S_IFDIR | 0o755
OWN_FILE = stat.S_IFREG | 0o640
BLOB_SUFFIXES = (".conf", ".log", ".fw", ".blob")


@dataclass(frozen=True, slots=True)
class CurrentNode(Directory):
    """A group's head as a directory: `root.pxar/`, `drive-scsi0.img`, `qemu-server.conf`."""

    heads: OpenHeads
    namespace: Namespace
    group: BackupGroup

    def facts(self) -> Facts:
        """Without looking into it: a look from outside opens no head."""
        return Facts(OPEN_DIRECTORY, mtime_ns=self.view.started_ns, timeout_s=CHANGING_S)

    def mounted(self) -> MountedHead:
        """Its head, opened now if it is not. Raises as `OpenHeads.get`."""
        return self.heads.get(self.namespace, self.group)

    def children(self) -> Iterable[Node]:
        mounted = self.mounted()
        for name in mounted.archives:
            yield self._node(mounted, name)

    def _node(self, mounted: MountedHead, name: str) -> "ArchiveNode":
        kind = kind_of(name)
        return kind(self.view, (*self.path, name), mounted, name)

    def make_tree(self, name: str, mode: int, uid: int, gid: int) -> Node:
        """`mkdir current/root.pxar`. Raises InvalidName, AlreadyExists."""
        if kind_of(name) is not HeadTreeNode:
            raise InvalidName(f"{name!r}: a directory here is a tree archive, NAME.pxar")
        mounted = self.mounted()
        mounted.head.create_tree(name, mode=mode, uid=uid, gid=gid)
        return self._node(mounted, name)

    def make_file(self, name: str) -> "HeadFileNode":
        """`touch current/disk.img` or `current/vm.conf`. Raises InvalidName, AlreadyExists."""
        mounted = self.mounted()
        kind = kind_of(name)
        if kind is HeadTreeNode:
            raise InvalidName(f"{name!r}: a tree archive is a directory; use mkdir")
        if kind is HeadImageNode:
            mounted.image(name, is_new=True)
        else:
            mounted.head.write_blob(name, b"")
        node = self._node(mounted, name)
        assert isinstance(node, HeadFileNode)
        return node

    def remove(self, name: str) -> None:
        """Leave an archive out of the next snapshot. Raises NotFound."""
        self.mounted().remove(name)

    def rename(self, name: str, new_name: str, *, replaces: bool) -> None:
        """Give a blob another name. Raises OSError(EXDEV) for what has to be copied."""
        if kind_of(name) is not HeadBlobNode or kind_of(new_name) is not HeadBlobNode:
            raise OSError(errno.EXDEV, f"{name}: trees and images keep their names")
        self.mounted().rename_blob(name, new_name, replaces=replaces)


class CurrentDirectories:
    """Adds `current/` to a mount's groups, and groups that have nothing else."""

    def __init__(self, heads: OpenHeads) -> None:
        self._heads = heads

    def groups(self, namespace: Namespace) -> list[BackupGroup]:
        """The groups that have a head."""
        return self._heads.groups(namespace)

    def current(self, group: GroupNode) -> CurrentNode:
        """A group's `current/`."""
        path = (*group.path, CURRENT)
        return CurrentNode(group.view, path, self._heads, group.namespace, group.group)


@dataclass(frozen=True, slots=True)
class ArchiveNode(Node):
    """An archive of a head."""

    mounted: MountedHead
    name: str


@dataclass(frozen=True, slots=True)
class HeadTreeNode(ArchiveNode):
    """A tree: only its name is a node, its root is an inode of the tree."""

    def tree(self) -> Tree:
        """Raises NotFound, and what opening its base raises."""
        return self.mounted.head.tree(self.name)

    def facts(self) -> Facts:
        """That it can be opened; what stat says is asked of the tree."""
        self.tree()
        return Facts(OPEN_DIRECTORY)


@dataclass(frozen=True, slots=True)
class HeadFileNode(ArchiveNode):
    """An image or blob: its size changes with what is written, so nobody keeps its attributes."""

    def facts(self) -> Facts:
        return Facts(OWN_FILE, self.size(), mtime_ns=self.view.started_ns, timeout_s=0)

    @abstractmethod
    def size(self) -> int:
        """In bytes."""

    @abstractmethod
    def open(self, flags: int) -> WritableFile:
        """An open file, by the flags a program gave. Raises StoreError."""

    @abstractmethod
    def truncate(self, size: int) -> None:
        """Change its size. Raises StoreError, OSError."""


@dataclass(frozen=True, slots=True)
class HeadImageNode(HeadFileNode):
    """A disk image. It can grow, not shrink."""

    def size(self) -> int:
        return self.mounted.image(self.name).size

    def open(self, flags: int) -> WritableFile:
        return ImageFile(self.mounted.image(self.name), flags)

    def truncate(self, size: int) -> None:
        self.mounted.image(self.name).truncate(size)


@dataclass(frozen=True, slots=True)
class HeadBlobNode(HeadFileNode):
    """A blob, decoded."""

    def size(self) -> int:
        return self.mounted.blob_size(self.name)

    def open(self, flags: int) -> WritableFile:
        return self.mounted.open_blob(self.name)

    def truncate(self, size: int) -> None:
        self.mounted.truncate_blob(self.name, size)


def kind_of(name: str) -> type[ArchiveNode]:
    """What an archive of this name is. Raises InvalidName."""
    if name.endswith(".pxar"):
        return HeadTreeNode
    if name.endswith(".img"):
        return HeadImageNode
    if name.endswith(BLOB_SUFFIXES):
        return HeadBlobNode
    raise InvalidName(f"{name!r}: an archive is NAME.pxar, NAME.img, NAME.conf or NAME.log")
