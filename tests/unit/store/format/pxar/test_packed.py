"""Packed entries come back as they were, and C finds in them what Python finds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.errors import FormatError
from store.format.pxar import packed as module
from store.format.pxar.entries import Entry, EntryKind
from store.format.pxar.packed import (
    RECORD,
    index,
    index_slowly,
    name_at,
    offset_at,
    pack,
    pack_all,
    unpack,
    unpack_all,
)

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
ENTRIES = st.lists(
    st.builds(
        Entry,
        st.binary(max_size=6),
        st.sampled_from(EntryKind),
        U64,
        U64,
        st.binary(max_size=80),
        U64,
        U64,
        st.binary(max_size=20),
        U64,
        st.tuples(U64, U64),
        U32,
    ),
    max_size=12,
)


def facts(entry: Entry) -> tuple[object, ...]:
    return tuple(getattr(entry, name) for name in Entry.__slots__ if name != "_metadata")


@given(ENTRIES)
def test_round_trip(entries: list[Entry]) -> None:
    packed = pack_all(entries)
    assert [*map(facts, unpack_all(packed))] == [*map(facts, entries)]
    found = index(packed)
    names = [entry.name for entry in entries]
    assert [name_at(packed, start) for start in found.starts] == names
    assert [offset_at(packed, start) for start in found.starts] == [e.offset for e in entries]
    assert found.ascends == (all(names) and names == sorted(set(names)))
    assert found.has_links == any(entry.kind is EntryKind.HARDLINK for entry in entries)


@given(ENTRIES, st.integers(0, 6), st.data())
def test_c_finds_the_same(entries: list[Entry], longest: int, data: st.DataObject) -> None:
    packed = pack_all(entries)
    cut = data.draw(st.integers(0, len(packed)))
    place = data.draw(st.integers(0, max(0, len(packed) - 1)))
    damaged = packed[:place] + data.draw(st.binary(min_size=1, max_size=9)) + packed[place + 1 :]
    for each in (packed, packed[:cut], damaged):
        assert module._index(each, longest) == index_slowly(each, longest)


def test_what_is_no_listing() -> None:
    packed = pack(Entry(b"name", EntryKind.FILE, 1, 2, b"m" * 56))
    for wrong in (packed[:-1], packed + b"x", b"\x08" + packed[1:]):
        with pytest.raises(FormatError, match="damaged"):
            index(wrong)
    assert index(b"") == (module.array("Q"), True, False)


def test_another_name() -> None:
    entry = Entry(b"target", EntryKind.FILE, 1, 2, b"m" * 56, links=3)
    found = unpack(pack(entry, b"link"), 0)
    assert (found.name, found.links, found.raw_metadata) == (b"link", 3, b"m" * 56)


def test_what_has_no_room() -> None:
    with pytest.raises(FormatError, match="does not fit"):
        pack(Entry(b"x" * 0x10000, EntryKind.FILE, 1, 2, b""))
    assert RECORD.size == 69  # as the C modules have it
