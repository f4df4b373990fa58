"""How pyfuse3's workers wait for the next request: a moment on the spot, before the event loop.

One program that unpacks or copies has one request on its way at a time. By the event loop each of
them costs a lock, an epoll_ctl and an epoll_wait, some 25 µs, as much as answering it. Who has just
answered looks for the next one itself, for as long as a program takes to ask again; while threads
are at work for others it does not wait for it, and every few milliseconds the loop has its turn.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pyfuse3

from fsgateway import extra_handlers
from fsgateway.bridge import Bridge

log = logging.getLogger(__name__)

MOMENT_US = 80
"""What a program takes between two calls, most of the time."""
TURN_S = 0.004
"""How long the event loop waits for its turn at most."""


class Waiting:
    """Stands in for pyfuse3's own `_wait_fuse_readable`, which its workers look up by name."""

    def __init__(
        self,
        by_the_loop: Callable[[], Awaitable[bool]],
        is_readable: Callable[[int], bool],
        bridge: Bridge,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`by_the_loop`: pyfuse3's own. `is_readable`: for so many microseconds."""
        self._by_the_loop = by_the_loop
        self._is_readable = is_readable
        self._bridge = bridge
        self._clock = clock
        self._turn = clock()

    async def __call__(self) -> bool:
        """Wait for a request. False: the mount ends."""
        moment = 0 if self._bridge.is_busy else MOMENT_US
        if self._clock() - self._turn < TURN_S and self._is_readable(moment):
            return True
        while await self._by_the_loop():
            self._turn = self._clock()
            # Another worker may have taken it meanwhile: to read now would block the loop.
            if self._is_readable(0):
                return True
        return False


def answer_in_a_row(bridge: Bridge) -> None:
    """Let the session that begins next wait this way, where our C module and pyfuse3 allow it."""
    is_readable = extra_handlers.is_readable()
    own: Any = getattr(pyfuse3, "_wait_fuse_readable", None)
    if is_readable is None or own is None:
        log.debug("requests are waited for by the event loop")
        return
    own = getattr(own, "own", own)
    waiting = Waiting(own, is_readable, bridge)

    async def wait() -> bool:
        return await waiting()

    wait.own = own  # type: ignore[attr-defined] # for the next mount of this process
    setattr(pyfuse3, "_wait_fuse_readable", wait)  # noqa: B010 - not in its stub
