"""The nodes between the mount's root and the inside of an archive.

    namespace   ns/<name>  host|vm|ct/<id>         changing
    group       <time>  latest                     changing
    snapshot    root.pxar  disk.img  x.conf  index.json

A node holds only its name, so it can be made again at any time; everything it says is asked of the
View, in a thread. The insides of `root.pxar` are entries (archive.py), not nodes.
"""

import json
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from fsgateway.attributes import BLOCK, CHANGING_S, IMMUTABLE_S, NANOSECONDS, Facts
from fsgateway.view import Image, SnapshotId, Tree, View
from store.errors import NotFound, StoreError
from store.format.blob import decode_blob
from store.format.pxar.entries import Entry
from store.names import (
    BACKUP_TYPES,
    MANIFEST_BLOB_NAME,
    BackupGroup,
    Namespace,
    Snapshot,
    format_backup_time,
)

DIRECTORY = stat.S_IFDIR | 0o555
# Where the mount's owner makes groups, if it is writable.
OWN_DIRECTORY = stat.S_IFDIR | 0o755
# Disks and configurations are secrets: for the mount's owner and group, and nobody else.
PRIVATE_FILE = stat.S_IFREG | 0o440
LINK = stat.S_IFLNK | 0o777
LATEST = "latest"
MANIFEST_NAME = "index.json"

Path: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Node(ABC):
    """Anything the mount shows that is not a pxar entry.

    `path`: its names from the mount's root down.
    `is_slow`: as `Paced`; so are the entries in it, if it is a tree.
    """

    is_slow: ClassVar[bool] = False

    view: View
    path: Path

    @abstractmethod
    def facts(self) -> Facts:
        """Its stat; may read the datastore. Raises StoreError."""

    def describe(self) -> Facts | Entry:
        """Its stat, or the pxar entry that has it. Raises StoreError."""
        return self.facts()


@dataclass(frozen=True, slots=True)
class Directory(Node):
    """A node with children."""

    @abstractmethod
    def children(self) -> "Iterable[Node]":
        """What is in it now; each child's name is the last of its path. Raises StoreError."""

    def child(self, name: str) -> Node:
        """The child of that name. Raises NotFound."""
        for node in self.children():
            if node.path[-1] == name:
                return node
        raise NotFound(f"/{'/'.join(self.path)} has no {name!r}")


@dataclass(frozen=True, slots=True)
class NamespaceNode(Directory):
    """The root, and each namespace in an `ns` directory."""

    namespace: Namespace

    def facts(self) -> Facts:
        return Facts(DIRECTORY, mtime_ns=self.view.started_ns, timeout_s=CHANGING_S)

    def children(self) -> Iterable[Node]:
        if self.view.namespaces(self.namespace):
            yield NamespacesNode(self.view, (*self.path, "ns"), self.namespace)
        present = {group.type for group in self.view.groups(self.namespace)}
        for kind in BACKUP_TYPES:
            if kind in present or self.view.writable:
                yield TypeNode(self.view, (*self.path, kind), self.namespace, kind)


@dataclass(frozen=True, slots=True)
class NamespacesNode(Directory):
    """The directory `ns`."""

    namespace: Namespace

    def facts(self) -> Facts:
        return Facts(DIRECTORY, mtime_ns=self.view.started_ns, timeout_s=CHANGING_S)

    def children(self) -> Iterable[Node]:
        for namespace in self.view.namespaces(self.namespace):
            yield NamespaceNode(self.view, (*self.path, namespace.components[-1]), namespace)


@dataclass(frozen=True, slots=True)
class TypeNode(Directory):
    """`host`, `vm` or `ct`."""

    namespace: Namespace
    kind: str

    def facts(self) -> Facts:
        mode = DIRECTORY if self.view.writable is None else OWN_DIRECTORY
        return Facts(mode, mtime_ns=self.view.started_ns, timeout_s=CHANGING_S)

    def children(self) -> Iterable[Node]:
        groups = set(self.view.groups(self.namespace))
        if self.view.writable:
            groups.update(self.view.writable.groups(self.namespace))
        for group in sorted(groups):
            if group.type == self.kind:
                yield GroupNode(self.view, (*self.path, group.id), self.namespace, group)


@dataclass(frozen=True, slots=True)
class GroupNode(Directory):
    """A backup group: its finished snapshots, `latest`, and the views of the mount's options."""

    namespace: Namespace
    group: BackupGroup

    def _snapshots(self) -> list[Snapshot]:
        return self.view.snapshots(self.namespace, self.group)

    def facts(self) -> Facts:
        snapshots = self._snapshots()
        mtime = snapshots[-1].time * NANOSECONDS if snapshots else self.view.started_ns
        return Facts(DIRECTORY, mtime_ns=mtime, timeout_s=CHANGING_S)

    def children(self) -> Iterable[Node]:
        snapshots = self._snapshots()
        for snapshot in snapshots:
            name = format_backup_time(snapshot.time)
            yield SnapshotNode(self.view, (*self.path, name), SnapshotId(self.namespace, snapshot))
        if snapshots:
            yield LatestNode(self.view, (*self.path, LATEST), self.namespace, self.group)
            for show in self.view.group_views:
                yield show(self.path, self.namespace, self.group)
        if self.view.writable:
            yield self.view.writable.current(self)


@dataclass(frozen=True, slots=True)
class LinkNode(Node):
    """A symlink."""

    @abstractmethod
    def target(self) -> str:
        """Where it points now. Raises StoreError."""

    @abstractmethod
    def known_target(self) -> str | None:
        """The same if nothing has to be read for it: for the event loop."""


@dataclass(frozen=True, slots=True)
class LatestNode(LinkNode):
    """The symlink to the newest snapshot."""

    namespace: Namespace
    group: BackupGroup

    def target(self) -> str:
        """The newest snapshot's time now. Raises NotFound."""
        snapshots = self.view.snapshots(self.namespace, self.group)
        if not snapshots:
            raise NotFound(f"group {self.group} has no snapshot")
        return format_backup_time(snapshots[-1].time)

    def known_target(self) -> str | None:
        """The same if it was asked within the last second: for the event loop."""
        snapshots = self.view.known_snapshots(self.namespace, self.group)
        return format_backup_time(snapshots[-1].time) if snapshots else None

    def facts(self) -> Facts:
        snapshots = self.view.snapshots(self.namespace, self.group)
        mtime = snapshots[-1].time * NANOSECONDS if snapshots else 0
        return Facts(LINK, len(self.target()), 0, mtime, CHANGING_S)


@dataclass(frozen=True, slots=True)
class SnapshotNode(Directory):
    """One snapshot: its archives under the names their user gave them, and its manifest."""

    ident: SnapshotId

    def facts(self) -> Facts:
        # Its entry is asked again every second, for it may be forgotten; what is inside stays.
        return Facts(DIRECTORY, mtime_ns=mtime_ns(self.ident), timeout_s=CHANGING_S)

    def children(self) -> Iterable[Node]:
        from fsgateway.disks import DiskNode  # made of the nodes below

        reader = self.view.open(self.ident).reader
        files = {info.filename for info in reader.manifest.files}
        for name in reader.archives:
            kind = _kind_of(name, files)
            yield kind(self.view, (*self.path, name), self.ident, name)
            if kind is ImageNode:
                yield DiskNode(self.view, (*self.path, f"{name}.d"), self.ident, name)
        yield ManifestNode(self.view, (*self.path, MANIFEST_NAME), self.ident)


@dataclass(frozen=True, slots=True)
class FileNode(Node):
    """Something to read in a snapshot, by the name its user gave it."""

    ident: SnapshotId
    name: str

    def stored_size(self) -> int:
        """What the manifest says, for what cannot be opened."""
        return self.view.open(self.ident).size_of(self.name)


@dataclass(frozen=True, slots=True)
class TreeNode(FileNode):
    """A tree of files: a pxar archive, unless `open` opens another.

    What is inside are entries of it (archive.py), its root directory too.
    """

    def __str__(self) -> str:
        return f"{self.ident}/{self.name}"

    def facts(self) -> Facts:
        """Without its key, or damaged: a closed directory of the size in the manifest."""
        mtime = mtime_ns(self.ident)
        return Facts(stat.S_IFDIR | 0o500, self.stored_size(), mtime_ns=mtime, timeout_s=CHANGING_S)

    @property
    def identity(self) -> Path:
        """Tells it from every other tree, also from what is later at its path."""
        return self.path

    @property
    def kept_s(self) -> float:
        """How long the kernel may keep its name."""
        return IMMUTABLE_S

    def describe(self) -> Facts | Entry:
        """The root directory's entry, or `facts` when it cannot be read."""
        try:
            return self.open().files.root()
        except StoreError:
            return self.facts()

    def open(self) -> Tree:
        """The tree, opened if it is not. Raises as `ArchiveTree`."""
        return self.view.open(self.ident).tree(self.name)

    def is_open(self) -> bool:
        """Whether `open` is quick."""
        return True


@dataclass(frozen=True, slots=True)
class ImageNode(FileNode):
    """A disk image, as a sparse raw file."""

    def facts(self) -> Facts:
        """Size by the manifest; blocks by the index, which leaves out the zero chunks."""
        mtime = mtime_ns(self.ident)
        try:
            image = self.open()
        except StoreError:
            size = self.stored_size()
            return Facts(PRIVATE_FILE, size, mtime_ns=mtime, timeout_s=CHANGING_S)
        return Facts(PRIVATE_FILE, image.stream.size, -(-image.used // BLOCK), mtime)

    def open(self) -> Image:
        """Raises KeyRequired, FormatError, IntegrityError, BackendError."""
        return self.view.open(self.ident).image(self.name)


@dataclass(frozen=True, slots=True)
class BlobNode(FileNode):
    """A blob, decoded."""

    def facts(self) -> Facts:
        size = self.view.blob_size(self.ident, self.name)
        return Facts(PRIVATE_FILE, size, mtime_ns=mtime_ns(self.ident))

    def read(self) -> bytes:
        """Raises KeyRequired, FormatError, IntegrityError, BackendError."""
        return self.view.open(self.ident).blob(self.name)


@dataclass(frozen=True, slots=True)
class ManifestNode(Node):
    """`index.json`: the manifest. Its notes and verify state change, so nobody keeps it."""

    ident: SnapshotId

    def facts(self) -> Facts:
        mtime = mtime_ns(self.ident)
        return Facts(PRIVATE_FILE, len(self.read()), mtime_ns=mtime, timeout_s=CHANGING_S)

    def read(self) -> bytes:
        """The text as stored, made readable if it was not.

        Raises NotFound, FormatError, BackendError.
        """
        text = decode_blob(self.view.datastore.read_file(*self.ident, MANIFEST_BLOB_NAME))
        if b"\n" in text:
            return text
        try:
            return json.dumps(json.loads(text), indent=2, ensure_ascii=False).encode()
        except ValueError:
            return text


def _kind_of(name: str, files: set[str]) -> type[FileNode]:
    if f"{name}.fidx" in files:
        return ImageNode
    if f"{name}.didx" in files or f"{name.removesuffix('.pxar')}.mpxar.didx" in files:
        return TreeNode
    return BlobNode


def mtime_ns(ident: SnapshotId) -> int:
    """When a snapshot was made."""
    return ident.snapshot.time * NANOSECONDS
