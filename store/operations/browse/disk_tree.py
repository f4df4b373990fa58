"""A disk image as a tree: a directory for each partition, `partN.raw`, and links for other names.

`part1.unclean` in the place of `part1` says that its journal could not be replayed: what was
written last is missing in it.
"""

from collections.abc import Iterator, Sequence
from enum import Enum
from functools import partial
from typing import Any, Protocol

from store.format.buffer import ReadAt
from store.trees.base import FileTree
from store.trees.joined import JoinedTree, Member

UNCLEAN, UNREADABLE = "unclean", "unreadable"


class Part(Protocol):
    """A partition or logical volume, as store/disks/base.py describes it."""

    @property
    def name(self) -> str:
        """`part1`."""

    @property
    def links(self) -> Sequence[str]:
        """Other names."""

    @property
    def state(self) -> Enum:
        """Whether its files can be shown; values: clean, unclean, locked, unreadable."""


class Disk(Protocol):
    """A disk as store/disks/disk.py opens it."""

    def parts(self) -> Sequence[Any]:
        """Its Parts."""

    def raw(self, part: Any) -> ReadAt:  # noqa: ANN401 - its own kind of Part
        """A part's bytes."""

    def tree(self, part: Any) -> FileTree:  # noqa: ANN401
        """A part's files. Raises KeyRequired (locked), FormatError, IntegrityError."""


def disk_tree(disk: Disk, mtime_s: int = 0) -> JoinedTree:
    """The tree over all parts. A part is opened when somebody enters it."""
    return JoinedTree(_members(disk), mtime_s)


def _members(disk: Disk) -> Iterator[Member]:
    for part in disk.parts():
        yield from _members_of(disk, part)


def _members_of(disk: Disk, part: Part) -> Iterator[Member]:
    """A part without files has its bytes only; a locked one says so when it is entered."""
    raw = disk.raw(part)
    name = f"{part.name}.{UNCLEAN}" if part.state.value == UNCLEAN else part.name
    if part.state.value != UNREADABLE:
        yield Member(name.encode(), open_tree=partial(disk.tree, part))
    yield Member(f"{part.name}.raw".encode(), stream=raw)
    target = name if part.state.value != UNREADABLE else f"{part.name}.raw"
    for link in part.links:
        yield Member(link.encode("utf-8", "surrogateescape"), target=target.encode())
