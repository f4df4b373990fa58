"""Whether two stretches of two streams have the same bytes: from the indexes as far as they tell.

Chunks with equal digests are equal. Where a stretch begins at the same place in both, what such
chunks cover is never read; the rest is compared byte by byte.
"""

from typing import NamedTuple

from store.datastore.streams import IndexedStream
from store.format.buffer import ReadAt

FIRST_PIECE, LARGEST_PIECE = 64 << 10, 4 << 20
"""Most differences are near the beginning: begin small."""


class Stretch(NamedTuple):
    """A file's content, or a directory's items, in a stream."""

    stream: ReadAt
    offset: int
    size: int


def same_bytes(a: Stretch, b: Stretch, *, read: bool = True) -> bool:
    """Compare two stretches. Raises what reading raises.

    read: without it only what the indexes tell counts; anything else is another.
    """
    if a.size != b.size:
        return False
    if a.stream is b.stream and a.offset == b.offset:
        return True
    position, piece = 0, FIRST_PIECE
    while position < a.size:
        equal = _known_equal(a, b, position)
        if equal:
            position += equal
            continue
        if not read:
            return False
        size = min(piece, a.size - position)
        if a.stream.read(a.offset + position, size) != b.stream.read(b.offset + position, size):
            return False
        position += size
        piece = min(2 * piece, LARGEST_PIECE)
    return True


def _known_equal(a: Stretch, b: Stretch, position: int) -> int:
    """How many bytes from `position` on are equal, by the digest of the chunk that has them."""
    if not isinstance(a.stream, IndexedStream) or not isinstance(b.stream, IndexedStream):
        return 0
    left, right = a.stream.index, b.stream.index
    here, there = left.position(a.offset + position), right.position(b.offset + position)
    (start, end), (other_start, other_end) = left.range(here), right.range(there)
    aligned = a.offset - start == b.offset - other_start and end - start == other_end - other_start
    if aligned and left.digest(here) == right.digest(there):
        return min(end - a.offset, a.size) - position
    return 0
