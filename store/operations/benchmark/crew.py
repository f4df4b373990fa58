"""Threads that do one thing again and again, for a while: how fast was it?"""

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import count


def _nothing() -> None:
    """Has nothing to do."""


@dataclass(frozen=True)
class Crew:
    """Threads that do one thing again and again until their time is up.

    Attributes:
        seconds: until no new call is made.
        most: bytes after which none is made, either.
        give_up: makes the calls that are under way end soon, when one failed or an interrupt came.
    """

    seconds: float
    most: int = sys.maxsize
    give_up: Callable[[], None] = _nothing

    def run(
        self, threads: int, work: Callable[[int], int], finish: Callable[[], None] = _nothing
    ) -> float:
        """Bytes a second; `work` takes the number of its call and returns the bytes it did.

        The calls under way at the end count, and so does `finish`. Raises what a call raised.
        """
        numbers, stop, done = count(), threading.Event(), [0] * threads
        began = time.perf_counter()

        def repeat(thread: int) -> None:
            while not stop.is_set():
                done[thread] += work(next(numbers))
                if time.perf_counter() - began >= self.seconds or sum(done) >= self.most:
                    break

        with ThreadPoolExecutor(threads, "benchmark") as pool:
            try:
                for future in as_completed([pool.submit(repeat, n) for n in range(threads)]):
                    future.result()
            except BaseException:
                stop.set()
                self.give_up()
                raise
        finish()
        return sum(done) / (time.perf_counter() - began)
