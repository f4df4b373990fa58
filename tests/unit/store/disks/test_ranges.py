"""Ranges against a set."""

from hypothesis import given
from hypothesis import strategies as st

from store.disks.ranges import Ranges


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12))))
def test_ranges_are_a_set(added: list[tuple[int, int]]) -> None:
    ranges, model = Ranges(), set[int]()
    for start, length in added:
        ranges.add(start, start + length)
        model |= {*range(start, start + length)}
        assert {number for number in range(60) if number in ranges} == model
        assert len(ranges) == sum(number - 1 not in model for number in model)
    ranges.clear()
    assert (len(ranges), 0 in ranges) == (0, False)
