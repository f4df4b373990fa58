"""Indexes being written: `x.img.tmp_fidx` until closed, then `x.img.fidx` (spec 4.3)."""

import threading
import time
import uuid

from store.backends.base import TemporaryFile
from store.errors import IntegrityError
from store.format.dynamic_index import DynamicIndexBuilder
from store.format.fixed_index import FixedIndexBuilder
from store.names import Digest

HEADER_SIZE = 4096
ENTRY_SIZE = 32
BUFFER_SIZE = 64 * 1024


class FixedIndexFile:
    """The index of an image, a memory map of its file: no size of image takes much memory."""

    def __init__(self, file: TemporaryFile, size: int, *, durable: bool) -> None:
        """`file` was created with room for `fixed_index_size(size)` bytes.

        Raises FormatError: no size for an image.
        """
        self._file, self._durable = file, durable
        self._memory = file.map()
        self._builder = FixedIndexBuilder(self._memory[HEADER_SIZE:], size)
        self.size = size
        self.closed = False

    def set(self, position: int, digest: Digest) -> None:
        """Name chunk `position` (of 4 MiB each). Any order, any thread. Raises IndexError."""
        self._builder.set(position, digest)

    def close(self) -> bytes:
        """Give the index its name and return its csum.

        Raises FormatError naming the first chunk that is not set.
        """
        csum = self._builder.csum
        self._memory[:HEADER_SIZE] = self._builder.finish(uuid.uuid4().bytes, int(time.time()))
        self._release()
        self._file.commit(durable=self._durable)
        self.closed = True
        return csum

    def discard(self) -> None:
        """Drop the index, unless it is closed already."""
        if not self.closed:
            self._release()
            self._file.discard()

    def _release(self) -> None:
        """Let go of the map, so that it can be closed: an error's traceback may hold on to us."""
        self._builder.release()
        self._memory.release()


class DynamicIndexFile:
    """The index of a stream. `add` may be called from any thread, one chunk after the other."""

    def __init__(self, file: TemporaryFile, *, durable: bool) -> None:
        self._file, self._durable = file, durable
        self._builder = DynamicIndexBuilder()
        self._pending = bytearray(HEADER_SIZE)  # the header comes last
        self._lock = threading.Lock()
        self.closed = False

    @property
    def size(self) -> int:
        """Length of the stream so far, in bytes."""
        return self._builder.size

    def add(self, end: int, digest: Digest) -> None:
        """Name the next chunk, which ends before `end`.

        Raises FormatError when it would be empty.
        """
        with self._lock:
            self._pending += self._builder.add(end, digest)
            if len(self._pending) >= BUFFER_SIZE:
                self._flush()

    def close(self) -> bytes:
        """Give the index its name and return its csum.

        Raises FormatError when it has no entries.
        """
        with self._lock:
            header = self._builder.header(uuid.uuid4().bytes, int(time.time()))
            self._flush()
            self._file.write_at(0, header)
            self._file.commit(durable=self._durable)
            self.closed = True
            return self._builder.csum

    def _flush(self) -> None:
        self._file.write(self._pending)
        self._pending = bytearray()

    def discard(self) -> None:
        """Drop the index, unless it is closed already."""
        if not self.closed:
            self._file.discard()


def fixed_index_size(size: int, chunk_size: int) -> int:
    """Bytes of the index file of an image. Raises IntegrityError on a size that no image has."""
    if size < 1:
        raise IntegrityError(
            f"an image of {size} bytes can't be backed up: PBS's indexes have no form for it"
        )
    return HEADER_SIZE + ENTRY_SIZE * -(-size // chunk_size)
