from typing import Any

import pytest

from store.errors import InvalidName
from store.trees.base import FileTree
from store.trees.matching import Query, SizeTest
from store.trees.paths import followed
from store.trees.walk import Walk
from tests.fakes.trees import Fifo, File, Hard, Link, archive

NODES = {
    b"big": File(bytes(2000), mtime_s=100),
    b"dir": {b"A.TXT": File(b"x" * 10, mtime_s=200), b"a.txt": File(b"", mtime_s=300)},
    b"fifo": Fifo(),
    b"hard": Hard(b"big"),
    b"link": Link(b"somewhere"),
    b"\xc3\x84.txt": File(b"1", mtime_s=400),
}


@pytest.fixture
def tree() -> FileTree:
    return archive(NODES)


def found(tree: FileTree, **options: Any) -> list[bytes]:
    query = Query(**options)
    test = query.test(lambda entry: followed(tree, entry))
    below = Walk(tree, enters=query.enters()).below(tree.root())
    return [prefix + entry.name for prefix, entry in below if test(prefix, entry)]


def sizes(*texts: str) -> list[SizeTest]:
    return [SizeTest.parse(text) for text in texts]


def test_everything(tree: FileTree) -> None:
    assert len(found(tree)) == 8


def test_names(tree: FileTree) -> None:
    assert found(tree, names=["*.txt"]) == [b"dir/a.txt", b"\xc3\x84.txt"]
    assert found(tree, names=["*.txt", "b?g"]) == [b"big", b"dir/a.txt", b"\xc3\x84.txt"]
    assert found(tree, inames=["A.txt"]) == [b"dir/A.TXT", b"dir/a.txt"]
    assert found(tree, inames=["ä.TXT"], names=["fifo"]) == [b"fifo", b"\xc3\x84.txt"]
    assert found(tree, names=["dir/*"]) == []


def test_paths(tree: FileTree) -> None:
    assert found(tree, paths=["/dir/*"]) == [b"dir/A.TXT", b"dir/a.txt"]
    assert found(tree, paths=["/*.txt"]) == [b"\xc3\x84.txt"]
    assert found(tree, paths=["**/a.txt", "/big"]) == [b"big", b"dir/a.txt"]
    assert found(tree, paths=["a.txt"]) == [b"dir/a.txt"]
    assert found(tree, paths=["/dir/"]) == [b"dir"]


def test_paths_tell_where_not_to_look() -> None:
    enters = Query(paths=["/etc/ssh/*", "/var/**"]).enters()
    assert enters is not None
    assert [enters(path) for path in (b"etc", b"etc/ssh", b"etc/x", b"usr", b"var/a/b")] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert Query(paths=["/etc/*", "x"]).enters() is None


def test_kinds(tree: FileTree) -> None:
    assert found(tree, kinds="d") == [b"dir"]
    assert found(tree, kinds="pl") == [b"fifo", b"link"]
    assert found(tree, kinds="f", names=["[bh]*"]) == [b"big", b"hard"]
    with pytest.raises(InvalidName, match="use f, d"):
        found(tree, kinds="x")


def test_sizes(tree: FileTree) -> None:
    """A hard link has its file's; what has none never matches."""
    assert found(tree, sizes=sizes("+1k")) == [b"big", b"hard"]
    assert found(tree, sizes=sizes("+9c", "-2k")) == [b"big", b"dir/A.TXT", b"hard"]
    assert found(tree, sizes=sizes("9")) == [b"link"]
    assert found(tree, sizes=sizes("0")) == [b"dir/a.txt"]


def test_times(tree: FileTree) -> None:
    assert found(tree, newer=200, older=401, kinds="f") == [
        b"dir/A.TXT",
        b"dir/a.txt",
        b"\xc3\x84.txt",
    ]
    assert found(tree, older=101) == [b"big", b"hard"]


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("+1M", (1 << 20) + 1, 1 << 64),
        ("-1M", 0, (1 << 20) - 1),
        ("10KiB", 10240, 10240),
        ("2b", 1024, 1024),
        ("-0", 0, -1),
    ],
)
def test_size_texts(text: str, least: int, most: int) -> None:
    assert SizeTest.parse(text) == SizeTest(least, most)


@pytest.mark.parametrize("text", ["", "M", "+", "1X", "1.5M", "--1", "9" * 30, "\u0661"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(InvalidName, match="write it as"):
        SizeTest.parse(text)


@pytest.mark.parametrize("glob", ["", "[a", "a\\"])
def test_bad_globs(glob: str) -> None:
    for option in ({"names": [glob]}, {"inames": [glob]}, {"paths": ["/x", glob]}):
        with pytest.raises(InvalidName, match="pattern"):
            Query(**option).test(lambda entry: entry)  # type: ignore[arg-type]
