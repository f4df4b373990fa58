"""Metadata mode: unchanged files keep the payload chunks of the previous snapshot, unread.

The chunks that hold such a file are named again by the new index, at the place where the payload
stream has arrived; an old chunk may be named several times, once after each changed file in its
middle. What lies between the files that are used is padding: it costs nothing to store, but a
sequential reader passes over it, so `growth` bounds the stream's size to that many times the files
in it. Store notes 0002 has the reasons and figures.
"""

from collections.abc import Sequence

from store.format.chunker import PayloadStream
from store.format.dynamic_index import DynamicIndex
from store.format.pxar.items import HEADER_SIZE
from store.operations.backup.chunks import ChunkWriter

SLACK = 64 << 20
SHORT_TAIL = 16
"""A file so near its chunk's end that less than 1/16 of that could be used is read again."""
SMALL_START = 64 << 10


class PayloadReuse:
    """Places old chunks in the new payload stream, and says where their files then are."""

    def __init__(
        self,
        index: DynamicIndex,
        stream: PayloadStream,
        chunks: ChunkWriter,
        growth: float,
        *,
        any_order: bool = False,
    ) -> None:
        """With `any_order`, what lies behind the payload placed last has its chunks named again.

        That is for trees whose files may have been moved; else the order of an archive that is
        sound is the order of the tree.
        """
        self._any_order = any_order
        self._index, self._stream, self._chunks, self._growth = index, stream, chunks, growth
        self._last = -1  # the old chunk that ends the new stream, if nothing was written since
        self._last_end = 0  # where it ends in the old stream
        self._end = 0  # where it ends in the new stream
        self._shift = 0  # new position less old position, for the chunks placed in one go
        self._used = HEADER_SIZE  # old position after the last payload used
        self._logical = 0

    def count(self, size: int) -> None:
        """A payload of `size` bytes, header included, went into the stream by itself."""
        self._logical += size

    def place(self, start: int, size: int) -> int | None:
        """The new position of the old payload item at `start`, `size` bytes with its header.

        None when it is better read again: its chunks are gone, lie behind what is written, or would
        add too much padding. Also when it lies where no payload can: before the end of one placed
        already, or across the markers.
        """
        end = start + size
        behind = start < self._used
        first = HEADER_SIZE if self._any_order else self._used
        if start < first or end > self._index.size - HEADER_SIZE:
            return None
        within = not behind and end <= self._last_end and self._stream.position == self._end
        if not within and not self._add_chunks(start, end, behind=behind):
            return None
        self._logical += size
        self._used = end
        return start + self._shift

    def place_all(self, starts: Sequence[int], sizes: Sequence[int]) -> list[int]:
        """`place` for one payload after the other, up to the first that is better read again.

        Args:
            starts: of the payload items in the old stream.
            sizes: of their contents, in bytes, without the header.
        """
        places = []
        for start, size in zip(starts, sizes, strict=True):
            place = self.place(start, HEADER_SIZE + size)
            if place is None:
                break
            places.append(place)
        return places

    def ends_with_marker(self) -> bool:
        """Whether the stream now ends as the old one did, so that the old tail marker serves."""
        return self._last == len(self._index) - 1 and self._stream.position == self._end

    def _continues(self, start: int) -> bool:
        """Whether the new stream ends in the old chunk before the one of `start`, or in that."""
        if self._last < 0 or self._stream.position != self._end:
            return False
        return start < self._last_end or self._index.position(start) == self._last + 1

    def _add_chunks(self, start: int, end: int, *, behind: bool) -> bool:
        """Put the chunks that hold old bytes `start` to `end` at the stream's end, if it pays."""
        first, last = self._index.position(start), self._index.position(end - 1)
        continues = not behind and self._continues(start)
        begin = self._last + 1 if continues else self._begin(first, start, end)
        if begin is None:
            return False
        needed = range(begin, last + 1)
        return self._affordable(needed, end - start) and self._inject(needed)

    def _begin(self, first: int, start: int, end: int) -> int | None:
        """The old chunk to begin with: the first of all, if near, for the old start marker."""
        chunk_start, chunk_end = self._index.range(first)
        if self._stream.position == 0:
            return 0 if chunk_start <= SMALL_START else None
        usable = max(chunk_end, end) - start
        return None if usable * SHORT_TAIL < chunk_end - chunk_start else first

    def _affordable(self, needed: range, size: int) -> bool:
        placed = self._index.range(needed[-1])[1] - self._index.range(needed[0])[0]
        return self._stream.position + placed <= self._growth * (self._logical + size) + SLACK

    def _inject(self, needed: range) -> bool:
        digests = [self._index.digest(i) for i in needed]
        if not all(self._chunks.touch(digest) for digest in digests):
            return False
        if needed[0] != self._last + 1 or self._stream.position != self._end:
            self._shift = self._stream.position - self._index.range(needed[0])[0]
        sizes = [end - start for start, end in map(self._index.range, needed)]
        self._stream.inject(list(zip(digests, sizes, strict=True)))
        self._last = needed[-1]
        self._last_end = self._index.range(self._last)[1]
        self._end = self._stream.position
        return True
