"""Which chunks an object store has, without a request for each (store notes 0016).

The store lists a thousand names a request. One such page says of every digest in its stretch
whether the chunk is there, and nothing else is believed in a session: what an earlier snapshot or
a file on this machine names only tells which pages are worth asking for.
"""

import threading
from array import array
from collections.abc import Callable

from store.backends.base import Backend
from store.datastore.chunk_store import CHUNKS, NAME_SIZE, digest_of, name_below
from store.datastore.chunk_windows import FIRST, LAST, ChunkWindows
from store.datastore.digest_hints import MAX_HINTS, Candidates, prefix_of
from store.errors import BackendError
from store.names import Digest

PAGE = 1000
"""Names that one request lists."""
CELL = 900
"""Chunks between two places where a page begins: a little less than one page holds."""
REMEMBERED = 1 << 17


class KnownChunks:
    """The chunks of an object store, as one session knows them. Thread-safe.

    The caller keeps garbage collection away. Errors are those of `Backend.walk`.
    """

    def __init__(self, backend: Backend, candidates: Candidates, budget_bytes: int) -> None:
        """`candidates`: of these it is likely that they are there."""
        self._backend, self._candidates = backend, candidates
        self._lock = threading.Lock()
        self._windows = ChunkWindows(budget_bytes)
        self._cell = 0  # of the digest space, measured by the first page
        self._flights: dict[bytes, threading.Event] = {}
        self._stored: dict[Digest, None] = {}
        self._new = self._met = 0
        self.used = array("Q")
        """The prefixes of chunks found or stored, some more than once."""

    def begin(self) -> None:
        """Ask for the first page already: nearly every backup needs it, and it may be all."""
        self._look(Digest(bytes(32)), lambda: None if self._cell else FIRST)

    def remember(self) -> None:
        """Keep what was found or stored as candidates for the next backup from this host."""
        self._candidates.remember(self.used)

    def confirm(self, digest: Digest) -> bool:
        """Whether the store has this chunk: it said so in this session, or is asked now."""
        while True:
            found = self._look(digest, lambda: self._start_for(digest))
            if found is not None:
                return found

    def find(self, digest: Digest) -> bool:
        """The same where asking pays: False means that storing the chunk is the way to know.

        The first page always pays: it may be the only one.
        """
        found, has_asked = None, False
        while found is None and not has_asked:
            has_asked = self._cell > 0
            found = self._look(digest, lambda: None if self._cell else FIRST)
        if found is None and (self._met > self._new or digest in self._candidates):
            return self.confirm(digest)
        return bool(found)

    def stored(self, digest: Digest, *, new: bool) -> None:
        """Note a chunk that was stored just now; not `new`: it was there.

        Where most of them were there, asking first pays for all.
        """
        with self._lock:
            self._new += new
            self._met += not new
            self._stored[digest] = None
            if len(self._stored) > REMEMBERED:
                del self._stored[next(iter(self._stored))]
            self._use(digest)

    def _recall(self, digest: Digest) -> bool | None:
        found = digest in self._stored or self._windows.find(digest)
        if found:
            self._use(digest)
        return found

    def _use(self, digest: Digest) -> None:
        if len(self.used) < MAX_HINTS:
            self.used.append(prefix_of(digest))

    def _start_for(self, digest: Digest) -> bytes:
        """Where the page begins that will have the digest: at its cell, or at the last page's end.

        Cells hold less than a page, so nearly always one page tells; the next one goes on there.
        """
        gap = self._windows.gap_before(digest)
        if not self._cell:
            return gap
        number = prefix_of(digest) // self._cell
        cell = (number * self._cell).to_bytes(8, "big") + bytes(24)
        return cell if gap < cell < digest else gap

    def _look(self, digest: Digest, choose: Callable[[], bytes | None]) -> bool | None:
        """What is known of a digest. If nothing, the page that `choose` names is asked for, once.

        Several threads may want one: the others wait for it. If that failed, they ask themselves.
        """
        start, ours = None, threading.Event()
        try:  # before it boards: an interrupt must leave no flight that nobody ends
            with self._lock:
                found = self._recall(digest)
                start = choose() if found is None else None
                flight = ours if start is None else self._flights.setdefault(start, ours)
            if flight is not ours:
                flight.wait()
            elif start is not None:
                self._ask(start)
        finally:
            if start is not None:
                self._land(start, ours)
        return found

    def _land(self, start: bytes, flight: threading.Event) -> None:
        with self._lock:
            if self._flights.get(start) is flight:
                del self._flights[start]
        flight.set()

    def _ask(self, start: bytes) -> None:
        """Ask for one page, and note what it says."""
        end, listed = self._list(start)
        with self._lock:
            self._windows.add(start, end, listed)
            if not self._cell:
                span = prefix_of(end) + 1 - prefix_of(start)
                self._cell = max(1, span * CELL // max(1, len(listed)))

    def _list(self, start: bytes) -> tuple[bytes, list[Digest]]:
        """The chunks of one page after `start`, and where it ends. Empty ones are no chunks.

        Raises BackendError where names come in no order: a page would say nothing then.
        """
        last, listed = start, list[Digest]()
        after = name_below(Digest(start)) if start else ""
        for count, found in enumerate(self._backend.walk(CHUNKS, after), 1):
            digest = digest_of(found.name[:NAME_SIZE])  # a `.bad` one stands beside its chunk
            if digest is None:
                continue
            if digest < last:
                raise BackendError(f"{self._backend.location}: lists its objects in no order")
            last = digest
            if found.size and len(found.name) == NAME_SIZE:
                listed.append(digest)
            if count >= PAGE and last > start:
                return last, listed
        return LAST, listed
