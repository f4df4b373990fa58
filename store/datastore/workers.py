"""Threads that call a storage: how many, in how much memory, and how they end at once."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from itertools import count as numbers
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from store.backends.base import Backend
from store.backends.turns import processors
from store.datastore.memory import Memory
from store.errors import Cancelled

P = ParamSpec("P")
T = TypeVar("T")

COPIES = 2
"""A chunk that is encoded or decoded is in memory in both forms."""
POLL_S = 0.005
POLLS_A_SECOND = 200


def worker_count(backend: Backend, memory: Memory, chunk_size: int) -> int:
    """How many threads are worth having: as many as the storage serves, and have room.

    Steps that compute release the GIL, so more threads than processors are for waiting: those have
    one copy of their chunk, for only as many as there are processors compute (`turn_for`).
    """
    room = memory.in_flight // chunk_size
    return max(1, min(backend.parallelism, max(room // COPIES, room - processors())))


def at_once(backend: Backend, *calls: Callable[[], object]) -> None:
    """Make calls that do not need each other: together, where each waits for a network.

    All have ended when this returns, or raises what the first in order that failed has raised.
    Elsewhere they are made in order, up to the first that fails. A single one needs no thread.
    """
    if len(calls) < 2 or not backend.is_object_store:
        for call in calls:
            call()
        return
    with Workers(backend, len(calls), "at-once") as workers:
        made = [workers.submit(copy_context().run, call) for call in calls]
        wait(made)
    for future in made:
        future.result()


class Workers:
    """A few threads, for one operation that has its storage to itself.

    Left in order, or given up (a generator that is closed), they end what they are at. Left by an
    error or an interrupt they end at once: the calls to the storage that they are in are
    interrupted. In both cases what has not begun is dropped, and no thread is left.
    """

    def __init__(self, backend: Backend, count: int, name: str) -> None:
        """Threads start when they have something to do."""
        self.count = count
        self._backend = backend
        self._pool = ThreadPoolExecutor(count, name)
        self._running: set[int] = set()
        self._stopping = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, GeneratorExit):
            self.finish()
        else:
            self.stop()

    def submit(
        self, work: Callable[P, T], /, *arguments: P.args, **options: P.kwargs
    ) -> "Future[T]":
        """Queue a call."""
        return self._pool.submit(self._call, work, *arguments, **options)

    def _call(self, work: Callable[P, T], /, *arguments: P.args, **options: P.kwargs) -> T:
        """Counted here, not where it is queued: an interrupt in there would lose it."""
        thread = threading.get_ident()
        self._running.add(thread)
        try:
            if self._stopping:
                raise Cancelled("stopped before it began")
            return work(*arguments, **options)
        finally:
            self._running.discard(thread)

    def run(self, work: Callable[[], object]) -> None:
        """Call `work` in every thread; returns when all have ended, raises when one failed."""
        done, _ = wait([self.submit(work) for _ in range(self.count)], None, FIRST_EXCEPTION)
        for future in done:
            future.result()

    def finish(self) -> None:
        """Wait for what has begun, and drop the rest."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def stop(self) -> None:
        """The same without patience. Other threads' calls to the storage are interrupted, too.

        Again and again, because a thread may have been between two calls, but ever more rarely,
        down to once a second: what it takes back (a lock that it was about to have) needs a call
        that comes through.
        """
        self._stopping = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for polls in numbers():
            if not self._running:
                break
            if polls & (polls - 1) == 0 or polls % POLLS_A_SECOND == 0:  # 0, 1, 2, 4, 8, …
                self._backend.interrupt()
            time.sleep(POLL_S)
        self.finish()
