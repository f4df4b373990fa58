"""Where the mount's event loop meets the threads of `store`: the only file that crosses over.

Inside the loop everything is trio; below, everything is plain blocking Python. `Bridge.run` moves
one call to a thread, `as_fuse_error` turns what came back into an errno and, where somebody should
act, into one log line.
"""

import errno
import logging
import os
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

import trio
from pyfuse3 import FUSEError

from fsgateway.waiting import Activity
from store.errors import (
    BackendError,
    FormatError,
    IntegrityError,
    KeyRequired,
    Locked,
    StoreError,
)

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

QUIET_S = 60.0
MAX_REMEMBERED = 1000
THREADS = max(4, (os.cpu_count() or 1) + 2)
# They wait for children and guests: a journal is replayed in minutes, and holds a thread for each
# who asks for its disk. They cost memory only while they wait.
DISK_THREADS = 16


class Paced(Protocol):
    """Something that is asked in threads."""

    @property
    def is_slow(self) -> bool:
        """Whether an answer may take minutes: a disk may have to be unlocked or replayed first."""


class Bridge:
    """Runs blocking calls in threads, a bounded number at a time.

    Args:
        threads: how many calls may run at once. More callers wait on the event loop, where waiting
            is free.
        activity: where its calls count, shared by all that belong to one mount.
        slow: runs what is slow, so that nothing else waits behind that; itself if None.
    """

    def __init__(
        self,
        threads: int = THREADS,
        activity: Activity | None = None,
        slow: "Bridge | None" = None,
    ) -> None:
        self.threads = threads
        self.activity = activity or Activity()
        self._limiter = trio.CapacityLimiter(threads)
        self._slow = slow or self

    def of(self, asked: Paced) -> "Bridge":
        """The bridge by which something is to be asked."""
        return self._slow if asked.is_slow else self

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Call `function(*args)` in a thread; its exception is raised here as it is.

        Cancelling waits for the thread: a half-read index or cache entry is never left behind.
        """
        with self.activity.one_more():
            return await trio.to_thread.run_sync(function, *args, limiter=self._limiter)


def turn_of_the_loop() -> Callable[[], None]:
    """A function for threads: it returns when this event loop had a turn, or runs no more."""
    token = trio.lowlevel.current_trio_token()

    def wait() -> None:
        with suppress(trio.RunFinishedError):
            trio.from_thread.run_sync(lambda: None, trio_token=token)

    return wait


class QuietLog:
    """Writes a line at most once a minute: retries on a damaged file must not fill a disk."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, quiet_s: float = QUIET_S
    ) -> None:
        self._clock = clock
        self._quiet_s = quiet_s
        self._last: dict[str, float] = {}

    def warning(self, message: str) -> None:
        now = self._clock()
        if now - self._last.get(message, -self._quiet_s) < self._quiet_s:
            return
        if len(self._last) >= MAX_REMEMBERED:
            self._last.clear()
        self._last[message] = now
        log.warning("%s", message)


QUIET = QuietLog()
WORTH_A_LINE = (KeyRequired, FormatError, IntegrityError, BackendError, Locked)


def as_fuse_error(error: Exception, doing: str, quiet: QuietLog = QUIET) -> FUSEError:
    """Return the errno for `error` as FUSEError, logging what an administrator should know.

    Args:
        error: anything a handler raised.
        doing: the handler's name, for the traceback line.
    Returns:
        StoreError and OSError give their errno, MemoryError ENOMEM, everything else EIO with a
            traceback in the log.
    """
    if isinstance(error, FUSEError):
        return error
    if isinstance(error, StoreError):
        if isinstance(error, WORTH_A_LINE):
            quiet.warning(str(error))
        return FUSEError(error.errno)
    if isinstance(error, OSError):
        quiet.warning(f"{doing}: {error}")
        return FUSEError(error.errno or errno.EIO)
    log.error("%s failed", doing, exc_info=error)
    return FUSEError(errno.ENOMEM if isinstance(error, MemoryError) else errno.EIO)


def guarded(
    handler: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """Let only FUSEError leave a FUSE handler: anything else would end the mount."""

    @wraps(handler)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(*args, **kwargs)
        except FUSEError:
            raise
        except Exception as error:
            raise as_fuse_error(error, handler.__name__) from error

    return wrapper


def unanswered(
    handler: Callable[P, Coroutine[Any, Any, None]],
) -> Callable[P, Coroutine[Any, Any, None]]:
    """As `guarded`, for what the kernel only tells: even FUSEError would end the mount there."""
    answering = guarded(handler)

    @wraps(handler)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        with suppress(FUSEError):
            await answering(*args, **kwargs)

    return wrapper
