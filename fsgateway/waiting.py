"""How the mount waits for its next request: without the scheduler while nothing else is going on.

A pass through trio's scheduler costs 15 us, and pyfuse3 makes two for each request: more than most
answers take. While no thread works for the mount, who asks is a program that waits for each answer
before it asks on, and the next request is microseconds away: so look for it right here, for a
millisecond at most. pyfuse3 takes what it needs of trio from one attribute, which its own asyncio
mode replaces, too.
"""

import select
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyfuse3
import trio

from fsgateway.extra_handlers import directly_taken

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

# After so many requests in a row the scheduler has its turn, whatever is going on.
TURNS = 32
WAIT_MS = 1


class Activity:
    """How many things are going on that the scheduler has to be there for."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def one_more(self) -> "Iterator[None]":
        """Until the block is left."""
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1

    def starting(self, start_soon: "Callable[..., object]") -> "Callable[..., None]":
        """A nursery's `start_soon` whose tasks count from now on: else they would begin late.

        For whoever starts one goes on to wait for the next request, without the scheduler.
        """

        def start(function: "Callable[..., Awaitable[object]]", *arguments: object) -> None:
            self.count += 1
            start_soon(self._counted, function, *arguments)

        return start

    async def _counted(
        self, function: "Callable[..., Awaitable[object]]", *arguments: object
    ) -> None:
        try:
            await function(*arguments)
        finally:
            self.count -= 1


class TurnLock:
    """A lock that costs nothing while it is free; who waits for it is told when it was given back.

    Unlike trio's it may be taken again before that one runs, who then waits on.
    """

    def __init__(self) -> None:
        self._is_held = False
        self._is_called = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._is_held:
            try:
                await self._waiting.park()
            finally:
                self._is_called = False
        self._is_held = True

    async def __aexit__(self, *_: object) -> None:
        self._is_held = False
        if self._waiting and not self._is_called:
            self._is_called = True
            self._waiting.unpark()


class _LowLevel:
    """trio.lowlevel, but for the wait."""

    def __init__(self, activity: Activity) -> None:
        self._activity = activity
        self._turns = 0
        self._poll: select.poll | None = None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever trio has there
        return getattr(trio.lowlevel, name)

    async def wait_readable(self, descriptor: int) -> None:
        self._turns -= directly_taken()
        if self._turns > 0 and not self._activity.count:
            self._turns -= 1
            if self._poll is None:
                self._poll = select.poll()
                self._poll.register(descriptor, select.POLLIN)
            if self._poll.poll(WAIT_MS):
                return
        self._turns = TURNS
        await trio.lowlevel.wait_readable(descriptor)


class _Trio:
    """trio as pyfuse3 is to see it."""

    Lock = TurnLock

    def __init__(self, activity: Activity) -> None:
        self.lowlevel = _LowLevel(activity)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever trio has there
        return getattr(trio, name)


@contextmanager
def short_waits(activity: Activity) -> "Iterator[None]":
    """Let pyfuse3 wait this way; around its main()."""
    before = vars(pyfuse3)["trio"]
    setattr(pyfuse3, "trio", _Trio(activity))  # noqa: B010 - its stubs do not have it
    try:
        yield
    finally:
        setattr(pyfuse3, "trio", before)  # noqa: B010 - as above
