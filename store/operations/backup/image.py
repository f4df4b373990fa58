"""A disk image, file or block device, into a fixed index.

Every worker reads its own next block: one reader that feeds a pool costs a quarter of the speed of
a re-backup. Holes are found by SEEK_DATA and never read; the block of zeros is hashed once.
"""

import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

from store.backends.turns import processors
from store.datastore.snapshots import FixedIndexFile, SnapshotWriter
from store.errors import SourceError
from store.names import Digest
from store.operations.backup.chunks import ChunkWriter, EncodedChunk
from store.progress import Progress

BLOCK_SIZE = 4 << 20
ZERO_BLOCK = bytes(BLOCK_SIZE)
READ_AHEAD = 2
"""Blocks read while others are encoded: their source may be slow, too."""


@dataclass(frozen=True)
class ImageInfo:
    """A finished image: size in bytes, checksum of its index, and how much of it was a hole."""

    size: int
    csum: bytes
    hole_bytes: int


def backup_image(
    path: str, filename: str, writer: SnapshotWriter, chunks: ChunkWriter, progress: Progress
) -> ImageInfo:
    """Store the disk at `path` as the snapshot's `filename`.

    Raises:
        SourceError: it can't be opened or read, is neither a file nor a block device, is empty, or
            shrank meanwhile.
    """
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error
    try:
        image = _Image(path, source, chunks, progress)
        progress.start(image.size, "B")
        index = writer.create_fixed_index(filename, image.size)
        image.store(index)
        return ImageInfo(image.size, index.close(), image.hole_bytes)
    finally:
        progress.done()
        os.close(source)


class _Buffers:
    """Blocks that are read or encoded just now; who waits for the storage has given his back."""

    def __init__(self, count: int) -> None:
        self._free: SimpleQueue[bytearray | None] = SimpleQueue()
        for _ in range(count):
            self._free.put(None)  # made when it is used

    @contextmanager
    def lend(self) -> Iterator[bytearray]:
        """One that nobody else has; waits until there is one."""
        buffer = self._free.get() or bytearray(BLOCK_SIZE)
        try:
            yield buffer
        finally:
            self._free.put(buffer)


class _Image:
    """One image on its way: hands out blocks that hold data, fills in those that do not."""

    def __init__(self, path: str, source: int, chunks: ChunkWriter, progress: Progress) -> None:
        self._path, self._source, self._chunks, self._progress = path, source, chunks, progress
        self.size = self._measure()
        self.hole_bytes = 0
        self._turn = threading.Lock()
        self._stopped = False
        self._buffers = _Buffers(processors() + READ_AHEAD)
        self._zero: Digest | None = None

    def store(self, index: FixedIndexFile) -> None:
        """Fill the index, on a few threads. The first error stops all."""
        blocks = self._data_blocks(index)
        with self._chunks.workers("image") as workers:
            try:
                workers.run(lambda: self._work(blocks, index))
            finally:
                self._stopped = True

    def _measure(self) -> int:
        mode = os.fstat(self._source).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise SourceError(f"{self._path}: neither a file nor a block device")
        size = os.lseek(self._source, 0, os.SEEK_END)
        if size == 0:
            raise SourceError(f"{self._path}: is empty, an image needs at least one byte")
        return size

    def _work(self, blocks: Iterator[int], index: FixedIndexFile) -> None:
        try:
            while not self._stopped:
                with self._turn:
                    block = next(blocks, None)
                if block is None:
                    return
                with self._buffers.lend() as buffer:
                    size = self._read(block, memoryview(buffer))
                    chunk = self._encode(buffer, size)
                if chunk is None:
                    index.set(block, self._zero_digest())
                else:
                    self._chunks.send(chunk)
                    index.set(block, chunk.digest)
                self._progress.advance(size)
        except BaseException:
            self._stopped = True
            raise

    def _encode(self, buffer: bytearray, size: int) -> EncodedChunk | None:
        """None: it is all zeros."""
        if size == BLOCK_SIZE and buffer == ZERO_BLOCK:
            return None
        return self._chunks.encode(memoryview(buffer)[:size])

    def _read(self, block: int, view: memoryview) -> int:
        start = block * BLOCK_SIZE
        size = min(BLOCK_SIZE, self.size - start)
        done = 0
        while done < size:
            try:
                count = os.preadv(self._source, [view[done:size]], start + done)
            except OSError as error:
                raise SourceError(
                    f"{self._path}: {error.strerror} at byte {start + done}"
                ) from error
            if count == 0:
                raise self._shrank(start + done)
            done += count
        return size

    def _data_blocks(self, index: FixedIndexFile) -> Iterator[int]:
        """Yield the blocks that hold data; set the others in the index. Called under the lock."""
        block, count = 0, -(-self.size // BLOCK_SIZE)
        while block < count:
            data = self._next_data(block * BLOCK_SIZE)
            first = min(data // BLOCK_SIZE, count)
            if first == count and self.size % BLOCK_SIZE:
                first -= 1  # a short last block has a digest of its own: read it, hole or not
            for hole in range(block, first):
                index.set(hole, self._zero_digest())
            self.hole_bytes += (first - block) * BLOCK_SIZE
            self._progress.advance((first - block) * BLOCK_SIZE)
            end = self._next_hole(max(data, first * BLOCK_SIZE))
            block = max(min(-(-end // BLOCK_SIZE), count), first + 1)
            yield from range(first, min(block, count))

    def _next_data(self, offset: int) -> int:
        try:
            return os.lseek(self._source, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                return offset  # no holes here, as far as anybody can tell
        size = os.fstat(self._source).st_size
        if size < self.size:
            raise self._shrank(size)
        return self.size

    def _next_hole(self, offset: int) -> int:
        try:
            return os.lseek(self._source, offset, os.SEEK_HOLE)
        except OSError:
            return self.size

    def _shrank(self, size: int) -> SourceError:
        return SourceError(
            f"{self._path}: shrank from {self.size} to {size} bytes while it was read"
        )

    def _zero_digest(self) -> Digest:
        if self._zero is None:
            self._zero = self._chunks.store(ZERO_BLOCK)
        return self._zero
