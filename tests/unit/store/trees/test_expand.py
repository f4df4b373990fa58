import pytest

from store.errors import InvalidName
from store.trees.base import FileTree
from store.trees.expand import expand
from store.trees.paths import find_path, root_of
from tests.fakes.trees import Link, archive


@pytest.fixture
def tree() -> FileTree:
    return archive(
        {
            b"a": {b"x.conf": b"", b"y": b"", b"z": {b"deep.conf": b""}},
            b"b": {b"x.conf": b""},
            b"file": b"",
            b"link": Link(b"a"),
            b"star*": b"",
        }
    )


@pytest.mark.parametrize(
    ("glob", "paths"),
    [
        (b"*", [b"a", b"b", b"file", b"link", b"star*"]),
        (b"*/x.conf", [b"a/x.conf", b"b/x.conf", b"a/x.conf"]),
        (b"a/?", [b"a/y", b"a/z"]),
        (b"star\\*", [b"star*"]),
        (b"**/*.conf", [b"a/x.conf", b"a/z/deep.conf", b"b/x.conf"]),
        (b"a/**/deep.conf", [b"a/z/deep.conf"]),
        (b"./a/../b/*", [b"b/x.conf"]),
        (b"file/*", []),
        (b"no/*", []),
        (b"/", [b""]),
    ],
)
def test_from_the_root(tree: FileTree, glob: bytes, paths: list[bytes]) -> None:
    spots = list(expand(tree, root_of(tree), glob))
    assert [spot.path for spot in spots] == paths
    for spot in spots:
        assert find_path(tree, spot.path, follow=False).entry.offset == spot.entry.offset


def test_from_a_directory(tree: FileTree) -> None:
    start = find_path(tree, b"a")
    assert [spot.path for spot in expand(tree, start, b"[xy]*")] == [b"a/x.conf", b"a/y"]
    assert [spot.path for spot in expand(tree, start, b"/b/*")] == [b"b/x.conf"]
    assert [spot.path for spot in expand(tree, start, b"../b/*")] == [b"b/x.conf"]


def test_bad_glob(tree: FileTree) -> None:
    with pytest.raises(InvalidName):
        list(expand(tree, root_of(tree), b"[a"))
