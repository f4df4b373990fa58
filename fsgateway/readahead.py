"""Brings chunks into the cache: each once, and ahead of sequential readers.

What a reader waits for comes through the event loop, and a waiter costs no thread. The threads that
read ahead find their next chunk by themselves: the loop is busy with carrying the last ones.
"""

import logging
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from fsgateway.bridge import Bridge
from store.backends.base import Backend
from store.datastore.archives import IndexedStream
from store.datastore.chunk_cache import reads_at_once
from store.datastore.streams import Index

if TYPE_CHECKING:
    from collections.abc import Callable

    from store.names import Digest

log = logging.getLogger(__name__)

MIB = 1 << 20
LARGEST_CHUNK = 16 * MIB
MAX_AHEAD = 3
# Below this it may be a look at a file's head; the kernel's own read-ahead window is 1 MiB at most.
SEQUENTIAL_AFTER = 256 * 1024
# An image may have long runs of one chunk, zeros say: what comes behind is worth to read ahead.
LONGEST_RUN = 16
# Requests of one reader overtake each other, and small files lie a few metadata items apart.
SLACK = 2 * MIB
WAYS = 8


@dataclass(slots=True)
class Way:
    """One reader's way through a stream: how far it came, and how far in one go."""

    position: int
    run: int = 0
    mark: int = 0


@dataclass(slots=True)
class Ways:
    """The readers that went through one stream lately.

    Files of one archive share it: they lie side by side.
    """

    recent: list[Way] = field(default_factory=list)

    def of(self, position: int) -> Way:
        """The way that `position` continues, or a new one in place of the oldest."""
        for way in self.recent:
            if -SLACK <= position - way.position <= SLACK:
                self.recent.remove(way)
                break
        else:
            way = Way(position)
            del self.recent[: len(self.recent) + 1 - WAYS]
        self.recent.append(way)
        return way


@dataclass(slots=True)
class _Flight:
    """A chunk being decoded."""

    done: trio.Event = field(default_factory=trio.Event)
    error: Exception | None = None


class Loader:
    """Loads chunks for the readers of a mount.

    Args:
        bridge: runs what a reader waits for.
        threads: how many read ahead.
        cache_bytes: the cache's budget, which limits how far ahead it is worth to read.
        backend: what the chunks come from, likewise.

    `start_soon` starts a background task; None before the mount runs, and then nothing is read
    ahead.
    """

    def __init__(self, bridge: Bridge, threads: int, cache_bytes: int, backend: Backend) -> None:
        self.bridge = bridge
        self.threads = ThreadPoolExecutor(threads, "read-ahead")
        self._flights: dict[Digest, _Flight] = {}
        self._wanted: OrderedDict[Digest, tuple[IndexedStream, int]] = OrderedDict()
        room = max(0, cache_bytes // LARGEST_CHUNK - 1)
        self._ahead = min(room, reads_at_once(backend, MAX_AHEAD, room))
        self.start_soon: Callable[..., object] | None = None

    async def fill(self, stream: IndexedStream, position: int, size: int) -> None:
        """Bring everything the range needs into the cache. Raises what reading it raises."""
        index = stream.index
        for number in range(index.position(position), index.position(position + size - 1) + 1):
            start, _ = index.range(number)
            if stream.peek(start, 1) is None:
                await self._load(stream, number)

    async def _load(self, stream: IndexedStream, number: int) -> None:
        digest = stream.index.digest(number)
        ours = _Flight()
        flight = self._flights.setdefault(digest, ours)
        if flight is not ours:
            with self.bridge.activity.one_more():
                await flight.done.wait()
            if flight.error is not None:
                raise flight.error
            return
        try:
            await self.bridge.run(stream.read, stream.index.range(number)[0], 1)
        except Exception as error:
            flight.error = error
            raise
        finally:
            del self._flights[digest]
            flight.done.set()

    def follow(self, stream: IndexedStream, way: Way, position: int, size: int) -> None:
        """Decode the next chunks in the background for a reader that goes straight on.

        Afterwards `way.mark` says from which position on to call again.
        """
        end = position + size
        if not -SLACK <= position - way.position <= SLACK + max(0, way.mark - way.position):
            way.position, way.run = position, 0
        way.run += max(0, end - way.position)
        way.position = max(end, way.position)
        if way.run < SEQUENTIAL_AFTER or self.start_soon is None:
            way.mark = 0
            return
        index = stream.index
        number = index.position(position)
        way.mark = index.range(number)[1]
        if number and end - way.run <= index.range(number - 1)[0]:
            stream.reader.passed(index.digest(number - 1))
        first = _behind_run(index, number)
        for ahead in range(first, min(first + self._ahead, len(index))):
            digest = index.digest(ahead)
            is_coming = digest in self._flights or digest in self._wanted
            if not is_coming and stream.peek(index.range(ahead)[0], 1) is None:
                self._wanted[digest] = stream, ahead
                try:
                    self.threads.submit(self._load_next, trio.lowlevel.current_trio_token())
                except RuntimeError:  # no more threads to be had: it was a hint
                    del self._wanted[digest]

    def _load_next(self, loop: trio.lowlevel.TrioToken) -> None:
        """Load what is wanted ahead of all else: for a thread."""
        digest, (stream, number) = self._wanted.popitem(last=False)
        ours = _Flight()
        if self._flights.setdefault(digest, ours) is not ours:
            return  # who gets there was faster
        try:
            stream.read(stream.index.range(number)[0], 1)
        except Exception as error:  # noqa: BLE001 - the reader that gets there is told; ahead of it nobody asked
            ours.error = error
            log.debug("read-ahead of chunk %d: %s", number, error)
        finally:
            del self._flights[digest]
            with suppress(trio.RunFinishedError):
                loop.run_sync_soon(ours.done.set)

    def stop(self) -> None:
        """Begin nothing more."""
        self.threads.shutdown(wait=False, cancel_futures=True)

    async def close(self) -> None:
        """Read no more ahead, and wait for what is being read."""
        self.stop()
        await self.bridge.run(self.threads.shutdown)


def _behind_run(index: Index, number: int) -> int:
    """The next chunk that is another than this one, or where the look for it was given up."""
    digest, after = index.digest(number), number + 1
    end = min(after + LONGEST_RUN, len(index))
    while after < end and index.digest(after) == digest:
        after += 1
    return after
