"""Cutting streams into chunks by content, exactly where PBS's own client cuts them.

A rolling hash (buzhash) over 64 bytes, a quarter of the average as the least size and four times it
as the largest. No state crosses a cut and the hash depends on the last 64 bytes only, so the bytes
before `min - 64` are never looked at.

Source: proxmox-backup pbs-datastore/src/chunker.rs, pbs-client/src/{chunk_stream,
inject_reused_chunks}.rs; spec section 5, whose vectors are the tests.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from mmap import mmap
from struct import pack

from store import native
from store.errors import InvalidName
from store.format.buffer import Buffer
from store.format.chunker_table import TABLE
from store.names import Digest

AVERAGE = 4 << 20
WINDOW = 64
WRITE_BUFFER = 256 << 10
READ_SIZE = 4 << 20
"""The largest unit a stream takes at once, and the size of the reads that PBS's client makes."""

Emit = Callable[[bytes], object]
FindCut = Callable[[Buffer, int, int, int, int], int]
KnownChunks = Sequence[tuple[Digest, int]]
EmitKnown = Callable[[KnownChunks], object]


def _find_cut() -> FindCut:
    """The search in C; where the extension was not built, the same cuts at a third of the speed."""
    if not native.is_usable("store.format._chunker"):
        from store.format import chunker_numpy

        return chunker_numpy.find_cut
    from store.format import _chunker

    return partial(_chunker.find_cut, pack("=256I", *TABLE))


find_cut = _find_cut()


class Cutter:
    """Where a chunk ends, for one average size (a power of two, 256 bytes to 4 MiB).

    Raises InvalidName for another.
    """

    __slots__ = ("mask", "maximum", "minimum", "threshold")

    def __init__(self, average: int = AVERAGE) -> None:
        if not 256 <= average <= AVERAGE or average & (average - 1):
            raise InvalidName(f"chunk size {average}: not a power of two up to {AVERAGE}")
        self.minimum, self.maximum = average // 4, average * 4
        self.mask = 2 * average - 1
        self.threshold = self.mask - 2

    def cut(self, data: Buffer, start: int, end: int, scanned: int = 0) -> int:
        """Return the size of the chunk that begins at data[start], 0 if it ends later.

        scanned: how many bytes of it are known not to end it.
        """
        limit = min(end, start + self.maximum)
        first = start + max(self.minimum, scanned + 1)  # the lowest end to test
        if first > limit:
            return 0
        if found := find_cut(data, first - WINDOW, limit, self.mask, self.threshold):
            return found - start
        return self.maximum if limit - start == self.maximum else 0


class Chunker:
    """Finds cuts in a stream that it is shown piece by piece.

    Keeps only the last 63 bytes of what it has seen.
    """

    def __init__(self, average: int = AVERAGE) -> None:
        self._cutter = Cutter(average)
        self.reset()

    def reset(self) -> None:
        """Begin a chunk here."""
        self._size = 0
        self._tail = b""

    def scan(self, data: Buffer) -> int:
        """Return after how many bytes of `data` the chunk ends; 0: not in it, all of it consumed.

        After a cut, show the rest of `data` again: it begins the next chunk. Any split of a stream
        gives the same cuts.
        """
        data = memoryview(data)
        size, tail = self._size, self._tail
        seam = tail + bytes(data[: WINDOW - 1])  # the windows that began in earlier pieces
        cut = self._cutter.cut(seam, len(tail) - size, len(seam), size)
        cut = cut or self._cutter.cut(data, -size, len(data), size + len(seam) - len(tail))
        if cut:
            self.reset()
            return cut - size
        self._size += len(data)
        self._tail = (tail + bytes(data[-(WINDOW - 1) :]))[-(WINDOW - 1) :]
        return 0


class _ChunkBuffer:
    """The current chunk and what came after it: data[start:end] of one block that never grows.

    It holds the largest chunk and two units. Anonymous memory: pages never used cost nothing.
    """

    def __init__(self, maximum: int) -> None:
        self.data = memoryview(mmap(-1, maximum + 2 * READ_SIZE + WRITE_BUFFER))
        self.start = self.end = 0

    def reserve(self, size: int) -> memoryview:
        """Return `size` (at most READ_SIZE) writable bytes that lie after the end."""
        if size > READ_SIZE:
            raise ValueError(f"{size} bytes at once: at most {READ_SIZE}")
        if self.end + size > len(self.data):
            self.data[: self.end - self.start] = self.data[self.start : self.end]
            self.start, self.end = 0, self.end - self.start
        return self.data[self.end : self.end + size]

    def take(self, size: int) -> bytes:
        """Split the first `size` bytes off."""
        self.start += size
        return bytes(self.data[self.start - size : self.start])


class ChunkStream:
    """Cuts a stream into chunks and hands each to `emit`, at the latest a few MiB after its end.

    One thread. When `emit` raises, the stream is of no more use.
    """

    def __init__(self, emit: Emit, average: int = AVERAGE) -> None:
        self._emit = emit
        self._cutter = Cutter(average)
        self._buffer = _ChunkBuffer(self._cutter.maximum)
        self._scanned = 0
        self.position = 0
        """Bytes written so far."""

    def write(self, data: Buffer) -> None:
        """Append `data`, of any size."""
        for piece in _pieces(data):
            self.reserve(len(piece))[:] = piece
            self.commit(len(piece))

    def reserve(self, size: int) -> memoryview:
        """Return room for `size` bytes (at most READ_SIZE) to read into.

        Valid until the next call.
        """
        return self._buffer.reserve(size)

    def commit(self, size: int) -> None:
        """Append the first `size` bytes of the room that `reserve` returned."""
        buffer = self._buffer
        buffer.end += size
        self.position += size
        if (
            buffer.end - buffer.start - self._scanned >= READ_SIZE
        ):  # large steps: the search has a cost per call
            self._scan()

    def finish(self) -> None:
        """End the stream: the last chunk may have any size from 1."""
        self._scan()
        buffer = self._buffer
        if buffer.end > buffer.start:
            self._emit(buffer.take(buffer.end - buffer.start))
        self._scanned = 0

    def _scan(self) -> None:
        buffer = self._buffer
        while cut := self._cutter.cut(buffer.data, buffer.start, buffer.end, self._scanned):
            self._scanned = 0
            self._emit(buffer.take(cut))
        self._scanned = buffer.end - buffer.start


class PayloadStream:
    """Cuts the payload stream of a split archive as PBS's client does: between files if it can.

    A suggested boundary wins over a cut by the hash that lies in the same unit of input, so the
    result depends on the units. They are those of PBS's client: a write of 256 KiB or more is one,
    smaller ones are gathered in a buffer of 256 KiB first. Write each PAYLOAD header alone and each
    file's content in pieces of READ_SIZE to get the same chunks.

    Order of calls: `suggest()` before each file, then its header and content; `inject()` where
    chunks of an earlier archive take the place of content. A unit is searched when the next one
    begins, because a suggestion at its very end comes after it. One thread. When a callback raises,
    the stream is of no more use.
    """

    def __init__(self, emit: Emit, emit_known: EmitKnown, average: int = AVERAGE) -> None:
        self._emit, self._emit_known = emit, emit_known
        self._cutter = Cutter(average)
        self._buffer = _ChunkBuffer(self._cutter.maximum)
        self._unit_end = (
            0  # from the chunk's start: what whole units hold; after it comes the write buffer
        )
        self._scanned = 0  # from the chunk's start: what was searched
        self._base = 0  # the chunk's start in the stream
        self._suggestions: deque[int] = deque()
        self._injections: deque[tuple[int, int, KnownChunks]] = deque()
        self.position = 0
        """Where the next byte goes: bytes written and injected so far."""

    def suggest(self) -> None:
        """A file begins here: a chunk may end here, if it has a proper size by then."""
        self._suggestions.append(self.position)

    def inject(self, chunks: KnownChunks) -> None:
        """End the chunk here, whatever its size, and let known chunks (digest, size) follow."""
        size = sum(size for _, size in chunks)
        self._injections.append((self.position, size, chunks))
        self.position += size
        if self._buffer.end == self._buffer.start:
            self._scan()  # nothing waits for them, so they do not wait either

    def write(self, data: Buffer) -> None:
        """Append `data` as one unit or as part of one; more than READ_SIZE is taken as several."""
        for piece in _pieces(data):
            self.reserve(len(piece))[:] = piece
            self.commit(len(piece))

    def reserve(self, size: int) -> memoryview:
        """Return room for `size` bytes (at most READ_SIZE) to read into.

        Valid until the next call.
        """
        return self._buffer.reserve(size)

    def commit(self, size: int) -> None:
        """Append the first `size` bytes of the room that `reserve` returned, as one write."""
        if not size:
            return
        buffer = self._buffer
        if self._scanned < self._unit_end:
            self._scan()
        gathered = buffer.end - buffer.start - self._unit_end
        if gathered + size > WRITE_BUFFER:
            self._unit_end += gathered
            self._scan()
        buffer.end += size
        self.position += size
        if size >= WRITE_BUFFER:
            self._unit_end += size

    def finish(self) -> None:
        """End the stream: the last chunk may have any size from 1."""
        buffer = self._buffer
        self._unit_end = buffer.end - buffer.start
        self._scan()
        if self._unit_end:
            self._split(self._unit_end)

    def _scan(self) -> None:
        """Emit every chunk that ends within the whole units."""
        while True:
            cut = self._next_cut() if self._scanned < self._unit_end else 0
            if self._injections and self._injections[0][0] <= self._base + (cut or self._unit_end):
                boundary, size, chunks = self._injections.popleft()
                self._split(boundary - self._base)
                self._base += size
                self._emit_known(chunks)
            elif cut:
                self._split(cut)
            else:
                self._scanned = self._unit_end
                return

    def _next_cut(self) -> int:
        """Size of the chunk, or 0. Spec 5.4: the six rules."""
        suggestions, cutter = self._suggestions, self._cutter
        while suggestions:
            size = suggestions[0] - self._base
            if size > min(self._unit_end, cutter.maximum):
                break
            suggestions.popleft()
            if size >= max(self._scanned, cutter.minimum):
                if size == self._scanned:  # searched up to here already, too late
                    break
                return size
        buffer = self._buffer
        return cutter.cut(buffer.data, buffer.start, buffer.start + self._unit_end, self._scanned)

    def _split(self, size: int) -> None:
        """End the chunk after `size` bytes; 0 only moves the start of the hash."""
        self._scanned = 0
        self._unit_end -= size
        self._base += size
        if size:
            self._emit(self._buffer.take(size))


def _pieces(data: Buffer) -> Sequence[Buffer]:
    if len(data) <= READ_SIZE:
        return (data,)
    view = memoryview(data)
    return [view[at : at + READ_SIZE] for at in range(0, len(view), READ_SIZE)]
