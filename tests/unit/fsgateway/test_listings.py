"""What is kept of archives stays within its budget."""

from hypothesis import given
from hypothesis import strategies as st

from fsgateway.inodes import entry_inode, sibling
from fsgateway.listings import Listing, Listings, RecentEntries
from store.format.pxar.entries import Entry, EntryKind
from store.format.pxar.packed import pack, pack_all


def entry(name: bytes, offset: int = 0) -> Entry:
    return Entry(name, EntryKind.FIFO, offset, 0, b"")


def listing(size: int) -> Listing:
    return Listing(pack_all(entry(b"%d" % number) for number in range(size)))


def test_a_listing_leaves_out_what_the_kernel_cannot_take() -> None:
    names = (b"b", b"a", b"b", b"x" * 1025, b"x" * 1024)
    found = Listing(pack_all(entry(name, 10 + at) for at, name in enumerate(names)))
    assert [child.name for child in found] == [b"b", b"a", b"x" * 1024]
    assert [found.entry(at).offset for at in range(len(found))] == [10, 11, 14]
    first = found.find(b"b")
    assert first is not None
    assert first.offset == 10
    assert found.find(b"x" * 1025) is None


@given(st.lists(st.binary(min_size=1, max_size=3), max_size=40))
def test_names_and_numbers_are_found(names: list[bytes]) -> None:
    entries = [entry(name, 1000 + at) for at, name in enumerate(names)]
    found = Listing(pack_all(entries))
    shown = {name: 1000 + names.index(name) for name in names}
    assert [(child.name, child.offset) for child in found] == [*shown.items()]
    for name, offset in shown.items():
        by_name, by_offset = found.find(name), found.at(offset)
        assert by_name is not None
        assert by_offset is not None
        assert (by_name.offset, by_offset.name) == (offset, name)
    assert found.find(b"none") is found.at(1) is None


def test_entries_are_found_in_the_directories_read_last() -> None:
    kept = Listings()
    tree = entry_inode(3, 0)
    for directory in range(100):
        packed = pack(entry(b"n", 10_000 + directory))
        kept.keep(sibling(tree, 1 + directory), Listing(packed))
    found = kept.entry(sibling(tree, 10_099))
    assert found is not None
    assert found.offset == 10_099
    assert kept.entry(sibling(tree, 10_000)) is None  # long ago
    assert kept.entry(entry_inode(4, 10_099)) is None  # in another tree


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
