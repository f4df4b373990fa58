"""Holes say what walking the extents says, whatever the zeros are."""

import hashlib
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from store.datastore.holes import Holes
from store.format.fixed_index import FixedIndex, FixedIndexBuilder
from store.format.index import DIGEST_SIZE, SEARCHED_AT_ONCE, find_runs
from store.names import Digest

CHUNK = 4096
ZERO = Digest(hashlib.sha256(bytes(CHUNK)).digest())
OTHER = Digest(bytes(range(32)))


def index_of(kinds: list[bool], tail: int) -> FixedIndex:
    """One chunk for each kind (True: zeros); the last is `tail` bytes short."""
    size = len(kinds) * CHUNK - tail
    body = bytearray(DIGEST_SIZE * len(kinds))
    builder = FixedIndexBuilder(body, size, CHUNK)
    for number, zero in enumerate(kinds):
        builder.set(number, ZERO if zero else OTHER)
    return FixedIndex(builder.finish(bytes(16), 0) + bytes(body))


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, CHUNK - 1))
def test_every_byte_has_its_kind(kinds: list[bool], tail: int) -> None:
    index = index_of(kinds, tail)
    holes = Holes(index.runs_of(ZERO), index)
    zeros = [
        at for at in range(index.size) if kinds[at // CHUNK] and at % (CHUNK // 2) in (0, 7, 2047)
    ]
    for offset in zeros:
        assert holes.hole_from(offset) == offset
    for number, zero in enumerate(kinds):
        start, _ = index.range(number)
        later = next((at for at in range(number, len(kinds)) if not kinds[at]), None)
        assert holes.data_from(start) == (None if later is None else later * CHUNK)
        end = next((at for at in range(number, len(kinds)) if kinds[at]), None)
        assert holes.hole_from(start) == (index.size if end is None else end * CHUNK)
        assert zero == (holes.hole_from(start) == start)
    data = sum(
        end - start for at, zero in enumerate(kinds) if not zero for start, end in [index.range(at)]
    )
    assert holes.data_size == data


@given(st.lists(st.booleans(), min_size=1, max_size=20), st.integers(0, CHUNK - 1), st.data())
def test_the_data_of_a_range(kinds: list[bool], tail: int, data: st.DataObject) -> None:
    index = index_of(kinds, tail)
    start = data.draw(st.integers(0, index.size))
    size = data.draw(st.integers(0, index.size - start))
    expected = sum(
        max(0, min(end, start + size) - max(first, start))
        for at, is_zero in enumerate(kinds)
        for first, end in [index.range(at)]
        if not is_zero
    )
    assert Holes(index.runs_of(ZERO), index).data_in(start, size) == expected


@given(
    st.lists(st.booleans(), min_size=1, max_size=60),
    st.sampled_from([(32, 0), (40, 8)]),
    st.booleans(),
)
def test_runs_are_found_where_they_are(
    kinds: list[bool], shape: tuple[int, int], tricky: bool
) -> None:
    """Also beside bytes that look like the digest but cross two entries."""
    size, at = shape
    filler = bytes(size) if not tricky else bytes([ZERO[-1]]) * size
    wanted = Digest(bytes(32)) if not tricky else Digest(bytes([ZERO[-1]]) * 32)
    entries = [
        bytes(at) + bytes(wanted) if kind else b"\x01" + filler[1:-1] + b"\x02" for kind in kinds
    ]
    body = memoryview(b"".join(entries))
    found = [*find_runs(body, size, at, wanted)]
    positions = [position for first, last in found for position in range(first, last)]
    assert positions == [number for number, kind in enumerate(kinds) if kind]
    assert all(a[1] <= b[0] for a, b in pairwise(found))


def test_runs_cross_what_is_searched_at_once() -> None:
    count = 2 * SEARCHED_AT_ONCE + 5
    body = memoryview(bytes(ZERO) * count)
    found = [*find_runs(body, DIGEST_SIZE, 0, ZERO)]
    assert [position for run in found for position in range(*run)] == [*range(count)]
    index = index_of([True] * count, 0)
    holes = Holes(index.runs_of(ZERO), index)
    assert holes.data_size == 0
    assert holes.data_from(0) is None
