"""Inode numbers: stable while mounted, in tables no larger than what the kernel holds.

    pxar entry   1  | archive 17 bits | offset of its FILENAME item 46 bits (0: the tree's root)
    in a head    01 | tree 16 bits | number in the tree 46 bits
    other nodes  00 | 62 bits, a hash of the node's path

A pxar entry's number says where to read it again, so a file costs no memory here at all; only
directories keep their end, which the archive gives with their parent's listing. What the kernel
forgot is forgotten here.
"""

import errno
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Generic, Protocol, TypeVar

from pyfuse3 import ROOT_INODE, InodeT

OFFSET_BITS = 46
ARCHIVE_BITS = 17
MAX_OFFSET = 2**OFFSET_BITS
MAX_ARCHIVES = 2**ARCHIVE_BITS
PXAR = 1 << 63
HEAD = 1 << 62
MAX_TREES = 2**16


class HasPath(Protocol):
    """A node is the same as another one of the same path."""

    @property
    def path(self) -> tuple[str, ...]:
        """Its names from the mount's root down; () is the root."""


N = TypeVar("N", bound=HasPath)
A = TypeVar("A")


class NodeTable(Generic[N]):
    """The nodes that are not pxar entries, by inode number, as long as the kernel knows them."""

    def __init__(self, root: N) -> None:
        self._root = root
        self._nodes: dict[int, N] = {ROOT_INODE: root}
        self._lookups: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def number(self, node: N) -> InodeT:
        """The inode number of `node`, the same every time."""
        if not node.path:
            return ROOT_INODE
        digest = blake2b("\0".join(node.path).encode(), digest_size=8).digest()
        number = int.from_bytes(digest, "little") % (HEAD - 2) + 2
        while (known := self._nodes.get(number)) is not None and known.path != node.path:
            number = (number + 1) % (HEAD - 2) + 2
        return InodeT(number)

    def remember(self, number: int, node: N) -> None:
        """The kernel was told of `node` once (more)."""
        if number != ROOT_INODE:
            self._nodes.setdefault(number, node)
            self._lookups[number] = self._lookups.get(number, 0) + 1

    def forget(self, number: int, lookups: int) -> None:
        """The kernel dropped `lookups` of the times it was told."""
        left = self._lookups.get(number, 0) - lookups
        if left > 0:
            self._lookups[number] = left
        elif number != ROOT_INODE:
            self._lookups.pop(number, None)
            self._nodes.pop(number, None)

    def get(self, number: int) -> N:
        """The node of a number the kernel knows. Raises OSError(ESTALE)."""
        try:
            return self._nodes[number]
        except KeyError:
            raise OSError(errno.ESTALE, "this inode was forgotten") from None


class EntryTable(Generic[A]):
    """The numbers of pxar entries, and what the kernel knows of each archive."""

    def __init__(
        self, max_archives: int = MAX_ARCHIVES, on_reuse: Callable[[], None] = lambda: None
    ) -> None:
        """`on_reuse` is called when a number goes to another archive: forget what it meant."""
        self._max_archives = max_archives
        self._on_reuse = on_reuse
        self._archives: dict[int, A] = {}
        self._numbers: dict[tuple[str, ...], int] = {}
        self._lookups: dict[int, int] = {}
        # The ends of the directories that the kernel knows, and how often it was told of those that
        # it was told of more than once: there may be a million, and they are met once.
        self._directories: dict[int, int] = {}
        self._told_again: dict[int, int] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._directories)

    def archive_number(self, path: tuple[str, ...], make: Callable[[], A]) -> int:
        """The number of the archive at `path`, its own unless there are over 100,000.

        Raises:
            OSError: ENFILE, the kernel holds entries of that many archives.
        """
        number = self._numbers.get(path)
        if number is None:
            number = self._free_number()
            self._numbers[path] = number
            self._archives[number] = make()
        return number

    def _free_number(self) -> int:
        if self._next < self._max_archives:
            self._next += 1
            return self._next - 1
        for path, number in self._numbers.items():
            if not self._lookups.get(number):
                del self._numbers[path]
                self._archives.pop(number, None)
                self._on_reuse()
                return number
        raise OSError(errno.ENFILE, f"the kernel holds files of {self._max_archives} archives")

    def archive(self, inode: int) -> tuple[A, int]:
        """The archive of an entry's inode number, and the entry's offset in it.

        Raises OSError(ESTALE).
        """
        try:
            return self._archives[inode >> OFFSET_BITS & MAX_ARCHIVES - 1], inode & MAX_OFFSET - 1
        except KeyError:
            raise OSError(errno.ESTALE, "this inode was forgotten") from None

    def directory_end(self, inode: int) -> int:
        """Where a known directory ends in its archive; 0 for the root and all else."""
        return self._directories.get(inode, 0)

    def remember(self, inode: int, directory_end: int | None) -> None:
        """The kernel was told of an entry; `directory_end` is None for other kinds."""
        self.remember_all(inode, 1, [] if directory_end is None else [(inode, directory_end)])

    def remember_all(
        self, sibling: int, count: int, directories: Iterable[tuple[int, int]]
    ) -> None:
        """The kernel was told of `count` entries of one archive.

        Args:
            sibling: the number of any entry of it.
            count: how many there were.
            directories: those of them that are, with their ends.
        """
        number = sibling >> OFFSET_BITS & MAX_ARCHIVES - 1
        self._lookups[number] = self._lookups.get(number, 0) + count
        for inode, directory_end in directories:
            if inode in self._directories:
                self._told_again[inode] = self._told_again.get(inode, 1) + 1
            else:
                self._directories[inode] = directory_end

    def forget(self, inode: int, lookups: int) -> None:
        """The kernel dropped `lookups` of the times it was told."""
        number = inode >> OFFSET_BITS & MAX_ARCHIVES - 1
        self._lookups[number] = max(0, self._lookups.get(number, 0) - lookups)
        if inode in self._directories:
            left = self._told_again.pop(inode, 1) - lookups
            if left <= 0:
                del self._directories[inode]
            elif left > 1:
                self._told_again[inode] = left


def entry_inode(archive_number: int, offset: int) -> InodeT:
    """The inode number of the entry whose FILENAME item is at `offset`.

    Raises OSError(EOVERFLOW) past 64 TiB.
    """
    if offset >= MAX_OFFSET:
        raise OSError(errno.EOVERFLOW, f"archive offset {offset}: no inode number for it")
    return InodeT(PXAR | archive_number << OFFSET_BITS | offset)


def sibling(inode: InodeT, offset: int) -> InodeT:
    """The number of another entry of the same archive. Raises OSError(EOVERFLOW)."""
    return entry_inode(inode >> OFFSET_BITS & MAX_ARCHIVES - 1, offset)


def is_entry(inode: int) -> bool:
    """Whether an inode number is a pxar entry's."""
    return inode >= PXAR


def head_inode(tree: int, number: int) -> InodeT:
    """The inode number of `number` in the tree of a head that the mount knows as `tree`."""
    return InodeT(HEAD | tree << OFFSET_BITS | number)


def is_in_head(inode: int) -> bool:
    """Whether an inode number is one of a head's tree."""
    return HEAD <= inode < PXAR


def place_in_head(inode: int) -> tuple[int, int]:
    """The tree of a head, and the number in it."""
    return inode >> OFFSET_BITS & MAX_TREES - 1, inode & MAX_OFFSET - 1


Forgets = Sequence[tuple[InodeT, int]]
