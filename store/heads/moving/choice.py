"""What of a head is moved: all that its oldest segments have, and how it is put into chunks.

A region of 4 MiB that is all data, and not written to since, is a chunk: the one that a seal makes
of it, which finds it there. What else there is goes into chunks as it comes, one behind the other.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from store.format.buffer import Buffer
from store.format.fixed_index import CHUNK_SIZE
from store.heads.content import Content
from store.heads.database import ARCHIVE_SHIFT, Rows
from store.heads.extents import CHUNK, REGION, ZERO, Extent, Region
from store.heads.tree.inodes import Inode


class Part(NamedTuple):
    """Neighbouring extents of one region, all of it or one: they get one extent instead.

    owner: key of the file or image.
    """

    owner: int
    region: int
    extents: tuple[Extent, ...]
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def is_whole(self) -> bool:
        """Whether it is all that its region has; a record is far too small for that."""
        return len(self.extents) > 1

    def moved(self, record: int, skip: int) -> Extent:
        """The extent that says that all of it is in a chunk, `skip` bytes behind its beginning."""
        return self.start, self.end, max(extent[2] for extent in self.extents), record, skip

    def is_there(self, region: Region) -> bool:
        """Whether the region still is what it was."""
        if self.is_whole:
            return tuple(region) == self.extents
        at = bisect_left(region, self.extents[0])
        return at < len(region) and region[at] == self.extents[0]


ALL = (1 << 63) - 1
"""Generations."""
Pack = list[Part]
"""What makes up one chunk."""


def oldest_segments(sizes: dict[int, int], before: int, enough: int) -> set[int]:
    """The first segments before a number that have so many bytes together, or all of those."""
    chosen: set[int] = set()
    for number in sorted(number for number in sizes if number < before):
        if enough <= 0:
            break
        chosen.add(number)
        enough -= sizes[number]
    return chosen


class Choice:
    """Reads the rows of a head, which has just been committed."""

    def __init__(
        self,
        rows: Rows,
        segments: set[int],
        images: dict[int, tuple[int, int]],
        trees: Iterable[int],
    ) -> None:
        """`segments`: to be emptied. `images`: size, and that of what is below, by archive."""
        self._rows, self._segments = rows, segments
        self._images, self._trees = images, list(trees)

    def packs(self) -> Iterator[Pack]:
        """What is to be moved, each the content of a chunk."""
        waiting: Pack = []
        size = 0
        for part in self._parts():
            if part.is_whole:
                yield [part]
                continue
            if size + part.size > CHUNK_SIZE:
                yield waiting
                waiting, size = [], 0
            waiting.append(part)
            size += part.size
        if waiting:
            yield waiting

    def _parts(self) -> Iterator[Part]:
        for archive, (size, below) in self._images.items():
            owner = archive << ARCHIVE_SHIFT
            content = Content(owner, {}, self._rows.region_numbers(owner))
            yield from self._of_content(content, size, below, least=CHUNK_SIZE // 2)
        for archive in self._trees:
            for inode, content in self._files(archive):
                yield from self._of_content(content, inode.size, inode.kept, least=CHUNK_SIZE)

    def _files(self, archive: int) -> Iterator[tuple[Inode, Content]]:
        """The files of a tree that have content of the head's own, with or without a name."""
        for key, generation, value in self._rows.keys(archive, ALL):
            inode, far, inline = Inode.decode(0, generation, value)
            if inode.is_file and (far or inline):
                inode.add_content(key, {}, self._rows.region_numbers(key) if far else set(), inline)
                assert inode.content is not None
                yield inode, inode.content

    def _of_content(self, content: Content, size: int, below: int, *, least: int) -> Iterator[Part]:
        """The parts of one file or image; `least` bytes of data make a region a chunk."""
        for number in sorted(content.stored | set(content.regions)):
            region = content.region(number, self._rows)
            content.regions.clear()  # none is needed twice
            old = [extent for extent in region if self._is_old(extent)]
            if not old:
                continue
            start = number * REGION
            span = min(REGION, size - start)
            data = sum(end - first for first, end, _, record, _ in region if record != ZERO)
            covered = sum(extent[1] - extent[0] for extent in region)
            has_all = covered == span or start >= below
            if has_all and data >= least and self._is_cold(region):
                yield Part(content.owner, number, tuple(region), 0, span)
            else:
                for extent in old:
                    yield Part(content.owner, number, (extent,), extent[0], extent[1])

    def _is_old(self, extent: Extent) -> bool:
        return extent[3] < CHUNK and extent[2] in self._segments

    def _is_cold(self, region: Region) -> bool:
        """Whether nothing was written to it since."""
        return all(
            record >= CHUNK or segment in self._segments for _, _, segment, record, _ in region
        )


def read_pack(pack: Pack, payload: Callable[[int, int], Buffer]) -> bytes:
    """The bytes of a chunk."""
    return b"".join(piece for part in pack for piece in _pieces(part, payload))


def _pieces(part: Part, payload: Callable[[int, int], Buffer]) -> Iterator[Buffer]:
    """What a part has, with zeros where no extent is."""
    done = part.start
    for start, end, segment, record, skip in part.extents:
        if done < start:
            yield bytes(start - done)
        yield (
            bytes(end - start)
            if record == ZERO
            else payload(segment, record)[skip : skip + end - start]
        )
        done = end
    if done < part.end:
        yield bytes(part.end - done)
