"""In which stretches two disk images differ: from their indexes, without reading a chunk."""

from collections.abc import Iterator

from store.datastore.streams import IndexedStream
from store.format.fixed_index import FixedIndex
from store.operations.browse.ranges import Stretch, same_bytes

Stretches = Iterator[tuple[int, int, int]]


def have_comparable_digests(a: IndexedStream, b: IndexedStream) -> bool:
    """Whether equal bytes have equal digests in both: cut alike, and keyed alike."""
    keys = [stream.reader.key.fingerprint if stream.reader.key else None for stream in (a, b)]
    return keys[0] == keys[1] and _chunk_size(a) == _chunk_size(b)


def differing(a: IndexedStream, b: IndexedStream, *, content: bool = False) -> Stretches:
    """Yield `(offset, size, chunks)` of where they differ, neighbours as one.

    content: compare bytes where digests differ: for images whose digests are not comparable.
    """
    begun, end, count = 0, 0, 0
    for start, stop in _chunks(a, b):
        if _equal(a, b, start, stop, content=content):
            continue
        if count and start != end:
            yield begun, end - begun, count
            count = 0
        if not count:
            begun = start
        end, count = stop, count + 1
    if count:
        yield begun, end - begun, count


def _chunks(a: IndexedStream, b: IndexedStream) -> Iterator[tuple[int, int]]:
    """The ranges of the larger image's chunks."""
    index = b.index if b.size >= a.size else a.index
    position = 0
    while position < index.size:
        _, end = index.range(index.position(position))
        yield position, end
        position = end


def _equal(a: IndexedStream, b: IndexedStream, start: int, stop: int, *, content: bool) -> bool:
    if stop > a.size or stop > b.size:
        return False  # one ends in here
    here, there = a.index.position(start), b.index.position(start)
    if a.index.range(here) == b.index.range(there) and a.index.digest(here) == b.index.digest(
        there
    ):
        return True
    size = stop - start
    return content and same_bytes(Stretch(a, start, size), Stretch(b, start, size))


def _chunk_size(stream: IndexedStream) -> int:
    return stream.index.chunk_size if isinstance(stream.index, FixedIndex) else 0
