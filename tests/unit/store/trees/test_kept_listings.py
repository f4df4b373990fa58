"""What is kept of a listing comes back as it was, or not at all."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store.format.crypt import CryptConfig
from store.format.pxar.entries import Entry, EntryKind
from store.format.pxar.packed import pack_all
from store.trees.kept_listings import ARCHIVE_BYTES, KeptListings, make_room, open_kept_listings

KEY, OTHER_KEY = CryptConfig(bytes(range(32))), CryptConfig(bytes(32))
U64 = st.integers(0, 2**64 - 1)
LISTINGS = st.lists(
    st.builds(
        Entry,
        st.binary(max_size=20),
        st.sampled_from(EntryKind),
        U64,
        U64,
        st.binary(max_size=80),
        U64,
        U64,
        st.binary(max_size=20),
        U64,
        st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    ),
    max_size=20,
).map(pack_all)


def at_once(path: Path, key: CryptConfig | None, limit: int = ARCHIVE_BYTES) -> KeptListings:
    """One that writes each directory when it is put."""
    return KeptListings(path, key, limit, group_bytes=0)


def some(name: bytes) -> bytes:
    return pack_all([Entry(name, EntryKind.FILE, 7, 9, b"m" * 56)])


@pytest.mark.parametrize("key", [None, KEY])
@given(listings=st.dictionaries(U64, LISTINGS, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_round_trip(tmp_path: Path, key: CryptConfig | None, listings: dict[int, bytes]) -> None:
    path = tmp_path / "x/listings"
    path.unlink(missing_ok=True)
    kept = at_once(path, key)
    for offset, entries in listings.items():
        assert kept.get(offset) is None
        kept.put(offset, entries)
    for each in (kept, at_once(path, key)):
        for offset, entries in listings.items():
            assert each.get(offset) == entries
            assert each.size_of(offset) > 0
        each.close()
        assert all(each.get(offset) is None for offset in listings)


@pytest.mark.parametrize("key", [None, KEY])
@given(listings=st.dictionaries(U64, LISTINGS, min_size=1, max_size=9), group=st.integers(1, 4000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_round_trip_in_groups(
    tmp_path: Path, key: CryptConfig | None, listings: dict[int, bytes], group: int
) -> None:
    """Found before they are written, while others still are not, and afterwards."""
    path = tmp_path / "x/listings"
    path.unlink(missing_ok=True)
    kept = KeptListings(path, key, group_bytes=group)
    for number, (offset, packed) in enumerate(listings.items()):
        kept.put(offset, packed)
        for known in [*listings][: number + 1]:
            assert kept.get(known) == listings[known]
            assert kept.size_of(known) > 0
    kept.close()
    again = KeptListings(path, key)
    assert {offset: again.get(offset) for offset in listings} == listings
    assert again.get(max(listings) + 1) is None


def test_no_name_is_there_in_the_clear(tmp_path: Path) -> None:
    for key, is_clear in ((None, True), (KEY, False)):
        path = tmp_path / str(is_clear)
        at_once(path, key).put(1, some(b"a-secret-name"))
        assert (b"a-secret-name" in path.read_bytes()) == is_clear
        assert path.stat().st_mode & 0o777 == 0o600
    assert at_once(path, OTHER_KEY).get(1) is None
    assert at_once(path, None).get(1) is None


def test_two_processes_keep_the_same(tmp_path: Path) -> None:
    first, second = (at_once(tmp_path / "x", KEY) for _ in range(2))
    for number in range(20):
        (first, second)[number % 2].put(number, some(b"%d" % number))
    third = at_once(tmp_path / "x", KEY)
    for number in range(20):
        assert third.get(number) == some(b"%d" % number)
        assert (first, second)[number % 2].get(number) == some(b"%d" % number)


def test_a_file_that_was_cut_is_started_anew(tmp_path: Path) -> None:
    path = tmp_path / "x"
    at_once(path, KEY).put(1, some(b"a"))
    os.truncate(path, path.stat().st_size - 1)
    kept = at_once(path, KEY)
    assert kept.get(1) is None
    kept.put(1, some(b"b"))
    assert at_once(path, KEY).get(1) == some(b"b")


def test_any_byte_may_be_wrong(tmp_path: Path) -> None:
    path = tmp_path / "x"
    at_once(path, KEY).put(1, some(b"a"))
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes((whole[position] ^ 1,)) + whole[position + 1 :])
        assert at_once(path, KEY).get(1) is None


def test_deleted_at_any_time(tmp_path: Path) -> None:
    path = tmp_path / "x"
    kept = at_once(path, KEY)
    kept.put(1, some(b"a"))
    path.unlink()
    kept.put(2, some(b"b"))
    assert kept.get(1) == some(b"a")
    assert at_once(path, KEY).get(1) is None


def test_limit_and_budget(tmp_path: Path) -> None:
    kept = at_once(tmp_path / "limited", None, limit=2000)
    for number in range(100):
        kept.put(number, some(os.urandom(100)))
    assert (tmp_path / "limited").stat().st_size <= 2000
    assert kept.get(0) is not None
    assert kept.get(99) is None
    for number in range(5):
        path = tmp_path / f"old-{number}"
        path.write_bytes(bytes(1000))
        os.utime(path, (number, number))
    make_room(tmp_path / "limited", 4000)
    assert sorted(os.listdir(tmp_path)) == ["limited", "old-3", "old-4"]


def test_nowhere_to_keep_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    kept = open_kept_listings(bytes(32), KEY)
    assert kept is not None
    kept.put(1, some(b"a"))
    assert kept.get(1) is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = open_kept_listings(bytes(32), KEY)
    assert kept is not None
    kept.put(1, some(b"a"))
    assert len(os.listdir(tmp_path / "vaultway/listings")) == 1


def test_what_somebody_else_put_there_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With sudo the cache may be in the home of who called it."""
    victim, link = tmp_path / "victim", tmp_path / "x" / "link"
    link.parent.mkdir()
    link.symlink_to(victim)
    kept = KeptListings(link, None)
    kept.put(7, some(b"name"))
    assert (kept.get(7), victim.exists()) == (None, False)
    theirs = KeptListings(tmp_path / "x" / "theirs", None)
    theirs.put(7, some(b"name"))
    monkeypatch.setattr("store.trees.kept_listings.os.geteuid", lambda: os.getuid() + 1)
    assert KeptListings(tmp_path / "x" / "theirs", None).get(7) is None
