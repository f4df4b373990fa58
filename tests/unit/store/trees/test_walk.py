from collections.abc import Iterator

import pytest

from store.errors import FormatError, StoreError
from store.format.pxar.entries import Entry, EntryKind
from store.trees import walk
from store.trees.base import FileTree
from store.trees.walk import Walk
from tests.fakes.trees import File, GuestTree, archive


def paths(tree: FileTree, **options: object) -> list[bytes]:
    below = Walk(tree, **options).below(tree.root())  # type: ignore[arg-type]
    return [prefix + entry.name for prefix, entry in below]


@pytest.mark.parametrize("split", [False, True], ids=["v1", "split"])
def test_depth_first_in_the_order_of_the_archive(split: bool) -> None:
    tree = archive(
        {b"a": {b"b": {b"c": b"1"}, b"d": {}}, b"e": b"2", b"f": {b"g": b""}}, split=split
    )
    assert paths(tree) == [b"a", b"a/b", b"a/b/c", b"a/d", b"e", b"f", b"f/g"]


def test_begins_anywhere() -> None:
    tree = archive({b"a": {b"b": {b"c": b"1"}}, b"z": b""})
    below = Walk(tree).below(tree.resolve(b"a"), b"a/")
    assert [prefix + entry.name for prefix, entry in below] == [b"a/b", b"a/b/c"]


def test_enters_only_what_it_may() -> None:
    tree = archive({b"a": {b"b": {b"c": b"1"}}, b"d": {b"e": b""}})
    assert paths(tree, enters=lambda path: path != b"a/b") == [b"a", b"a/b", b"d", b"d/e"]


def test_deeper_than_it_keeps_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A level that was closed goes on behind the child that we come back from."""
    monkeypatch.setattr(walk, "OPEN_LEVELS", 2)
    nodes: dict[bytes, object] = {b"m": b""}
    for _ in range(20):
        nodes = {b"a": b"", b"d": nodes, b"z": {b"x": b""}}
    found = paths(archive(nodes))
    assert len(found) == len(set(found)) == 20 * 4 + 1
    assert found[-1] == b"z/x"


def test_a_damaged_directory_is_reported_and_left_out() -> None:
    tree = GuestTree({b"a": {b"bad": {b"x": File()}, b"y": File()}}, damaged=frozenset({b"bad"}))
    problems: list[tuple[bytes, str]] = []

    def report(path: bytes, error: StoreError) -> None:
        problems.append((path, str(error)))

    assert paths(tree, on_error=report) == [b"a", b"a/bad", b"a/y"]
    assert problems == [(b"a/bad", "a directory's block has a wrong checksum")]
    with pytest.raises(StoreError, match="wrong checksum"):
        paths(tree)


def test_a_directory_in_itself_ends_somewhere() -> None:
    tree = GuestTree({b"a": {b"b": File()}}, loop=b"again")
    problems: list[bytes] = []
    found = paths(tree, on_error=lambda path, _error: problems.append(path))
    assert found == [b"a", b"a/b", b"a/again"]
    assert problems == [b"a/again"]


class Endless:
    """A directory in a directory in a directory, each another one."""

    def root(self) -> Entry:
        return self._directory(1)

    def iterate(self, directory: Entry) -> Iterator[Entry]:
        yield self._directory(directory.offset + 1)

    @staticmethod
    def _directory(number: int) -> Entry:
        return Entry(b"n" * 255 if number > 1 else b"", EntryKind.DIRECTORY, number, 0, b"")


def test_endless_depth_is_an_error() -> None:
    found, problems = 0, []
    tree: FileTree = Endless()  # type: ignore[assignment]
    walking = Walk(tree, lambda _path, error: problems.append(str(error)))
    for _ in walking.below(tree.root()):
        found += 1
    assert found <= walk.MAX_PATH_LENGTH // 256 + 2
    assert len(problems) == 1
    with pytest.raises(FormatError, match="65536 bytes"):
        paths(tree)
