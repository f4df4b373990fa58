"""Time that passes only when somebody waits."""

import threading


class FakeClock:
    """`clock` and `clock.wait` in place of time.monotonic and threading.Event.wait.

    `waits` are the seconds of each wait. With `during`, that is called in each wait (something
    happens meanwhile).
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []
        self.during = lambda: None

    def __call__(self) -> float:
        return self.now

    def wait(self, event: threading.Event, seconds: float) -> bool:
        self.waits.append(seconds)
        self.now += seconds
        self.during()
        return event.is_set()
