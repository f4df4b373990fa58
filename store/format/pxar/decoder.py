"""Reading a pxar archive (v1) or a metadata stream (v2) from front to back, in whatever pieces.

    archive v1 := dir_entry(root)
    archive v2 := FORMAT_VERSION [PRELUDE] dir_entry(root)
    dir_entry  := metadata child* GOODBYE

Source: pxar src/decoder/mod.rs (spec 9.4, 9.10).
"""

from collections import deque
from collections.abc import Iterable, Iterator

from store.errors import FormatError
from store.format.buffer import Buffer
from store.format.pxar.entries import Entry, EntryKind
from store.format.pxar.items import (
    PXAR_PAYLOAD,
    PXAR_PAYLOAD_REF,
)
from store.format.pxar.parser import EntryParser, Incomplete
from store.format.pxar.preamble import read_preamble

# Large enough that an entry rarely reaches past it, small enough to copy for every file in between.
WINDOW_SIZE = 32 * 1024
SMALL_PIECE = 4 * 1024

_DIRECTORY, _FILE = EntryKind.DIRECTORY, EntryKind.FILE


class PayloadData:
    """The next stretch of the content of the file just met (v1); `size` bytes of it come in all.

    `data` is a slice of the caller's own buffer and valid as long as that one is.
    """

    __slots__ = ("data",)

    def __init__(self, data: memoryview) -> None:
        self.data = data


class DirectoryEnd:
    """The innermost open directory ended. `end`: the offset after its GOODBYE item."""

    __slots__ = ("end",)

    def __init__(self, end: int) -> None:
        self.end = end


Event = Entry | PayloadData | DirectoryEnd


def decode(chunks: Iterable[Buffer]) -> Iterator[Event]:
    """Yield what an archive or metadata stream holds, in its order; see Decoder."""
    return iter(Decoder(chunks))


class Decoder:
    """Decodes one archive, pulling from `chunks` as it goes. Iterate over it once.

    The root's Entry comes first. Directories nest by Entry and DirectoryEnd, to any depth; the
    root's DirectoryEnd comes last. Names are checked each by itself, not against their neighbours:
    whoever restores must not trust that they differ. Goodbye tables are skipped. Memory: one chunk,
    and one entry's metadata (at most 64 MiB).

    Attributes:
        version: 1 or 2, known once the root was yielded.
        prelude: of a v2 archive, None without.

    Raises (while iterating):
        FormatError: the bytes are no archive, end early, or go on after its end.
    """

    def __init__(self, chunks: Iterable[Buffer]) -> None:
        self.version = 1
        self.prelude: bytes | None = None
        self._stream = _Stream(chunks)
        self._position = 0  # of the next child or GOODBYE

    def __iter__(self) -> Iterator[Event]:
        preamble = read_preamble(self._stream.read)
        self.version, self.prelude = preamble.version, preamble.prelude
        root = self._root(preamble.root_offset)
        self._position = root.content_offset
        yield root
        yield from self._children()

    def at_hand(self) -> memoryview:
        """What is here of the archive, from the next child or GOODBYE on; nobody has checked it.

        A slice of the caller's own buffer. Not to be asked for before all of a file's content came.
        """
        return self._stream.at_hand(self._position)

    def pass_over(self, size: int) -> None:
        """Go on after the first `size` bytes of `at_hand`: whole files that the caller has read."""
        self._position += size

    def _root(self, offset: int) -> Entry:
        end = offset
        while True:
            try:
                return self._parser(offset, end).root()
            except Incomplete as error:
                end = error.end

    def _children(self) -> Iterator[Event]:
        """Everything from the root's first child on. One loop, so that depth costs nothing."""
        directory, file, has_content, depth = _DIRECTORY, _FILE, self.version == 1, 1
        parser, base = self._parser(self._position, self._position), self._position
        while depth:
            position = self._position
            try:
                goodbye_size = parser.goodbye_size(position - base)
                entry = None if goodbye_size else parser.child(position - base)
            except Incomplete as error:
                parser, base = self._parser(position, error.end), position
                continue
            if entry is None:
                depth -= 1
                self._position += goodbye_size
                if not depth:
                    self._stream.expect_end(self._position)
                yield DirectoryEnd(self._position)
            elif entry.kind is directory:
                depth += 1
                self._position = entry.content_offset
                yield entry
            else:
                self._position = entry.end
                yield entry
                if entry.kind is file and has_content and entry.size:
                    yield from map(PayloadData, self._stream.take(entry.payload_offset, entry.end))

    def _parser(self, offset: int, end: int) -> EntryParser:
        """A parser for what starts at `offset`: a window full, or more if `end` lies behind that.

        Twice as much when one entry is larger than that, so that it is not parsed once per item.
        """
        needed = end - offset
        window = self._stream.peek(offset, WINDOW_SIZE if needed <= WINDOW_SIZE else 2 * needed)
        if len(window) < needed:
            raise _cut(offset + len(window))
        return EntryParser(window, offset, PXAR_PAYLOAD if self.version == 1 else PXAR_PAYLOAD_REF)


class _Stream:
    """The chunks as one stream: look ahead from an offset, let go of what lies before it.

    Offsets only grow.
    """

    def __init__(self, chunks: Iterable[Buffer]) -> None:
        self._chunks = iter(chunks)
        self._held: deque[memoryview] = deque()
        self._start = 0  # offset of _held[0]

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes, which stay. Raises FormatError when the stream ends before."""
        data = self.peek(offset, size)
        if len(data) < size:
            raise _cut(offset + len(data))
        return data

    def peek(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes, fewer only at the end of the stream.

        They stay, what lies before goes.
        """
        self._seek(offset)
        available = sum(map(len, self._held)) - (offset - self._start)
        while available < size and (chunk := self._next()) is not None:
            available += len(chunk)
            self._hold(chunk)
        parts, position = [], self._start
        for piece in self._held:
            parts.append(piece[max(0, offset - position) : max(0, offset + size - position)])
            position += len(piece)
        return b"".join(parts)

    def at_hand(self, offset: int) -> memoryview:
        """The rest of a chunk from there; empty at the end of the stream."""
        return self._held[0][offset - self._start :] if self._seek(offset) else memoryview(b"")

    def take(self, offset: int, end: int) -> Iterator[memoryview]:
        """What lies between, in slices of the chunks.

        Raises FormatError when the stream ends before.
        """
        while offset < end:
            if not self._seek(offset):
                raise _cut(self._start)
            begin = offset - self._start
            piece = self._held[0][begin : begin + end - offset]
            offset += len(piece)
            yield piece

    def expect_end(self, offset: int) -> None:
        """Raise FormatError unless the stream ends exactly there."""
        if self._seek(offset):
            raise FormatError(f"pxar archive: goes on after its end at {offset}")
        if self._start != offset:
            raise _cut(self._start)

    def _seek(self, offset: int) -> bool:
        """Let go of what lies before `offset`. False when the stream ends there or earlier."""
        while True:
            if not self._held:
                chunk = self._next()
                if chunk is None:
                    return False
                self._held.append(chunk)
            if offset < self._start + len(self._held[0]):
                return True
            self._start += len(self._held.popleft())

    def _next(self) -> memoryview | None:
        chunk = next(self._chunks, None)
        return None if chunk is None else memoryview(chunk)

    def _hold(self, chunk: memoryview) -> None:
        """Keep one more chunk.

        Tiny ones are put together: a million views would cost more than what they show.
        """
        if self._held and len(self._held[-1]) + len(chunk) <= SMALL_PIECE:
            chunk = memoryview(b"".join((self._held.pop(), chunk)))
        self._held.append(chunk)


def _cut(offset: int) -> FormatError:
    return FormatError(f"pxar archive: ends at {offset}, in the middle of an item")
