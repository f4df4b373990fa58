"""A head's thread that moves content early. It is there only while there is something to do."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from store.errors import StoreError

if TYPE_CHECKING:
    from store.heads.head import OpenHead

log = logging.getLogger(__name__)

AGAIN_S = 30.0
"""How long to let it be after it was of no use, or failed."""


class Mover:
    """Moves one head's content when it is told to. Thread-safe."""

    def __init__(self, head: "OpenHead") -> None:
        self._head = head
        self._moving = threading.Lock()
        self._stops: list[None] = []  # one for each who wants that
        self._not_before = 0.0

    def begin(self) -> bool:
        """Start, if nobody is at it; False: it would be of no use now."""
        if self._moving.locked():
            return not self._stops
        if self._stops or time.monotonic() < self._not_before:
            return False
        if self._moving.acquire(blocking=False):
            threading.Thread(target=self._move, name="move early", daemon=True).start()
        return True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let nothing be moved; what is under way ends, perhaps in vain."""
        self._stops.append(None)
        try:
            with self._moving:
                yield
        finally:
            self._stops.pop()

    def end(self) -> None:
        """Let nothing be moved any more."""
        self._stops.append(None)
        with self._moving:
            pass

    def _move(self) -> None:
        from store.heads.moving.run import Stopped, move_early  # it stands on the head's module

        def check() -> None:
            if self._stops:
                raise Stopped

        useful = 0
        try:
            useful = move_early(self._head, check)
        except Stopped:
            log.debug("%s: not moved: it is being sealed or closed", self._head.group)
        except StoreError as error:
            log.warning(
                "%s: its journal is filling up, and can't be moved: %s", self._head.group, error
            )
        finally:
            journal = self._head.journal
            if not useful and journal.segments.total_bytes > journal.early_bytes:
                self._not_before = time.monotonic() + AGAIN_S
            self._moving.release()
