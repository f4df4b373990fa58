"""One client's view of a disk image: bytes at an offset, copied straight into the server's buffer.

Knows nothing of nbdkit, so another door can stand on it.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from threading import Lock
from typing import Protocol, Self

from blockgw.export import ImageName
from store.backends.base import Backend
from store.datastore.archives import ChunkCache, SnapshotReader
from store.datastore.chunk_cache import reads_at_once
from store.datastore.datastore import Datastore
from store.errors import FormatError, IntegrityError, KeyRequired, StoreError
from store.format.buffer import Buffer
from store.format.crypt import CryptConfig
from store.format.fixed_index import CHUNK_SIZE, FixedIndex

READ_AHEAD_CHUNKS = 2
REMEMBERED_CHUNKS = 64
ZEROS = memoryview(bytes(256 << 10))  # small enough to stay in the CPU's cache


class Image(Protocol):
    """What a device reads from; IndexedStream is one."""

    size: int

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes; waits for chunks."""

    def peek(self, offset: int, size: int) -> Buffer | None:
        """The same if it is decoded already, else None."""

    def prefetch(self, offset: int) -> None:
        """Start decoding the chunk at `offset`."""

    def is_zero(self, position: int) -> bool:
        """Whether chunk number `position` holds zeros only."""

    def extents(self, offset: int, size: int) -> Iterator[tuple[int, int, bool]]:
        """`(offset, length, is_zero)` from `offset` on, without gaps."""


class UnreadableImage:
    """An image of which we know the size, and why it can't be read."""

    def __init__(self, size: int, error: StoreError) -> None:
        self.size = size
        self._error = error

    def read(self, offset: int, size: int) -> bytes:
        """Raises the reason."""
        raise type(self._error)(str(self._error)) from self._error

    def peek(self, offset: int, size: int) -> None:
        """Nothing is decoded."""

    def prefetch(self, offset: int) -> None:
        """Nothing to decode."""

    def is_zero(self, position: int) -> bool:
        """Nobody knows."""
        return False

    def extents(self, offset: int, size: int) -> Iterator[tuple[int, int, bool]]:
        """All of it may be data."""
        yield offset, size, False


class Device:
    """An image as one client reads it. Thread-safe: up to all threads of a connection read at once.

    A read of decoded chunks takes no lock and copies once. A chunk of zeros is never decoded. A
    client that goes on from one chunk into the next gets the following ones decoded in advance.
    """

    def __init__(
        self,
        image: Image,
        chunk_size: int,
        resources: ExitStack | None = None,
        read_ahead: int = READ_AHEAD_CHUNKS,
    ) -> None:
        """`resources` is what `close` gives back; `chunk_size` is in bytes, `read_ahead` chunks."""
        self.size = image.size
        self._read_ahead = read_ahead * chunk_size
        self.chunk_size = chunk_size
        self._image = image
        self._peek = image.peek
        self._resources = resources or ExitStack()
        self._lock = Lock()
        self._seen: OrderedDict[int, None] = OrderedDict()  # chunks lately begun with
        self._awaited: set[int] = set()  # read ahead; the first touch reads further ahead

    @classmethod
    def open(
        cls, datastore: Datastore, name: ImageName, key: CryptConfig | None, cache: ChunkCache
    ) -> Self:
        """Open an image of the datastore; until `close` its snapshot can't be removed.

        One whose key is missing or whose index is damaged opens with its size, and every read of it
        fails: a client that looks at all exports must not stumble over it.

        Raises NotFound, Locked (it is being removed), BackendError; FormatError and IntegrityError
        if the manifest is damaged.
        """
        with ExitStack() as stack:
            stack.enter_context(datastore.lock_snapshot_shared(name.namespace, name.snapshot))
            reader = SnapshotReader(datastore, name.namespace, name.snapshot, key, cache)
            try:
                stream = reader.open_image(name.archive)
            except (KeyRequired, FormatError, IntegrityError) as error:
                size = reader.manifest.file(f"{name.archive}.fidx").size
                return cls(UnreadableImage(size, error), CHUNK_SIZE, stack.pop_all())
            assert isinstance(stream.index, FixedIndex)
            chunk_size = stream.index.chunk_size
            ahead = chunks_ahead(datastore.backend, cache, chunk_size)
            return cls(stream, chunk_size, stack.pop_all(), ahead)

    def close(self) -> None:
        """Let go of the snapshot."""
        self._resources.close()

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill `target` with the bytes from `offset`, which must lie inside the image.

        Raises ChunkMissing, IntegrityError, FormatError, BackendError; `target` is undefined then.
        """
        chunk, start = divmod(offset, self.chunk_size)
        if start + len(target) > self.chunk_size:
            self._read_across(target, offset)
            return
        data = self._peek(offset, len(target))
        if data is None:
            self._fetch(chunk, offset, target)
        else:
            target[:] = data
            if chunk in self._awaited:
                self._begin(chunk)

    def _read_across(self, target: memoryview, offset: int) -> None:
        done = 0
        while done < len(target):
            size = self.chunk_size - (offset + done) % self.chunk_size
            piece = target[done : done + size]
            self.read_into(piece, offset + done)
            done += len(piece)

    def _fetch(self, chunk: int, offset: int, target: memoryview) -> None:
        """Fill `target` out of one chunk that is not decoded."""
        self._begin(chunk)
        if self._image.is_zero(chunk):
            fill_zeros(target)
        else:
            target[:] = self._image.read(offset, len(target))

    def _begin(self, chunk: int) -> None:
        """A client begins with `chunk`: if it came from the one before, read ahead."""
        with self._lock:
            self._awaited.discard(chunk)
            if chunk in self._seen:
                return
            self._seen[chunk] = None
            sequential = chunk - 1 in self._seen
            if len(self._seen) > REMEMBERED_CHUNKS:
                self._seen.popitem(last=False)
                near = range(chunk - REMEMBERED_CHUNKS, chunk + REMEMBERED_CHUNKS)
                self._awaited.intersection_update(near)
            if sequential:
                self._awaited.add(chunk + 1)
        if sequential:
            self.prefetch((chunk + 1) * self.chunk_size, self._read_ahead)

    def prefetch(self, offset: int, size: int) -> None:
        """Start decoding what lies in the range, as far as the read-ahead queue takes it."""
        end = min(offset + size, self.size)
        for chunk in range(offset // self.chunk_size, -(-end // self.chunk_size)):
            if not self._image.is_zero(chunk):
                self._image.prefetch(chunk * self.chunk_size)

    def extents(
        self, offset: int, size: int, *, one: bool = False
    ) -> Iterator[tuple[int, int, bool]]:
        """`(offset, length, is_zero)` of the range, neighbours merged; with `one`, the first."""
        return islice(self._image.extents(offset, size), 1 if one else None)


def chunks_ahead(backend: Backend, cache: ChunkCache, chunk_size: int) -> int:
    """How many to read ahead of one client."""
    return reads_at_once(backend, READ_AHEAD_CHUNKS, cache.budget_bytes // 2 // chunk_size)


def fill_zeros(target: memoryview) -> None:
    """Overwrite `target` with zeros."""
    for start in range(0, len(target), len(ZEROS)):
        piece = target[start : start + len(ZEROS)]
        piece[:] = ZEROS[: len(piece)]
