"""Concurrent programs run step by step, in one chosen order, or in every order there is."""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence

Choose = Callable[[int], int]
STUCK_S = 30


def every_schedule(run: Callable[[Choose], None]) -> int:
    """Call `run(choose)` once for each series of answers `choose(n)` (0 to n-1) can give it.

    `run` has to do the same when it is given the same answers. Returns how often it was called.
    """
    path: list[list[int]] = []  # what was chosen, of how many
    runs = 0
    while True:

        def choose(options: int, steps: Iterator[int] = itertools.count()) -> int:  # noqa: B008
            step = next(steps)
            if step == len(path):
                path.append([0, options])
            assert path[step][1] == options, "the run is not deterministic"
            return path[step][0]

        run(choose)
        runs += 1
        while path and path[-1][0] == path[-1][1] - 1:
            path.pop()
        if not path:
            return runs
        path[-1][0] += 1


class Party:
    """A program in a thread of its own that stops at each `gate` until it is told to go on."""

    def __init__(self, name: str, program: Callable[["Party"], None]) -> None:
        self.name = name
        self.is_done = self.is_asleep = False
        self.error: BaseException | None = None
        self._program = program
        self._go, self._stopped = threading.Lock(), threading.Lock()  # free: the other may go on
        self._go.acquire()
        self._stopped.acquire()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        try:
            self._program(self)
        except BaseException as error:  # noqa: BLE001 - for `step` to raise
            self.error = error
        self.is_done = True
        self._stopped.release()

    def gate(self, *, asleep: bool = False) -> None:
        """Called by the program: wait for the next `step`."""
        self.is_asleep = asleep
        self._stopped.release()
        self._go.acquire()

    def start(self) -> None:
        """Run to the first gate."""
        self._thread.start()
        self._wait()

    def step(self) -> None:
        """Let it run to its next gate or its end. Raises what it raised."""
        self._go.release()
        self._wait()

    def _wait(self) -> None:
        assert self._stopped.acquire(timeout=STUCK_S), f"{self.name} is stuck"
        if self.error is not None:
            raise self.error


class Moment:
    """What happens once, at some time between the parties' steps."""

    is_done = is_asleep = False

    def __init__(self, happen: Callable[[], None]) -> None:
        self._happen = happen

    def start(self) -> None:
        """Nothing comes before it."""

    def step(self) -> None:
        self._happen()
        self.is_done = True


def play(
    parties: Sequence[Party | Moment],
    choose: Choose,
    after_each: Callable[[], None],
    *,
    naps_are_long: bool,
) -> None:
    """Run all to their ends. `naps_are_long`: who sleeps waits until all that are awake ended."""
    for party in parties:
        party.start()
    while running := [party for party in parties if not party.is_done]:
        awake = [party for party in running if not (naps_are_long and party.is_asleep)] or running
        awake[choose(len(awake)) if len(awake) > 1 else 0].step()
        after_each()
