"""For how long a failing call is repeated, and how often it was tried."""

import math
import threading
from dataclasses import dataclass

from store.backends.patience import Patience

CLEAN_UP_FOR_S = 1.0


class Credit:
    """For how many seconds a storage's calls are repeated: its answers earn them.

    Threads share it without a lock: one value each.
    """

    def __init__(self, full_s: float, first_s: float) -> None:
        """`first_s` until it has answered once."""
        self.seconds = first_s
        self._full_s, self._answered = full_s, -math.inf

    def answered(self, now: float) -> None:
        self._answered, self.seconds = now, self._full_s

    def given_up(self, began: float) -> None:
        """Take all of it, unless others were answered meanwhile: then the object is the trouble."""
        if self._answered <= began:
            self.seconds = 0.0

    def interrupted(self) -> None:
        """Leave as much as who cleans up may wait."""
        self.seconds = min(self.seconds, CLEAN_UP_FOR_S)


@dataclass(slots=True)
class Attempts:
    """Those at one call. After a failed one nobody knows whether it was done: the call is in doubt.

    `ending` is set when the call is to be given up; `caller` is what it is part of.
    """

    began: float
    caller: Patience
    credit: Credit
    ending: threading.Event
    failed: int = 0

    @property
    def patience_s(self) -> float:
        """For how long the call is repeated, as things stand."""
        return min(self.credit.seconds, self.caller.seconds)
