"""A disk image as a tree: what `drive-scsi0.img.d/` is in the mount.

    part1/  part5.unclean/    the files of a partition or logical volume
    part1.raw                 its bytes
    boot -> part1             other names: labels, VG-LV

`.unclean` says that a journal could not be replayed: what was written last is missing there. Where
it only was not replayed yet that name is not listed, but there for who asks for it.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from store.format.buffer import ReadAt
from store.trees.base import FileTree
from store.trees.joined import JoinedTree, Member


class Part(Protocol):
    """A partition or logical volume, as store/disks/disk.py has it."""

    @property
    def name(self) -> str:
        """`part1`."""

    @property
    def directory(self) -> str:
        """The name that its files go by."""

    @property
    def links(self) -> Sequence[str]:
        """Its other names."""

    @property
    def raw(self) -> ReadAt:
        """Its bytes."""

    @property
    def has_tree(self) -> bool:
        """Whether there is something to open, be it with a key."""

    @property
    def has_older_tree(self) -> bool:
        """Whether its journal is replayed before its files are shown."""

    def open_tree(self) -> FileTree:
        """Its files. Raises KeyRequired (locked), FormatError, IntegrityError."""

    def open_older_tree(self) -> FileTree:
        """The same without what is in the journal."""


def disk_tree(parts: Iterable[Part], mtime_s: int = 0) -> JoinedTree:
    """The tree over the parts of a disk. Each is opened when somebody enters it."""
    return JoinedTree((member for part in parts for member in _members(part)), mtime_s)


def _members(part: Part) -> Iterator[Member]:
    yield Member(f"{part.name}.raw".encode(), stream=part.raw)
    if not part.has_tree:
        return
    directory = part.directory.encode()
    yield Member(directory, open_tree=part.open_tree)
    if part.has_older_tree:
        yield Member(directory + b".unclean", open_tree=part.open_older_tree, listed=False)
    for link in part.links:
        yield Member(link.encode("utf-8", "surrogateescape"), target=directory)
