"""Random access to the stream behind an index: at an offset, in order, or its holes alone."""

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from store.datastore.chunk_cache import ChunkReader
from store.datastore.holes import Holes
from store.datastore.memory import Memory
from store.datastore.workers import Workers, worker_count
from store.errors import FormatError
from store.format.blob import MAX_CHUNK_SIZE
from store.format.buffer import Buffer
from store.format.chunker import AVERAGE
from store.format.crypt import chunk_digest
from store.format.dynamic_index import DynamicIndex
from store.format.fixed_index import FixedIndex
from store.names import Digest

if TYPE_CHECKING:
    from concurrent.futures import Future

Index = FixedIndex | DynamicIndex
NOTHING = (0, 0, Digest(bytes(32)))
AHEAD = 2
"""Chunks to load in advance for each thread: one that it is at, and one that is done."""


class IndexedStream:
    """A ReadAt over an index and the chunks it names. Thread-safe; keeps no chunk itself.

    Offsets and sizes are bytes of the stream. Reads past its end raise FormatError: an archive that
    points there lies. Chunks are verified when they are decoded; errors are those of
    `ChunkReader.read`.
    """

    def __init__(self, index: Index, reader: ChunkReader, memory: Memory = Memory()) -> None:  # noqa: B008 - frozen
        self.index = index
        self.memory = memory
        self.size = index.size
        self.reader = reader
        self._last = (
            NOTHING  # where the last peek ended up; replaced whole, so threads need no lock
        )
        self._zero_digests: dict[int, Digest] = {}
        self._holes: Holes | None = None

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`; waits for chunks."""
        return bytes(self.view(offset, size))

    def view(self, offset: int, size: int) -> Buffer:
        """The same; within one chunk nothing is copied. A view keeps its chunk in memory."""
        self._check(offset, size)
        if not size:
            return b""
        start, end, digest = self._locate(offset)
        data = self.reader.read(digest, end - start, start)
        if offset + size <= end:
            return memoryview(data)[offset - start : offset - start + size]
        parts: list[Buffer] = [memoryview(data)[offset - start :]]
        left = offset + size - end
        while left > 0:
            start, end, digest = self._locate(end)
            data = self.reader.read(digest, end - start, start)
            parts.append(memoryview(data)[:left])
            left -= end - start
        return b"".join(parts)

    def peek(self, offset: int, size: int) -> Buffer | None:
        """The same if all of it is in the cache, else None: no waiting, no I/O.

        Within one chunk nothing is copied.

        The view may be kept; it keeps its chunk in memory.
        """
        start, end, digest = self._last
        if not start <= offset < end:
            self._check(offset, size)
            if not size:
                return b""
            start, end, digest = self._last = self._locate(offset)
        data = self.reader.peek(digest)
        if data is None or len(data) != end - start:
            return None
        if offset + size <= end:
            return memoryview(data)[offset - start : offset - start + size]
        return self._peek_on(memoryview(data)[offset - start :], end, offset + size)

    def _peek_on(self, first: memoryview, position: int, stop: int) -> bytes | None:
        """`first` and what follows from `position` to `stop`; None when not all is in the cache."""
        self._check(position, stop - position)
        parts = [first]
        while position < stop:
            start, end, digest = self._locate(position)
            data = self.reader.peek(digest)
            if data is None or len(data) != end - start:
                return None
            parts.append(memoryview(data)[: stop - position])
            position = end
        return b"".join(parts)

    def piece(self, offset: int, end: int) -> tuple[Buffer, int] | None:
        """The chunk that has all from `offset` to `end`, and where it begins.

        None if there is none, or if it is not in the cache: no waiting, no I/O.
        """
        if not 0 <= offset < end <= self.size:
            return None
        start, stop, digest = self._locate(offset)
        data = self.reader.peek(digest) if end <= stop else None
        return None if data is None or len(data) != stop - start else (data, start)

    def passed(self, offset: int) -> None:
        """Who reads from the beginning to the end is done with the chunk at `offset`."""
        self.reader.passed(self._locate(offset)[2])

    def prefetch(self, offset: int) -> None:
        """Start loading the chunk at `offset` in the background; a hint, without error.

        Past the end nothing happens.
        """
        if 0 <= offset < self.size:
            start, end, digest = self._locate(offset)
            self.reader.prefetch(digest, end - start, start)

    def workers(self) -> Workers:
        """Threads to read it with, as many as its storage and the memory are good for."""
        size = self.index.chunk_size if isinstance(self.index, FixedIndex) else AVERAGE
        backend = self.reader.backend
        return Workers(backend, worker_count(backend, self.memory, size), "read-ahead")

    def chunks(
        self, start: int = 0, end: int | None = None, *, workers: Workers | None = None
    ) -> Iterator[memoryview]:
        """The bytes from `start` to `end` (default: all), in order, a chunk's worth at a time.

        Threads decode the following chunks meanwhile, in bounded memory. Close the iterator when
        leaving it early (`contextlib.closing`); they end then, with the last chunk, or with the
        first error, which is raised in its chunk's turn. Threads that were given go on: they are
        for the giver to end.
        """
        end = self.size if end is None else end
        self._check(start, end - start)
        if start == end:
            return
        pool = workers or self.workers()
        try:
            yield from self._in_order(pool, start, end)
        finally:
            if workers is None:
                pool.finish()

    def _in_order(self, pool: Workers, start: int, end: int) -> Iterator[memoryview]:
        coming: deque[tuple[int, Digest, Future[bytes | memoryview]]] = deque()
        following = ahead = start  # located so far, and handed out
        try:
            while coming or following < end:
                while following < end and self._may_load(len(coming), following - ahead, pool):
                    first, after, digest = self._locate(following)
                    future = pool.submit(self.reader.read, digest, after - first, first)
                    coming.append((first, digest, future))
                    following = after
                first, digest, future = coming.popleft()
                view = memoryview(future.result())
                del future
                ahead = first + len(view)
                yield view[max(0, start - first) : end - first]
                self.reader.passed(digest)
        finally:
            for _, _, future in coming:
                future.cancel()

    def _may_load(self, chunks: int, size: int, pool: Workers) -> bool:
        """Whether one more may be loaded when so many are, or wait: a few for each thread."""
        return not chunks or (chunks < AHEAD * pool.count and size < self.memory.ahead)

    def extents(self, offset: int, size: int) -> Iterator[tuple[int, int, bool]]:
        """Cut a range into `(offset, length, is_zero)`, neighbours of one kind merged.

        Reads the index alone.

        Zero is what the index says is zero: a chunk with the digest of zeros of its length.
        """
        self._check(offset, size)
        stop, position = offset + size, offset
        begun, kind = offset, False
        while position < stop:
            start, end, digest = self._locate(position)
            zero = self._is_zero(digest, end - start)
            if zero != kind and position > begun:
                yield begun, position - begun, kind
                begun = position
            kind, position = zero, min(end, stop)
        if position > begun:
            yield begun, position - begun, kind

    def holes(self) -> Holes:
        """Where its holes are; made at the first call, from the index alone.

        As `extents`, for who asks again and again.
        """
        holes = self._holes
        if holes is None:
            holes = self._holes = Holes(self._zero_runs(), self.index)
        return holes

    def _zero_runs(self) -> Iterator[tuple[int, int]]:
        """The zero chunks: as runs of positions of the index, rising."""
        index, last = self.index, len(self.index) - 1
        if isinstance(index, FixedIndex) and index.chunk_size > MAX_CHUNK_SIZE:
            return  # nobody can have such chunks
        if isinstance(index, DynamicIndex):
            zeros = chunk_digest(bytes(MAX_CHUNK_SIZE), self.reader.key)
            for first, end in index.runs_of(zeros):
                yield from ((at, at + 1) for at in range(first, end) if self.is_zero(at))
            return
        yield from index.runs_of(chunk_digest(bytes(index.chunk_size), self.reader.key))
        # The last one may be shorter, and zeros of its length have another name.
        if index.size % index.chunk_size and self.is_zero(last):
            yield last, last + 1

    def is_zero(self, position: int) -> bool:
        """Whether chunk number `position` of the index holds only zeros, by its digest."""
        start, end = self.index.range(position)
        return self._is_zero(self.index.digest(position), end - start)

    def _is_zero(self, digest: Digest, size: int) -> bool:
        zeros = self._zero_digests.get(size)
        if zeros is None:
            if isinstance(self.index, DynamicIndex) and size != MAX_CHUNK_SIZE:
                return False  # zeros that were cut by content make chunks of the largest size
            zeros = self._zero_digests[size] = chunk_digest(bytes(size), self.reader.key)
        return digest == zeros

    def cached(self) -> "CachedStream":
        """What of it is in memory."""
        return CachedStream(self)

    def _locate(self, offset: int) -> tuple[int, int, Digest]:
        """Start, exclusive end and digest of the chunk that holds the byte at `offset`."""
        index = self.index
        position = index.position(offset)
        start, end = index.range(position)
        return start, end, index.digest(position)

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise FormatError(
                f"{self.reader.name}: {size} bytes at {offset} reach past the end ({self.size})"
            )


class NotCached(Exception):
    """It would have to be waited for: read the stream itself, in a thread."""


class CachedStream:
    """A ReadAt of what is in the cache now: never waits, and raises NotCached for all else."""

    __slots__ = ("_peek", "size")

    def __init__(self, stream: IndexedStream) -> None:
        self.size = stream.size
        self._peek = stream.peek

    def read(self, offset: int, size: int) -> bytes:
        data = self._peek(offset, size)
        if data is None:
            raise NotCached
        return bytes(data)
