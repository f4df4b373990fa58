"""What is in one snapshot, by path: `root.pxar/etc/fstab`, `drive-scsi0.img/part1/etc/fstab`.

The first part names an archive, as the mount shows it. An image is a file, and with something
behind its name (or as `drive-scsi0.img.d`, its directory in the mount) what is inside the disk.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from store.datastore.archives import SnapshotReader
from store.datastore.snapshot_indexes import INDEXES
from store.errors import NotFound
from store.format.manifest import Manifest
from store.trees.base import FileTree
from store.trees.names import quote
from store.trees.paths import Spot, find_path

if TYPE_CHECKING:
    from collections.abc import Iterator

INDEX_SUFFIXES = (*INDEXES, ".blob")
TREE, IMAGE, INSIDE = ".pxar", ".img", ".d"

OpenDisk = Callable[[SnapshotReader, str], FileTree]
"""From a snapshot and the name of an image in it to the tree of its partitions."""


@dataclass(frozen=True)
class Place:
    """Where a path leads: into a tree, or to a whole image or blob (`tree` is None)."""

    archive: str
    path: bytes
    tree: FileTree | None = None

    def __str__(self) -> str:
        return quote(b"%b/%b" % (self.archive.encode(), self.path)).rstrip("/")


class SnapshotContents:
    """The archives of a snapshot, each opened once, when it is asked for. Not for threads."""

    def __init__(self, reader: SnapshotReader, open_disk: OpenDisk) -> None:
        """`open_disk`: how to look into images."""
        self.reader = reader
        self._open_disk = open_disk
        self._trees: dict[str, FileTree] = {}

    @property
    def archives(self) -> list[str]:
        return self.reader.archives

    @property
    def trees(self) -> list[str]:
        """The archives that have files in them: trees, and disks."""
        return [name for name in self.archives if name.endswith((TREE, IMAGE))]

    def locate(self, path: str) -> Place:
        """Take a path apart. Raises NotFound: no such archive; and as `tree`."""
        head, slash, tail = path.strip("/").partition("/")
        inside = bool(slash) or path.endswith("/") or head.endswith(IMAGE + INSIDE)
        name = archive_name(self.reader, head.removesuffix(INSIDE) if inside else head)
        below = tail.encode("utf-8", "surrogateescape")
        if name.endswith(TREE) or (name.endswith(IMAGE) and inside):
            return Place(name, below, self.tree(name))
        if inside:
            raise NotFound(f"{path}: {name} is a file, with nothing below it")
        return Place(name, b"")

    def enter(self, path: str) -> Place:
        """The same, but a whole image is meant as what is inside it."""
        place = self.locate(path)
        if place.tree is None and place.archive.endswith(IMAGE):
            return Place(place.archive, b"", self.tree(place.archive))
        return place

    def tree(self, archive: str) -> FileTree:
        """The tree of an archive. Raises as `SnapshotReader.open_tree`."""
        if archive not in self._trees:
            self._trees[archive] = self._open(archive)
        return self._trees[archive]

    def _open(self, archive: str) -> FileTree:
        if archive.endswith(TREE):
            return self.reader.open_tree(archive)
        return self._open_disk(self.reader, archive)


def archive_name(reader: SnapshotReader, archive: str) -> str:
    """The archive as users name it. Raises NotFound, with the names there are."""
    name = _plain_name(archive)
    if name not in reader:
        raise NotFound(f"{archive or '/'}: no such archive; there are {', '.join(reader.archives)}")
    return name


def _plain_name(archive: str) -> str:
    """`root.mpxar.didx` -> `root.pxar`."""
    name = archive
    for suffix in INDEX_SUFFIXES:
        name = name.removesuffix(suffix)
    if name.endswith((".mpxar", ".ppxar")):
        name = name[: -len(".mpxar")] + TREE
    return name


def indexes_behind(manifest: Manifest, path: str) -> list[str]:
    """The index files of the archive that a path leads to; none of one that is not there."""
    head = path.strip("/").partition("/")[0]
    names = {_plain_name(head), head.removesuffix(INSIDE)}
    files = (info.filename for info in manifest.files)
    return [name for name in files if name.endswith(INDEXES) and _plain_name(name) in names]


def spot_of(place: Place, *, follow: bool = True) -> Spot:
    """The entry that a place in a tree means. Raises NotFound, naming the archive."""
    assert place.tree is not None
    with naming(place.archive):
        return find_path(place.tree, b"/" + place.path, follow=follow)


@contextmanager
def naming(archive: str) -> "Iterator[None]":
    """Have NotFound say which archive has no such path."""
    try:
        yield
    except NotFound as error:
        error.args = (f"{archive}: {error}",)
        raise
