"""Inode numbers: the same for the same thing, another for another, and tables that shrink again."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsgateway import inodes
from fsgateway.inodes import EntryTable, NodeTable, entry_inode, is_entry, sibling


@dataclass(frozen=True)
class Thing:
    path: tuple[str, ...]


ROOT = Thing(())
names = st.lists(st.text("ab", min_size=1, max_size=2), min_size=1, max_size=3).map(tuple)


def test_nodes_have_one_number_whether_known_or_not() -> None:
    table = NodeTable(ROOT)
    thing = Thing(("host", "web01"))
    number = table.number(thing)
    table.remember(number, thing)
    assert table.number(Thing(("host", "web01"))) == number
    table.forget(number, 1)
    assert table.number(thing) == number
    assert not is_entry(number)
    assert number > 1


@given(st.lists(names, unique=True, max_size=20), st.data())
def test_the_table_holds_what_the_kernel_holds(
    paths: list[tuple[str, ...]], data: st.DataObject
) -> None:
    table = NodeTable(ROOT)
    known: dict[int, int] = {}
    for path in data.draw(st.lists(st.sampled_from(paths), max_size=50)) if paths else []:
        number = table.number(Thing(path))
        table.remember(number, Thing(path))
        known[number] = known.get(number, 0) + 1
        assert table.get(number).path == path
        if data.draw(st.booleans()):
            lookups = data.draw(st.integers(1, known[number]))
            table.forget(number, lookups)
            known[number] -= lookups
    alive = {number for number, lookups in known.items() if lookups}
    assert len(table) == len(alive) + 1
    for number in known.keys() - alive:
        with pytest.raises(OSError, match="forgotten"):
            table.get(number)


def test_equal_hashes_get_different_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Constant:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def digest(self) -> bytes:
            return bytes(8)

    monkeypatch.setattr(inodes, "blake2b", Constant)
    table = NodeTable(ROOT)
    first, second = Thing(("a",)), Thing(("b",))
    table.remember(table.number(first), first)
    table.remember(table.number(second), second)
    assert len({table.number(first), table.number(second), 1}) == 3
    assert table.get(table.number(second)) is second


def test_the_root_is_never_forgotten() -> None:
    table = NodeTable(ROOT)
    table.forget(1, 100)
    assert table.get(1) is ROOT


@given(st.integers(0, inodes.MAX_ARCHIVES - 1), st.integers(0, inodes.MAX_OFFSET - 1))
def test_an_entry_s_number_says_where_it_is(archive: int, offset: int) -> None:
    number = entry_inode(archive, offset)
    assert is_entry(number)
    assert number < 2**64
    assert sibling(number, 77) == entry_inode(archive, 77)
    assert number & (inodes.MAX_OFFSET - 1) == offset


def test_offsets_past_the_number_s_room() -> None:
    with pytest.raises(OSError, match="no inode number"):
        entry_inode(0, inodes.MAX_OFFSET)


def test_directories_keep_their_end_as_long_as_they_are_known() -> None:
    table: EntryTable[str] = EntryTable()
    number = table.archive_number(("a",), lambda: "archive")
    directory, file = entry_inode(number, 100), entry_inode(number, 200)
    for _ in range(3):
        table.remember(directory, 5000)
        table.remember(file, None)
    assert table.directory_end(directory) == 5000
    assert table.archive(file) == ("archive", 200)
    assert len(table) == 1
    table.forget(directory, 2)
    assert table.directory_end(directory) == 5000
    table.forget(directory, 1)
    assert table.directory_end(directory) == 0
    assert len(table) == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=60))
def test_directories_are_known_until_all_is_forgotten(steps: list[tuple[int, int]]) -> None:
    """Told once for (n, 0), forgotten m times for (n, m)."""
    table: EntryTable[str] = EntryTable()
    number, told = table.archive_number(("a",), lambda: "archive"), dict.fromkeys(range(4), 0)
    for directory, forgotten in steps:
        inode = entry_inode(number, 100 + directory)
        if forgotten:
            table.forget(inode, forgotten)
            told[directory] = max(0, told[directory] - forgotten)
        else:
            table.remember_all(inode, 1, [(inode, 5000 + directory)])
            told[directory] += 1
        for each, count in told.items():
            end = table.directory_end(entry_inode(number, 100 + each))
            assert end == (5000 + each if count else 0)
        assert len(table) == sum(count > 0 for count in told.values())


def test_archive_numbers_are_used_again_only_when_they_run_out() -> None:
    reused: list[bool] = []
    table: EntryTable[str] = EntryTable(2, lambda: reused.append(True))
    first = table.archive_number(("a",), lambda: "a")
    second = table.archive_number(("b",), lambda: "b")
    assert table.archive_number(("a",), lambda: "never") == first
    table.remember(entry_inode(first, 1), None)
    assert not reused
    third = table.archive_number(("c",), lambda: "c")
    assert reused == [True]
    assert third == second
    assert table.archive(entry_inode(third, 0))[0] == "c"
    table.remember(entry_inode(third, 1), None)
    with pytest.raises(OSError, match="archives"):
        table.archive_number(("d",), lambda: "d")


def test_an_unknown_archive_is_stale() -> None:
    table: EntryTable[str] = EntryTable()
    with pytest.raises(OSError, match="forgotten"):
        table.archive(entry_inode(3, 1))
