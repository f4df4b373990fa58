"""A disk image as a tree: a directory for each partition, `partN.raw`, and links for other names.

`part1.unclean` in the place of `part1` says that its journal could not be replayed: what was
written last is missing in it.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

from store.format.buffer import ReadAt
from store.trees.base import FileTree
from store.trees.joined import JoinedTree, Member

UNCLEAN = "unclean"


class Part(Protocol):
    """One partition or logical volume, as store/disks has it."""

    @property
    def name(self) -> str: ...
    @property
    def raw(self) -> ReadAt: ...
    @property
    def links(self) -> Sequence[str]: ...
    @property
    def state(self) -> str: ...
    @property
    def has_tree(self) -> bool: ...
    def open_tree(self) -> FileTree: ...


class Disk(Protocol):
    """What is inside an image."""

    @property
    def parts(self) -> Sequence[Part]: ...


def disk_tree(disk: Disk, mtime_s: int = 0) -> JoinedTree:
    """The tree over all parts. A part is opened when somebody enters it."""
    return JoinedTree(_members(disk), mtime_s)


def _members(disk: Disk) -> Iterator[Member]:
    for part in disk.parts:
        name = f"{part.name}.{UNCLEAN}" if part.state == UNCLEAN else part.name
        if part.has_tree:
            yield Member(name.encode(), open_tree=part.open_tree)
        yield Member(f"{part.name}.raw".encode(), stream=part.raw)
        for link in part.links if part.has_tree else ():
            yield Member(link.encode("utf-8", "surrogateescape"), target=name.encode())
