"""From plain chunks to stored ones: hash, look up, compress, encrypt, write, on a few threads.

The feeder (one thread) cuts; the workers do the rest. What is in flight is bounded in bytes, and
each stream's index entries are added in stream order, whatever order the workers finish in.
"""

import os
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import NamedTuple

from store.backends.base import Backend
from store.backends.turns import turn_for
from store.datastore.chunk_store import ChunkStore
from store.datastore.memory import Memory
from store.datastore.snapshots import DynamicIndexFile, SnapshotWriter
from store.datastore.workers import COPIES, Workers, worker_count
from store.errors import BackendError, ChunkMissing, FormatError, IntegrityError, KeyRequired
from store.format.blob import MAX_CHUNK_SIZE, decode_blob, encode_blob_parts
from store.format.buffer import Buffer
from store.format.chunker import AVERAGE
from store.format.crypt import CryptConfig, chunk_digest
from store.names import Digest

REMEMBERED = 1 << 16


class EncodedChunk(NamedTuple):
    """A chunk on its way: `parts` is None when the datastore has it, `bad` what it replaces."""

    digest: Digest
    plain_size: int
    parts: tuple[bytes, Buffer] | None
    bad: Buffer | None


class ChunkWriter:
    """Stores chunks of one snapshot and counts them. Safe to call from several threads.

    `new` are the first REMEMBERED of those that were stored.
    """

    def __init__(
        self,
        writer: SnapshotWriter,
        store: ChunkStore,
        key: CryptConfig | None,
        memory: Memory = Memory(),  # noqa: B008 - frozen
    ) -> None:
        self._writer, self._store, self.memory = writer, store, memory
        self.key = key
        self._lock = threading.Lock()
        self._damaged: set[Digest] = set()
        self.new: set[Digest] = set()
        self.new_chunks = self.known_chunks = self.stored_bytes = 0

    def store(self, plain: Buffer) -> Digest:
        """Make sure that the chunk is in the datastore; its digest.

        Known chunks cost a hash and a touch.
        """
        chunk = self.encode(plain)
        self.send(chunk)
        return chunk.digest

    def encode(self, plain: Buffer) -> "EncodedChunk":
        """The first half of `store`, after which `plain` may change."""
        with turn_for(self.backend):
            digest = chunk_digest(plain, self.key)
        bad = self._look_again(digest, plain) if digest in self._damaged else None
        if self.touch(digest, sure=False):
            return EncodedChunk(digest, len(plain), None, None)
        iv = os.urandom(16) if self.key else None
        with turn_for(self.backend):
            header, body = encode_blob_parts(plain, self.key, iv=iv)
        return EncodedChunk(
            digest, len(plain), (header, bytes(body) if body is plain else body), bad
        )

    def send(self, chunk: "EncodedChunk") -> None:
        """The second half."""
        if chunk.parts is None:
            return
        (header, body), new = chunk.parts, True
        if chunk.bad is not None:
            self._writer.replace_chunk(chunk.digest, header, body, chunk.plain_size, chunk.bad)
        else:
            new = self._writer.insert_chunk(chunk.digest, header, body, chunk.plain_size)
        self._count(len(header) + len(body) if new else 0)
        if new and len(self.new) < REMEMBERED:
            self.new.add(chunk.digest)
        self._trust(chunk.digest)

    def workers(self, name: str) -> Workers:
        """Threads to store chunks with."""
        return Workers(self.backend, self.worker_count, name)

    @property
    def backend(self) -> Backend:
        """Where the chunks go."""
        return self._store.backend

    @property
    def worker_count(self) -> int:
        """How many threads the storage and the memory are good for."""
        return worker_count(self.backend, self.memory, AVERAGE)

    def touch(self, digest: Digest, *, sure: bool = True) -> bool:
        """Keep a chunk that is in the datastore; False when it is not, or known to be damaged.

        Unless `sure`, False may also mean that storing it is the cheapest way to know.
        """
        known = digest not in self._damaged and self._writer.touch_chunk(digest, sure=sure)
        if known:
            self._count(0)
        return known

    def distrust(self, damaged: Iterable[Digest]) -> None:
        """Note chunks that could not be decoded: if their content comes by, it replaces them."""
        with self._lock:
            self._damaged.update(damaged)

    def _look_again(self, digest: Digest, plain: Buffer) -> Buffer | None:
        """What is stored as a chunk that was found damaged, or None when it is not there.

        Also None when it is good by now, for another backup has replaced it: then it is trusted.
        """
        try:
            raw = self._store.read(digest)
        except ChunkMissing:
            return None
        with suppress(FormatError, IntegrityError, KeyRequired):
            if decode_blob(raw, self.key, max_size=MAX_CHUNK_SIZE) == plain:
                self._trust(digest)
                return None
        return raw

    def _trust(self, digest: Digest) -> None:
        with self._lock:
            self._damaged.discard(digest)

    def _count(self, stored: int) -> None:
        with self._lock:
            self.new_chunks += bool(stored)
            self.known_chunks += not stored
            self.stored_bytes += stored


class ChunkPool(Workers):
    """Workers that store chunks, and the bytes they may hold."""

    def __init__(self, chunks: ChunkWriter) -> None:
        super().__init__(chunks.backend, chunks.worker_count, "chunk")
        self._chunks = chunks
        self._free = self._limit = chunks.memory.in_flight
        self._lock = threading.Lock()  # an interrupt may not leave it taken, as a Condition's could
        self._room = threading.Condition(self._lock)
        self._failed: BaseException | None = None

    def store(self, plain: bytes) -> "Future[Digest]":
        """Queue one chunk; blocks while too many bytes are in flight.

        Raises what a worker raised.
        """
        size = min(COPIES * len(plain), self._limit)
        with self._lock:
            self._room.wait_for(lambda: self._free >= size or self._failed)
            if self._failed:
                raise self._failed
            self._free -= size
        return self.submit(self._store_one, [plain], size)

    def _store_one(self, plain: list[bytes], size: int) -> Digest:
        """One chunk, which is out of its list, and of memory, while it is sent.

        An OSError may not leave here: the walk takes those for its files'.
        """
        held = size
        try:
            chunk = self._chunks.encode(plain.pop())
            held -= size // COPIES
            self._give_back(size // COPIES)
            self._chunks.send(chunk)
        except OSError as error:
            self._failed = BackendError(f"storing a chunk: {error}")
            raise self._failed from error
        except BaseException as error:
            self._failed = error
            raise
        else:
            return chunk.digest
        finally:
            self._give_back(held)

    def _give_back(self, size: int) -> None:
        with self._lock:
            self._free += size
            self._room.notify()


class IndexedSink:
    """Where a chunker's cuts go: chunks into the pool, their digests into one index, in order."""

    def __init__(self, pool: ChunkPool, index: DynamicIndexFile) -> None:
        self._pool = pool
        self._index = index
        self._pending: deque[tuple[int, Future[Digest] | Digest]] = deque()
        self._end = 0

    def emit(self, plain: bytes) -> None:
        """Take the next chunk of the stream. Raises what an earlier chunk's worker raised."""
        self._end += len(plain)
        self._pending.append((self._end, self._pool.store(plain)))
        self._settle_ready()

    def emit_known(self, chunks: Sequence[tuple[Digest, int]]) -> None:
        """Take chunks (digest, plain size) that are stored already."""
        for digest, size in chunks:
            self._end += size
            self._pending.append((self._end, digest))
        self._settle_ready()

    def close(self) -> bytes:
        """Wait for the stream's chunks, finish the index and return its checksum."""
        while self._pending:
            self._settle()
        return self._index.close()

    @property
    def size(self) -> int:
        return self._end

    def _settle_ready(self) -> None:
        while self._pending and _is_ready(self._pending[0][1]):
            self._settle()

    def _settle(self) -> None:
        end, chunk = self._pending.popleft()
        self._index.add(end, chunk.result() if isinstance(chunk, Future) else chunk)


def _is_ready(chunk: "Future[Digest] | Digest") -> bool:
    return not isinstance(chunk, Future) or chunk.done()
