"""A frozen tree into an archive, by the writer that a backup uses; and where each inode went."""

import heapq
import stat
from array import array
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from store.format.chunker import KnownChunks
from store.format.dynamic_index import DynamicIndex
from store.format.pxar.items import HEADER_SIZE, MAX_TARGET_LENGTH
from store.heads.extents import CHUNK, ZERO
from store.heads.moved import MovedChunks
from store.heads.sealing.frozen import FrozenTree
from store.heads.tree.below import OWN, ROOT
from store.heads.tree.inodes import Inode
from store.names import Digest
from store.operations.backup.archive import SplitArchive
from store.operations.backup.content import READ_SIZE, Stream
from store.operations.backup.links import LinkTable
from store.progress import Progress

PATCHED = 8 << 20
"""Smaller files that changed are read whole."""

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

    def __init__(
        self,
        tree: FrozenTree,
        archive: SplitArchive,
        progress: Progress,
        previous: DynamicIndex | None,
        touch: Callable[[Digest], bool],
        fresh: Callable[[], int],
        *,
        moved: MovedChunks | None,
    ) -> None:
        """`previous`: the base's payload, whose chunks may be named again if `touch` finds them.

        `fresh` gives a number to what becomes an inode of its own. `moved`: chunks of the head that
        may be named, too.
        """
        self._moved = moved
        self._fresh = fresh
        self._placed: set[int] = set()
        self._previous, self._touch = previous, touch
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
        facts, number = _facts(inode), inode.number
        if inode.is_file and inode.nlink > 1:
            known = self._links.find(facts)
            if known is not None and len(known[1]) <= MAX_TARGET_LENGTH:
                self._archive.hardlink(name, *known)
                self.places.link_targets.append(known[0])
                return
            if known is not None:
                number = self._fresh()
        elif inode.nlink > 1:  # a symlink or the like: the format has no links to those
            if number in self._placed:
                number = self._fresh()
            self._placed.add(inode.number)
        if inode.is_file:
            self._file(name, inode, facts)
        elif stat.S_ISLNK(inode.mode):
            self._archive.symlink(name, _metadata(inode), inode.target)
        else:
            self._archive.special(name, _metadata(inode), facts)
        self.places.add(number, self._archive.last_offset)
        if inode.is_file and inode.nlink > 1 and number == inode.number:
            self._links.add(facts, self._archive.last_offset, self._path + name)

    def _file(self, name: bytes, inode: Inode, facts: Facts) -> None:
        copy = partial(self._copy, inode)
        old = self._tree.has_base_content(inode)
        if old is not None:
            self._archive.kept(name, _metadata(inode), old, copy)
        elif inode.size >= PATCHED:
            parts = self._patches(inode)
            self._archive.patched(name, _metadata(inode), inode.size, parts)
        else:
            self._archive.file(name, _metadata(inode), facts, None, copy)
        self._progress.advance(inode.size)

    def _patches(self, inode: Inode) -> Iterator[Callable[[Stream], None] | KnownChunks]:
        """A large file: chunks that are in the datastore where all of one is left, and the rest."""
        done = 0
        for chunk, low, high in self._known_chunks(inode):
            if not self._touch(chunk):
                continue
            if done < low:
                yield partial(self._copy, inode, start=done, end=low)
            yield [(chunk, high - low)]
            done = high
        if done < inode.size:
            yield partial(self._copy, inode, start=done)

    def _known_chunks(self, inode: Inode) -> Iterator[tuple[Digest, int, int]]:
        """Those of the old payload, and those moved: digest, start and end in the file."""
        shift = None
        for piece in self._tree.pieces(inode):
            if CHUNK <= piece.record < ZERO and self._moved is not None:
                chunk = self._moved.find(piece.record)
                if not piece.skip and chunk.size == piece.end - piece.start:
                    yield chunk.digest, piece.start, piece.end
            elif not piece.segment and self._previous is not None and piece.start < inode.kept:
                if shift is None:
                    shift = self._tree.payload_of(inode) + HEADER_SIZE
                start, end = piece.start + shift, min(piece.end, inode.kept) + shift
                for digest, low, high in _whole_chunks(self._previous, start, end):
                    yield digest, low - shift, high - shift

    def _copy(
        self, inode: Inode, stream: Stream, *, start: int = 0, end: int | None = None
    ) -> None:
        end = inode.size if end is None else end
        while start < end:
            view = stream.reserve(min(READ_SIZE, end - start))
            size = len(view)
            view[:] = self._tree.read(inode, start, size)
            stream.commit(size)
            start += size


def _whole_chunks(index: DynamicIndex, start: int, end: int) -> Iterator[tuple[Digest, int, int]]:
    """The chunks that lie between two offsets of a stream: digest, start, end."""
    position = index.position(start)
    while position < len(index):
        low, high = index.range(position)
        if high > end:
            return
        if low >= start:
            yield index.digest(position), low, high
        position += 1


def _metadata(inode: Inode) -> bytes:
    """As the base has it if it is the base's: `entry` is set only for what has no row."""
    if not inode.stored and inode.entry is not None and inode.entry.raw_metadata[8:16] == _PLAIN:
        return inode.entry.raw_metadata
    return inode.metadata()


_PLAIN = (56).to_bytes(8, "little")
"""The size of an ENTRY of the present version; old archives' are encoded anew."""
