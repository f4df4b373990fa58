"""`drive-scsi0.img.d/`: what is inside a disk image.

    part1/  part5.unclean/    the files of a partition or logical volume
    part1.raw                 its bytes
    boot -> part1             other names: labels, VG-LV

Listing a snapshot reads nothing of an image, listing the disk reads its tables; a file system is
opened when somebody enters it.
"""

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from fsgateway.attributes import BLOCK, CHANGING_S, Facts
from fsgateway.tree import (
    PRIVATE_FILE,
    Directory,
    FileNode,
    LinkNode,
    Node,
    TreeNode,
    mtime_ns,
)
from fsgateway.view import Content, SnapshotId, Tree
from store.datastore.archives import IndexedStream
from store.disks.base import SegmentStream
from store.disks.disk import DiskPart
from store.errors import NotFound
from store.format.pxar.entries import Entry

# Disks are secrets: for the mount's owner and group. Further in, the guest's own modes protect.
DISK_DIRECTORY = stat.S_IFDIR | 0o550
PART_DIRECTORY = stat.S_IFDIR | 0o555
LINK = stat.S_IFLNK | 0o777


@dataclass(frozen=True, slots=True)
class DiskNode(FileNode, Directory):
    """The directory beside an image."""

    is_slow: ClassVar[bool] = True

    def facts(self) -> Facts:
        return Facts(DISK_DIRECTORY, mtime_ns=mtime_ns(self.ident), timeout_s=CHANGING_S)

    def children(self) -> Iterable[Node]:
        """Reads the disk's tables. Raises KeyRequired, IntegrityError, BackendError."""
        for part in self.view.disk(self.ident, self.name).parts:
            yield RawNode(self.view, (*self.path, f"{part.name}.raw"), self.ident, self.name, part)
            if part.has_tree:
                yield from self._with_files(part)

    def _with_files(self, part: DiskPart) -> Iterable[Node]:
        path = (*self.path, part.directory)
        yield PartNode(self.view, path, self.ident, self.name, part.name)
        for name in part.links:
            yield PartLinkNode(self.view, (*self.path, name), self.ident, part.directory)


@dataclass(frozen=True, slots=True)
class PartNode(TreeNode):
    """The files of a part. Its name is its disk's; `part` says which."""

    is_slow: ClassVar[bool] = True
    part: str

    def __str__(self) -> str:
        return f"{self.ident}/{self.name}: {self.part}"

    def _part(self) -> DiskPart:
        for part in self.view.disk(self.ident, self.name).parts:
            if part.name == self.part:
                return part
        raise NotFound(f"{self}: there is no such part")

    def facts(self) -> Facts:
        return Facts(PART_DIRECTORY, mtime_ns=mtime_ns(self.ident), timeout_s=CHANGING_S)

    def describe(self) -> Facts | Entry:
        """As the guest has it once it is open; until then whoever is in its disk may enter."""
        tree = self._part().opened_tree()
        return self.facts() if tree is None else tree.root()

    def open(self) -> Tree:
        """Raises KeyRequired, FormatError, IntegrityError, BackendError."""
        return GuestTree(self._part())

    def is_open(self) -> bool:
        return self._part().opened_tree() is not None


class GuestTree(Tree):
    """The open files of a part."""

    def __init__(self, part: DiskPart) -> None:
        super().__init__(part.open_tree())


@dataclass(frozen=True, slots=True)
class RawNode(FileNode):
    """The bytes of a part."""

    part: DiskPart

    def facts(self) -> Facts:
        blocks = -(-_used(self.part.raw) // BLOCK)
        return Facts(PRIVATE_FILE, self.part.size, blocks, mtime_ns(self.ident))

    def content(self) -> Content:
        """Where they are: in the image itself, where they lie in one piece."""
        raw = self.part.raw
        if isinstance(raw, SegmentStream) and raw.size:
            pieces = raw.pieces(0, raw.size)
            if len(pieces) == 1:
                return Content(raw.image, pieces[0].start, raw.size)
        return Content(raw, 0, raw.size)


def _used(raw: object) -> int:
    """How many bytes are not in zero chunks, by the index alone."""
    if not isinstance(raw, SegmentStream):
        return 0
    if not isinstance(raw.image, IndexedStream):
        return raw.size
    holes = raw.image.holes()
    return sum(holes.data_in(*piece) for piece in raw.pieces(0, raw.size))


@dataclass(frozen=True, slots=True)
class PartLinkNode(LinkNode):
    """Another name of a part."""

    ident: SnapshotId
    part: str

    def target(self) -> str:
        return self.part

    def known_target(self) -> str:
        return self.part

    def facts(self) -> Facts:
        return Facts(LINK, len(self.part.encode()), 0, mtime_ns(self.ident))
