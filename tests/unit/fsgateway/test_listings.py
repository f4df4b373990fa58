"""What is kept of archives stays within its budget."""

from hypothesis import given
from hypothesis import strategies as st

from fsgateway.listings import Listing, Listings, RecentEntries
from store.format.pxar.entries import Entry, EntryKind


def entry(name: bytes, offset: int = 0) -> Entry:
    return Entry(name, EntryKind.FIFO, offset, 0, b"")


def listing(size: int) -> Listing:
    found = Listing()
    for number in range(size):
        found.add(b"%d" % number, entry(b"%d" % number))
    return found


def test_a_listing_leaves_out_what_the_kernel_cannot_take() -> None:
    found = Listing()
    for name in (b"b", b"a", b"b", b"x" * 1025, b"x" * 1024):
        found.add(name, entry(name))
    assert found.names == [b"b", b"a", b"x" * 1024]
    assert list(found.by_name) == found.names


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), max_size=60))
def test_listings_keep_their_budget(steps: list[tuple[int, int]]) -> None:
    kept = Listings(budget=50)
    for inode, size in steps:
        if kept.get(inode) is None:
            kept.keep(inode, listing(size))
            assert kept.get(inode) is not None
        assert len(kept) <= 50


def test_the_oldest_listing_goes_first() -> None:
    kept = Listings(budget=30)
    kept.keep(1, listing(10))
    kept.keep(2, listing(10))
    assert kept.get(1)
    kept.keep(3, listing(10))
    assert kept.get(2) is None
    assert kept.get(1)


def test_one_larger_than_the_budget_is_not_kept() -> None:
    kept = Listings(budget=30)
    kept.keep(1, listing(10))
    kept.keep(2, listing(31))
    assert kept.get(2) is None
    assert kept.get(1)


def test_recent_entries_stay_while_they_are_met() -> None:
    recent = RecentEntries(limit=10)
    recent.keep(0, entry(b"0"))
    for number in range(1, 100):
        assert recent.get(0)
        recent.keep(number, entry(b"n"))
        assert len(recent) <= 21
    assert recent.get(50) is None
    assert recent.get(99)


def test_many_recent_entries_at_once() -> None:
    recent = RecentEntries(limit=10)
    for first in range(0, 200, 20):
        told = [(number, entry(b"n", number)) for number in range(first, first + 20)]
        recent.update(told)
        assert all(recent.get(number) is found for number, found in told)
        assert len(recent) <= 50
    assert recent.get(0) is None
