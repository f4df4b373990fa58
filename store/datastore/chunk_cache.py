"""Decoded chunks in memory, and how they get there: read, check, decode, once."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

from store.backends.base import Backend
from store.backends.turns import processors, turn_for
from store.datastore.chunk_store import ChunkStore
from store.datastore.rooms import HUGE_PAGE, MOST_FREE, Room, Rooms, room_of
from store.errors import ChunkMissing, FormatError, IntegrityError, StoreError
from store.format.blob import ENCRYPTED_HEADER, MAX_CHUNK_SIZE, decode_chunk
from store.format.buffer import Buffer
from store.format.crypt import CIPHER_SLACK, CryptConfig
from store.format.fixed_index import CHUNK_SIZE
from store.names import Digest, Fingerprint

ENTRY_OVERHEAD = 256
PREFETCH_THREADS = 2
QUEUED_PER_THREAD = 4
PASSED_SHARE = 8
PASSED_BYTES = 8 << 20
"""Of what a sequential reader has behind it so much is kept, or an eighth of a small budget."""
FREE_SHARE = 4
FREE_AT_LEAST = 3 * HUGE_PAGE
"""Free rooms, which come on top of it, take a quarter of a small budget, each of both kinds.

But one may be there, as large as a chunk of 4 MiB is when it is stored.
"""
REMEMBERED = 4096
"""Names of chunks that were let go early: of 16 GiB, in 1 MiB of memory."""


def reads_at_once(backend: Backend, few: int, room: int) -> int:
    """How many chunks to read ahead: a `few` from a disk, which has processors to wait for.

    Where calls wait for a network: as many as it serves, while there is room for them.
    """
    if backend.parallelism <= processors():
        return few
    return max(few, min(backend.parallelism, room))


def cache_over(backend: Backend, budget_bytes: int) -> "ChunkCache":
    """The cache of a gateway, half of which may be read ahead."""
    room = budget_bytes // 2 // CHUNK_SIZE
    return ChunkCache(budget_bytes, reads_at_once(backend, PREFETCH_THREADS, room))


class Cached(NamedTuple):
    """A decoded chunk, and by which key (None: plain).

    A chunk decoded for one archive must not serve another
    that claims a different protection.
    """

    data: bytes | memoryview
    key: Fingerprint | None
    is_wanted_again: bool = False

    @property
    def size(self) -> int:
        """What it takes of the budget."""
        room = room_of(self.data)
        return (len(self.data) if room is None else room.touched) + ENTRY_OVERHEAD


class _Flight:
    """One load that is under way, and what came of it."""

    __slots__ = ("data", "done", "error")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.data: bytes | memoryview | None = None
        self.error: Exception | None = None


class ChunkCache:
    """The decoded chunks last used, up to a budget in bytes; one for all archives of a process.

    Thread-safe.

    A hit takes no lock: one dictionary look-up and one move in it, each atomic. Two threads that
    miss the same chunk load it once. A chunk larger than the budget is handed out and not kept;
    below 16 MiB that hurts.
    """

    def __init__(self, budget_bytes: int, prefetchers: int = PREFETCH_THREADS) -> None:
        """`prefetchers`: threads that load ahead."""
        self.budget_bytes = budget_bytes
        self.prefetchers = prefetchers
        most_free = max(FREE_AT_LEAST, min(MOST_FREE, budget_bytes // FREE_SHARE))
        self.rooms = Rooms(most_free)  # of decoded chunks
        self.raw_rooms = Rooms(most_free)  # as they are stored
        self._entries: OrderedDict[bytes, Cached] = OrderedDict()
        self._passed: OrderedDict[bytes, Cached] = OrderedDict()
        self._gone: OrderedDict[bytes, None] = OrderedDict()  # passed, and let go
        self._used = self._used_by_passed = 0
        self._flights: dict[tuple[bytes, Fingerprint | None], _Flight] = {}
        self._lock = threading.Lock()
        self._prefetchers: ThreadPoolExecutor | None = None
        self._wanted: set[tuple[bytes, Fingerprint | None]] = set()

    @property
    def used_bytes(self) -> int:
        """What the kept chunks take, bookkeeping included; never more than the budget."""
        return self._used

    def __len__(self) -> int:
        return len(self._entries) + len(self._passed)

    def get(self, digest: Digest, key: Fingerprint | None) -> bytes | memoryview | None:
        """The chunk if it is here, as decoded with `key`. Never blocks."""
        entry = self._entries.get(digest)
        if entry is None:
            entry = self._passed.get(digest)
            return None if entry is None or entry.key != key else entry.data
        if entry.key != key:
            return None
        with suppress(KeyError):  # dropped by another thread this very moment
            self._entries.move_to_end(digest)
        return entry.data

    def load(
        self, digest: Digest, key: Fingerprint | None, load: Callable[[], bytes | memoryview]
    ) -> bytes | memoryview:
        """The chunk from here, or from `load`, which one thread calls while others wait.

        Raises what `load` raises.
        """
        while True:
            data = self.get(digest, key)
            if data is not None:
                return data
            flight = _Flight()
            try:  # before it boards: an interrupt must leave no flight that nobody ends
                first = self._board((digest, key), flight)
                if first is flight:
                    return self._fly(flight, digest, key, load)
            finally:  # an interrupt leaves neither data nor error: a waiting thread takes over
                self._land((digest, key), flight)
            first.done.wait()
            if first.data is not None:
                return first.data
            if first.error is not None:
                raise first.error

    def _board(self, name: tuple[bytes, Fingerprint | None], flight: _Flight) -> _Flight:
        """The flight that loads a chunk: this one, if there is no other."""
        with self._lock:
            return self._flights.setdefault(name, flight)

    def _land(self, name: tuple[bytes, Fingerprint | None], flight: _Flight) -> None:
        with self._lock:
            if self._flights.get(name) is flight:
                del self._flights[name]
        flight.done.set()

    def _fly(
        self,
        flight: _Flight,
        digest: Digest,
        key: Fingerprint | None,
        load: Callable[[], bytes | memoryview],
    ) -> bytes | memoryview:
        try:
            data = self.get(digest, key)  # landed between our look and our boarding
            if data is None:
                data = load()
                self._keep(digest, Cached(data, key, digest in self._gone))
            flight.data = data
        except Exception as error:
            flight.error = error
            raise
        return data

    def _keep(self, digest: bytes, entry: Cached) -> None:
        size = entry.size
        if size > self.budget_bytes:
            return
        left: list[Room] = []
        with self._lock:
            self._gone.pop(digest, None)
            self._drop(digest, left)
            while self._used + size > self.budget_bytes:
                self._drop(self._oldest(), left)
            self._entries[digest] = entry
            self._used += size
        self.rooms.give_back(left)

    def _oldest(self) -> bytes:
        """The chunk that has to go first: one that was passed, or the one not used for longest."""
        while True:
            with suppress(RuntimeError):  # a hit has moved another this very moment
                return next(iter(self._passed or self._entries))

    def _drop(self, digest: bytes, left: list[Room]) -> None:
        """Forget a chunk if it is here; its room goes to those that were left."""
        entry = self._entries.pop(digest, None)
        if entry is None:
            entry = self._passed.pop(digest, None)
            if entry is None:
                return
            self._used_by_passed -= entry.size
        self._used -= entry.size
        room = room_of(entry.data)
        if room is not None:
            left.append(room)

    def passed(self, digest: Digest) -> None:
        """Somebody who reads a file from its beginning on has this chunk behind him.

        He will hardly come back, and the kernel has it, too. So of such chunks only the newest
        stay, for others who follow close by, and a long file is read through little memory, the
        same again and again. Who does come back, later, is believed: what was let go so and is
        loaded again stays like all others.
        """
        left: list[Room] = []
        with self._lock:
            entry = self._entries.get(digest)
            if entry is None or entry.is_wanted_again:
                return
            self._passed[digest] = self._entries.pop(digest)
            self._used_by_passed += entry.size
            del entry
            while self._used_by_passed > min(PASSED_BYTES, self.budget_bytes // PASSED_SHARE):
                oldest = next(iter(self._passed))
                self._drop(oldest, left)
                self._remember(oldest)
        self.rooms.give_back(left)

    def _remember(self, digest: bytes) -> None:
        self._gone[digest] = None
        if len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)

    def clear(self) -> None:
        """Forget all chunks."""
        with self._lock:
            self._entries.clear()
            self._passed.clear()
            self._gone.clear()
            self._used = self._used_by_passed = 0
        self.rooms.clear()
        self.raw_rooms.clear()

    def prefetch(self, digest: Digest, key: Fingerprint | None, load: Callable[[], object]) -> None:
        """Run `load` in the background; dropped when it was asked for, or enough is waiting.

        Its StoreErrors are for the read to find.
        """
        name = (digest, key)
        with self._lock:
            most = self.prefetchers * QUEUED_PER_THREAD
            if name in self._wanted or name in self._flights or len(self._wanted) >= most:
                return
            self._wanted.add(name)
            if self._prefetchers is None:  # with the first use: nbdkit forks before that
                self._prefetchers = ThreadPoolExecutor(self.prefetchers, "prefetch")
            try:
                self._prefetchers.submit(self._quietly, name, load)
            except RuntimeError:  # closed, or the process is ending
                self._wanted.discard(name)

    def _quietly(self, name: tuple[bytes, Fingerprint | None], load: Callable[[], object]) -> None:
        try:
            with suppress(StoreError):
                load()
        finally:
            self._wanted.discard(name)

    def close(self) -> None:
        """Forget all chunks and end the background threads. Reading still works afterwards."""
        if self._prefetchers is not None:
            self._prefetchers.shutdown(wait=True, cancel_futures=True)
        self.clear()


class ChunkReader:
    """The chunks of one archive, decoded and verified. Thread-safe."""

    def __init__(
        self,
        chunks: ChunkStore,
        key: CryptConfig | None,
        encrypted: bool,
        cache: ChunkCache,
        *,
        name: str = "archive",
    ) -> None:
        """`encrypted` says what the manifest says of the archive, `name` is for messages."""
        self._chunks, self._cache = chunks, cache
        self.key = key if encrypted else None
        self.encrypted = encrypted
        self.name = name
        self._cache_key = self.key.fingerprint if self.key else None

    @property
    def backend(self) -> Backend:
        """Where the chunks are."""
        return self._chunks.backend

    def read(self, digest: Digest, size: int, offset: int) -> bytes | memoryview:
        """One whole chunk of `size` bytes, from the cache or the store.

        `offset` is where the archive has it, for messages.

        Raises ChunkMissing, IntegrityError, FormatError (each naming archive, offset and digest),
        BackendError.
        """
        try:
            data = self._cache.load(digest, self._cache_key, lambda: self._load(digest, size))
            if len(data) != size:
                raise IntegrityError(f"chunk {digest} has {len(data)} bytes, the index says {size}")
        except (IntegrityError, FormatError) as error:
            raise type(error)(f"{self.name}: at offset {offset}: {error}") from error
        return data

    def peek(self, digest: Digest) -> bytes | memoryview | None:
        """The chunk if it is in the cache; no waiting, no I/O."""
        return self._cache.get(digest, self._cache_key)

    def passed(self, digest: Digest) -> None:
        """A sequential reader has it behind him."""
        self._cache.passed(digest)

    def prefetch(self, digest: Digest, size: int, offset: int) -> None:
        """Start loading a chunk that will be wanted soon."""
        if self.peek(digest) is None:
            self._cache.prefetch(digest, self._cache_key, lambda: self.read(digest, size, offset))

    def _load(self, digest: Digest, size: int) -> bytes | memoryview:
        """Read and decode; what is bad or missing from another copy, if the storage has one.

        Only here the content is known: a CRC covers neither an encrypted chunk's IV and tag, nor
        what its digest stands for.
        """
        with self._cache.raw_rooms.lent(min(size, MAX_CHUNK_SIZE) + ENCRYPTED_HEADER.size) as room:
            return self._load_through(room, digest, size)

    def _load_through(
        self, room: memoryview | None, digest: Digest, size: int
    ) -> bytes | memoryview:
        raw: Buffer = b""
        try:
            raw = self._chunks.read(digest, room)
            return self._decode(raw, digest, size)
        except (IntegrityError, FormatError) as error:
            plain = self._load_copy(raw, digest, size)
            if plain is not None:
                return plain
            if isinstance(error, ChunkMissing):
                raise
            raise type(error)(f"chunk {digest}: {error}") from error

    def _load_copy(self, bad: Buffer, digest: Digest, size: int) -> bytes | memoryview | None:
        """The first copy that can be decoded; it replaces the others."""
        for copy in self._chunks.copies(digest):
            if copy == bad:
                continue
            with suppress(IntegrityError, FormatError):
                plain = self._decode(copy, digest, size)
                self._chunks.repair(digest, copy)
                return plain
        return None

    def _decode(self, raw: Buffer, digest: Digest, size: int) -> bytes | memoryview:
        with turn_for(self.backend):
            target = self._cache.rooms.take(size, CIPHER_SLACK) if size <= MAX_CHUNK_SIZE else None
            return decode_chunk(
                raw, self.key, digest, size, encrypted=self.encrypted, target=target
            )
