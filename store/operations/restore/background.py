"""Large files get their content on a thread of their own, so that small ones are made meanwhile."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

QUEUED_PIECES = 4
"""Each is at most a chunk, mostly 4 MiB: this bounds what waits for the disk."""

Fill = Callable[[Iterator[memoryview]], None]
END, ABANDON, CLOSE = object(), object(), object()


class Abandoned(Exception):
    """The rest of a file's content will not come."""


class BackgroundFiller:
    """Runs `fill(pieces)` for one file after the other, in the order they come.

    The pieces are made on the caller's thread, a few ahead.
    """

    def __init__(self) -> None:
        self._queue: queue.Queue[object] = queue.Queue(QUEUED_PIECES)
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def fill(self, fill: Fill, content: Iterable[memoryview]) -> None:
        """Have `fill` called with the pieces of `content`, which is used up here.

        When `content` raises, or this is interrupted, `fill` gets Abandoned instead of the rest.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="large files")
            self._thread.start()
        try:
            self._queue.put(fill)
            for piece in content:
                if self._error is not None:
                    break
                self._queue.put(piece)
            self._queue.put(END if self._error is None else ABANDON)
        except BaseException:
            self._queue.put(ABANDON)
            raise

    def finish(self) -> None:
        """Wait until every file is complete. Raises what a `fill` raised. May be used again."""
        self.close()
        self.check()

    def close(self) -> None:
        """End the thread, after what was handed over."""
        if self._thread is not None:
            self._queue.put(CLOSE)
            self._thread.join()
            self._thread = None

    def check(self) -> None:
        """Raise what a `fill` raised so far."""
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (item := self._queue.get()) is not CLOSE:
            if not callable(item):
                continue  # an interrupted hand-over ended twice
            pieces = self._pieces()
            try:
                item(pieces)
            except Exception as error:  # noqa: BLE001 - it is for the caller's thread
                self._error = self._error or error
            with suppress(Abandoned):
                deque(pieces, maxlen=0)  # what a failed `fill` left over

    def _pieces(self) -> Iterator[memoryview]:
        while isinstance(item := self._queue.get(), memoryview):
            yield item
        if item is not END:
            raise Abandoned
