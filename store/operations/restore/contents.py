"""Where the contents of a split archive's files come from.

Its payload stream, read ahead as long as it goes forward.
"""

from collections.abc import Generator, Iterator

from store.datastore.archives import IndexedStream
from store.datastore.workers import Workers
from store.errors import FormatError
from store.format.buffer import ReadAt
from store.format.pxar.entries import Entry
from store.format.pxar.items import HEADER_SIZE, payload_header
from store.progress import SILENT, Progress

READ_SIZE = 4 << 20
LONG_CONTENT = 16 << 20
LONG_GAP = 32 << 20
"""Skipping more than this is cheaper with a fresh read-ahead than by decoding what lies between."""


class PayloadCursor:
    """Reads the payload stream from front to back.

    References that go backwards are read at random.
    """

    def __init__(
        self, payload: IndexedStream, workers: Workers, progress: Progress = SILENT
    ) -> None:
        self._payload, self._workers = payload, workers
        self._progress = progress
        self._chunks: Iterator[memoryview] = iter(())
        self._chunk = memoryview(b"")
        self._next = 0  # stream offset of the end of _chunk

    def close(self) -> None:
        """End the read-ahead."""
        if isinstance(self._chunks, Generator):
            self._chunks.close()

    def content(self, entry: Entry) -> Iterator[memoryview]:
        """Yield a file's content; the pieces stay valid.

        Raises FormatError where it is not in the stream.
        """
        offset, end = entry.payload_offset, entry.payload_offset + HEADER_SIZE + entry.size
        if end > self._payload.size:
            raise FormatError(
                f"payload stream: {entry.size} bytes at {offset} reach past {self._payload.size}"
            )
        if offset < self._next - len(self._chunk):
            header = self._payload.read(offset, HEADER_SIZE)
            pieces = random_content(self._payload, offset + HEADER_SIZE, entry.size, self._workers)
        else:
            header = b"".join(self._forward(offset, HEADER_SIZE))
            pieces = self._forward(offset + HEADER_SIZE, entry.size)
        if header != payload_header(entry.size):
            raise FormatError(f"payload stream: no header of {entry.size} bytes at {offset}")
        yield from pieces

    def at_hand(self) -> tuple[memoryview, int]:
        """The chunk read last, and its offset in the stream."""
        return self._chunk, self._next - len(self._chunk)

    def _forward(self, offset: int, size: int) -> Iterator[memoryview]:
        end = offset + size
        while offset < end:
            if offset >= self._next:
                self._advance(offset)
                continue
            start = offset - (self._next - len(self._chunk))
            piece = self._chunk[start : start + end - offset]
            offset += len(piece)
            yield piece

    def _advance(self, offset: int) -> None:
        """Take the next chunk, or begin a new read-ahead near `offset`."""
        if offset - self._next > LONG_GAP or self._next == 0:
            self._progress.advance(offset - self._next)
            self.close()
            self._chunks = self._payload.chunks(offset, workers=self._workers)
            self._next = offset
        self._chunk = next(self._chunks)
        self._next += len(self._chunk)
        self._progress.advance(len(self._chunk))


def random_content(
    stream: ReadAt, offset: int, size: int, workers: Workers
) -> Iterator[memoryview]:
    """Yield `size` bytes from `offset` of a stream; long ones are read ahead."""
    if size > LONG_CONTENT and isinstance(stream, IndexedStream):
        yield from stream.chunks(offset, offset + size, workers=workers)
        return
    for start in range(offset, offset + size, READ_SIZE):
        yield memoryview(stream.read(start, min(READ_SIZE, offset + size - start)))
