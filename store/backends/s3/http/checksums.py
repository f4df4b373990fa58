"""The MD5 of what came, of several threads' bodies in one pass.

Who has received something waits for a turn at the processors. Whoever gets one first hashes what
the others have received meanwhile along with its own: the fewer processors, the more at once.
"""

import threading
from collections import deque
from contextlib import suppress

from store.backends.turns import Turns
from store.format.buffer import Buffer
from store.format.md5 import md5_many

AT_ONCE = 8
"""More in one pass gain little, and somebody waits for them."""


class _Body:
    __slots__ = ("data", "done", "is_taken", "md5")

    def __init__(self, data: Buffer) -> None:
        self.data, self.md5 = data, b""
        self.is_taken = False
        self.done = threading.Event()


class Checksums:
    """The bodies that threads have received, and their MD5. Thread-safe."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._waiting: deque[_Body] = deque()

    def md5(self, data: Buffer) -> bytes:
        """The MD5 of one body, whoever hashes it."""
        body = _Body(data)
        self._waiting.append(body)
        with self._turns.turn():
            while not body.is_taken:
                _hash(self._take())
        body.done.wait()
        return body.md5 or md5_many([data])[0]  # an interrupt can have left it undone

    def _take(self) -> list[_Body]:
        """Those that have waited longest: any thread may take any of them, once."""
        bodies: list[_Body] = []
        with suppress(IndexError):  # no more
            while len(bodies) < AT_ONCE:
                bodies.append(self._waiting.popleft())
                bodies[-1].is_taken = True
        return bodies


def _hash(bodies: list[_Body]) -> None:
    try:
        for body, md5 in zip(bodies, md5_many([one.data for one in bodies]), strict=True):
            body.md5 = md5
    finally:
        for body in bodies:
            body.done.set()
