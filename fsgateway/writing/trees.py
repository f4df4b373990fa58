"""The trees of open heads by inode number, and what the kernel knows of each inode.

Used on the event loop only, so there are no locks.
"""

import errno

from pyfuse3 import EntryAttributes, InodeT, ModeT

from fsgateway.attributes import IMMUTABLE_S, Presentation
from fsgateway.inodes import MAX_TREES, OFFSET_BITS, head_inode, place_in_head
from store.heads import Attributes, Tree


class HeadTrees:
    """The trees a mount has open for writing. A number is a tree's as long as the mount lives."""

    def __init__(self, presentation: Presentation) -> None:
        self._presentation = presentation
        self._trees: list[Tree] = []
        self._numbers: dict[int, int] = {}
        self._lookups: dict[int, int] = {}
        self.bare: set[int] = set()
        """Inodes the kernel knows that were made here and never had capabilities."""

    def number(self, tree: Tree) -> int:
        """The number of an open tree. Raises OSError(ENFILE) past 65,536."""
        number = self._numbers.get(id(tree))
        if number is None:
            if len(self._trees) == MAX_TREES:
                raise OSError(errno.ENFILE, f"{MAX_TREES} trees were open in this mount")
            number = self._numbers[id(tree)] = len(self._trees)
            self._trees.append(tree)
        return number

    def root(self, tree: Tree) -> InodeT:
        """The inode number of a tree's root."""
        return head_inode(self.number(tree), tree.root)

    def of(self, inode: int) -> tuple[Tree, int]:
        """The tree of an inode, and its number there. Raises OSError(ESTALE)."""
        place, number = place_in_head(inode)
        try:
            return self._trees[place], number
        except IndexError:
            raise OSError(errno.ESTALE, "this inode was forgotten") from None

    def tree(self, inode: int) -> Tree:
        """The tree of an inode. Raises OSError(ESTALE)."""
        try:
            return self._trees[inode >> OFFSET_BITS & MAX_TREES - 1]
        except IndexError:
            raise OSError(errno.ESTALE, "this inode was forgotten") from None

    def present(self, place: int, found: Attributes) -> EntryAttributes:
        """What the kernel is told of an inode of tree number `place`.

        It keeps it: nobody else changes a head, and what goes through the kernel it knows itself.
        """
        attributes = EntryAttributes()
        attributes.st_ino = head_inode(place, found.number)
        attributes.st_mode = ModeT(found.mode)
        attributes.st_nlink = found.nlink
        attributes.st_uid = found.uid
        attributes.st_gid = found.gid
        attributes.st_rdev = found.rdev
        attributes.st_size = found.size
        attributes.st_blocks = found.blocks
        attributes.st_atime_ns = found.atime_ns
        attributes.st_mtime_ns = found.mtime_ns
        attributes.st_ctime_ns = found.ctime_ns
        attributes.entry_timeout = attributes.attr_timeout = IMMUTABLE_S
        return attributes

    def remember(self, inode: int) -> None:
        """The kernel was told of an inode once (more): it stays, even without a name."""
        known = self._lookups.get(inode, 0)
        self._lookups[inode] = known + 1
        if not known:
            tree, number = self.of(inode)
            tree.hold(number)

    def remember_new(self, inode: int) -> None:
        """The same of a file that was made and is held for it already."""
        self._lookups[inode] = 1
        self.bare.add(inode)

    def forget(self, inode: int, lookups: int) -> None:
        """The kernel dropped `lookups` of the times it was told."""
        left = self._lookups.get(inode, 0) - lookups
        if left > 0:
            self._lookups[inode] = left
        elif self._lookups.pop(inode, 0):
            self.bare.discard(inode)
            tree, number = self.of(inode)
            tree.release(number)
