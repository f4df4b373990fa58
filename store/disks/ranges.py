"""Which of very many things are in a set, told by ranges: for few and long ones."""

from bisect import bisect_left, bisect_right


class Ranges:
    """Numbers, kept as ranges that neither overlap nor touch. Not thread-safe."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        """How many ranges there are."""
        return len(self._starts)

    def __contains__(self, number: int) -> bool:
        index = bisect_right(self._starts, number) - 1
        return index >= 0 and number < self._ends[index]

    def add(self, start: int, end: int) -> None:
        """All from `start` up to, and without, `end`."""
        first = bisect_left(self._ends, start)
        after = bisect_right(self._starts, end)
        if first < after:  # those which it overlaps or touches become part of it
            start, end = min(start, self._starts[first]), max(end, self._ends[after - 1])
        self._starts[first:after] = [start]
        self._ends[first:after] = [end]

    def clear(self) -> None:
        """None any more."""
        self._starts.clear()
        self._ends.clear()
