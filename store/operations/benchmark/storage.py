"""Objects like chunks put, got and looked at, in a directory that goes away afterwards."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from store.backends.base import Backend
from store.errors import NotFound, PermissionDenied, StoreError
from store.format.buffer import Buffer
from store.operations.benchmark.crew import Crew
from store.operations.benchmark.prediction import Rate
from store.progress import Progress

log = logging.getLogger(__name__)

OURS = ".vaultway"
SCRATCH = f"{OURS}/benchmark"
SMALL_READ = 4096
MOST_CALLS = 10_000
MOST_BYTES = 512 << 20
"""Of objects in one round: a fast disk must not be filled while the seconds pass."""


@dataclass(frozen=True)
class Latency:
    """How long one small request takes: median seconds, one at a time."""

    name: str
    seconds: float


@contextmanager
def scratch_directory(backend: Backend) -> Iterator[str]:
    """A new directory for objects that come and go; taken away with all in it at the end.

    Who may not write hears it at once: a first object is put. Raises PermissionDenied,
    BackendError, OutOfSpace.
    """
    directory = f"{SCRATCH}/{os.urandom(8).hex()}"
    made = [parent for parent in (SCRATCH, OURS) if backend.stat(parent) is None]
    was_refused = False
    try:
        try:
            backend.mkdir(directory)
            backend.write(f"{directory}/first", (b"first",), exclusive=True)
        except PermissionDenied:
            was_refused = True
            raise
        yield directory
    finally:
        try:
            backend.remove_tree(directory)
            for parent in made:
                backend.rmdir(parent)  # stays if it is somebody else's by now
        except StoreError as error:
            if not was_refused:  # else there is nothing
                place = f"{backend.location}/{directory}"
                log.warning("%s is left behind, remove it: %s", place, error)


class StorageBench:
    """Puts, gets and looks, on objects like chunks in a directory of their own."""

    def __init__(
        self,
        backend: Backend,
        directory: str,
        stored: Sequence[bytes],
        seconds: float,
        progress: Progress,
    ) -> None:
        self._backend, self._directory, self._stored = backend, directory, stored
        self._seconds, self._progress = seconds, progress
        self._names: list[str] = []
        room = MOST_BYTES if backend.is_object_store else backend.status().available // 10
        self._putting = Crew(seconds, min(MOST_BYTES, room), backend.interrupt)
        self._getting = Crew(seconds, give_up=backend.interrupt)

    def put_and_get(self, threads: int) -> Iterator[Rate]:
        """New objects as a backup writes them, synced as at its end; then the same read back."""
        round_directory = f"{self._directory}/{threads}"
        self._backend.mkdir(round_directory)
        names = self._names
        if names:  # of the round before
            self._backend.remove_tree(names[0].rpartition("/")[0])
            names.clear()

        def put(number: int) -> int:
            name, data = f"{round_directory}/{number}", self._stored[number % len(self._stored)]
            self._backend.write(name, (data,), exclusive=True)
            names.append(name)
            return len(data)

        def get(number: int) -> int:
            return len(self._backend.read(names[number % len(names)]))

        yield Rate("put", threads, self._putting.run(threads, put, self._backend.sync))
        self._progress.advance(1)
        yield Rate("get", threads, self._getting.run(threads, get))
        self._progress.advance(1)

    def latencies(self) -> tuple[Latency, ...]:
        """Of what is asked for a chunk that is known, and of the least that can be read."""
        name = self._names[0]

        def stat() -> None:
            if self._backend.stat(name) is None:
                raise NotFound(f"{self._backend.location}/{name} has vanished")

        def read() -> Buffer:
            return self._backend.read_range(name, 0, SMALL_READ)

        calls: tuple[tuple[str, Callable[[], object]], ...] = (("stat", stat), ("read", read))
        found = []
        for what, call in calls:
            found.append(Latency(what, _latency(call, self._seconds / 3)))
            self._progress.advance(1)
        return tuple(found)


def _latency(call: Callable[[], object], seconds: float) -> float:
    """Median seconds of a call."""
    took: list[float] = []
    until = time.perf_counter() + seconds
    while not took or (time.perf_counter() < until and len(took) < MOST_CALLS):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return median(took)
