"""A frozen tree into an archive, by the writer that a backup uses; and where each inode went."""

import heapq
import stat
from array import array
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from store.format.pxar.items import MAX_TARGET_LENGTH
from store.heads.sealing.frozen import FrozenTree
from store.heads.tree.below import OWN, ROOT
from store.heads.tree.inodes import Inode
from store.operations.backup.archive import SplitArchive
from store.operations.backup.content import READ_SIZE, Stream
from store.operations.backup.links import LinkTable
from store.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

Run = tuple[int, int, int]


class Facts(NamedTuple):
    """What an archive and a link table ask of an inode."""

    st_dev: int
    st_ino: int
    st_nlink: int
    st_mode: int
    st_size: int
    st_mtime_ns: int
    st_rdev: int


def _facts(inode: Inode) -> Facts:
    return Facts(0, inode.number, inode.nlink, inode.mode, inode.size, inode.mtime_ns, inode.rdev)


class Places:
    """Where a seal put the inodes: those of the base in runs, the head's own one by one."""

    def __init__(self) -> None:
        self.numbers, self.offsets = array("Q"), array("Q")
        self.link_targets = array("Q")
        self._runs: list[Run] = []
        self._first = self._offset = self._last = 0
        self.root = 0

    def add(self, number: int, offset: int) -> None:
        """An inode is now at this offset of the metadata stream."""
        if number == ROOT:
            self.root = offset
        elif number >= OWN:
            self.numbers.append(number)
            self.offsets.append(offset)
        elif self._last < number and offset - number == self._offset - self._first and self._first:
            self._last = number
        else:
            self._end_run()
            self._first, self._offset, self._last = number, offset, number

    def _end_run(self) -> None:
        if self._first:
            self._runs.append((self._first, self._offset, self._last + 1))

    def runs(self) -> list[Run]:
        """First number, its offset, the number after the last; a run within another splits it."""
        self._end_run()
        self._first = 0
        heap = self._runs
        heapq.heapify(heap)
        found: list[Run] = []
        while heap:
            first, offset, end = heapq.heappop(heap)
            if found and found[-1][2] > first:
                before, before_offset, before_end = found[-1]
                found[-1] = (before, before_offset, first)
                if before_end > end:
                    heapq.heappush(heap, (end, before_offset + end - before, before_end))
            found.append((first, offset, end))
        return [run for run in found if run[0] < run[2]]


class TreeSealer:
    """One walk over a frozen tree. Deep trees cost a stack entry a level."""

    def __init__(self, tree: FrozenTree, archive: SplitArchive, progress: Progress) -> None:
        self.places = Places()
        self._tree, self._archive, self._progress = tree, archive, progress
        self._links = LinkTable()
        self._path = b""

    def walk(self) -> None:
        """Write all of it."""
        try:
            root = self._tree.root()
            self._archive.begin(root.metadata())
            self._walk(root)
        finally:
            self._links.close()
        self._archive.finish()

    def _walk(self, root: Inode) -> None:
        stack: list[tuple[bytes, Iterator[tuple[bytes, Inode]]]] = [
            (b"", self._tree.children(root))
        ]
        while stack:
            name, children = stack[-1]
            item = next(children, None)
            if item is None:
                stack.pop()
                if stack:
                    self._archive.leave_directory()
                    self._path = self._path[: -len(name) - 1]
                continue
            name, inode = item
            if inode.is_directory:
                self._archive.enter_directory(name, _metadata(inode))
                self.places.add(inode.number, self._archive.last_offset)
                self._path += name + b"/"
                stack.append((name, self._tree.children(inode)))
            else:
                self._leaf(name, inode)

    def _leaf(self, name: bytes, inode: Inode) -> None:
        facts = _facts(inode)
        if inode.is_file and inode.nlink > 1:
            known = self._links.find(facts)
            if known is not None and len(known[1]) <= MAX_TARGET_LENGTH:
                self._archive.hardlink(name, *known)
                self.places.link_targets.append(known[0])
                return
        if inode.is_file:
            self._file(name, inode, facts)
        elif stat.S_ISLNK(inode.mode):
            self._archive.symlink(name, _metadata(inode), inode.target)
        else:
            self._archive.special(name, _metadata(inode), facts)
        self.places.add(inode.number, self._archive.last_offset)
        if inode.is_file and inode.nlink > 1:
            self._links.add(facts, self._archive.last_offset, self._path + name)

    def _file(self, name: bytes, inode: Inode, facts: Facts) -> None:
        copy = partial(self._copy, inode)
        old = self._tree.has_base_content(inode)
        if old is not None:
            self._archive.kept(name, _metadata(inode), old, copy)
        else:
            self._archive.file(name, _metadata(inode), facts, None, copy)
        self._progress.advance(inode.size)

    def _copy(self, inode: Inode, stream: Stream) -> None:
        done = 0
        while done < inode.size:
            view = stream.reserve(min(READ_SIZE, inode.size - done))
            size = len(view)
            view[:] = self._tree.read(inode, done, size)
            stream.commit(size)
            done += size


def _metadata(inode: Inode) -> bytes:
    """As the base has it if it is the base's: `entry` is set only for what has no row."""
    if not inode.stored and inode.entry is not None and inode.entry.raw_metadata[8:16] == _PLAIN:
        return inode.entry.raw_metadata
    return inode.metadata()


_PLAIN = (56).to_bytes(8, "little")
"""The size of an ENTRY of the present version; old archives' are encoded anew."""
