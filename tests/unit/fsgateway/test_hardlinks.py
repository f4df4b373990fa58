"""The links of an archive are all found, wherever its chunks are cut."""

import itertools
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsgateway.hardlinks import LinkBudget, Links, links_in_catalog, links_in_stream, names_of
from store.format.buffer import BytesReadAt
from store.format.catalog import Catalog, CatalogWriter
from store.format.pxar import hardlinks as pxar_hardlinks
from store.format.pxar.accessor import Accessor
from store.format.pxar.encoder import Encoder
from store.format.pxar.entries import Metadata, encode_metadata
from tests.fakes.archives import SplitTree, stat


def tree_with_links() -> tuple[bytes, dict[int, int]]:
    """A metadata stream, and how many links each target in it has."""
    tree = SplitTree()
    tree.file(b"a", b"1")
    first = tree.encoder.last_offset
    tree.enter(b"d" * 200)
    tree.file(b"b", b"2")
    second = tree.encoder.last_offset
    tree.add(tree.encoder.hardlink(b"c", first, b"a"))
    tree.add(tree.encoder.hardlink(b"x" * 255, second, b"d" * 200 + b"/b"))
    tree.leave()
    tree.add(tree.encoder.hardlink(b"e", first, b"a"))
    return tree.finish()[0], {first: 2, second: 1}


@given(st.data())
def test_any_split(data: st.DataObject) -> None:
    stream, expected = tree_with_links()
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    pieces = [
        stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)
    ]
    assert Counter(links_in_stream(pieces)) == expected


def test_byte_by_byte() -> None:
    stream, expected = tree_with_links()
    found = links_in_stream(stream[at : at + 1] for at in range(len(stream)))
    assert Counter(found) == expected


@given(st.binary(max_size=300), st.integers(1, 40))
def test_garbage_does_no_harm(data: bytes, size: int) -> None:
    list(links_in_stream(data[start : start + size] for start in range(0, len(data), size)))


def test_magic_bytes_in_an_xattr_are_no_link() -> None:
    tree = SplitTree()
    magic = bytes.fromhex("7572bd22849c2651") + bytes(40)
    tree.file(b"a", b"", encode_metadata(Metadata(0o100644, xattrs=((b"user.x", magic),))))
    assert not list(links_in_stream([tree.finish()[0]]))


def test_v1_by_its_catalog() -> None:
    encoder = Encoder(split=False)
    archive = encoder.begin(stat(0o40755)) + encoder.enter_directory(b"d", stat(0o40755))
    archive += encoder.file(b"a", stat(0o100644), 3) + b"abc"
    target = encoder.last_offset
    archive += encoder.leave_directory() + encoder.hardlink(b"e", target, b"d/a")
    archive += encoder.hardlink(b"f", target, b"d/a") + encoder.finish()
    catalog = CatalogWriter()
    text = catalog.start()
    catalog.begin_archive(b"root.pxar.didx")
    catalog.enter_directory(b"d")
    catalog.file(b"a", 3, 0)
    text += catalog.leave_directory()
    for name in (b"e", b"f", b"vanished"):
        catalog.other(b"h", name)
    text += catalog.end_archive() + catalog.finish()
    accessor = Accessor(BytesReadAt(archive))
    found = list(links_in_catalog(Catalog(BytesReadAt(text)), b"root.pxar.didx", accessor))
    assert found == [target, target]
    assert names_of(accessor.resolve(b"d/a"), Links(found)) == 3
    assert not list(links_in_catalog(Catalog(BytesReadAt(text)), b"other.pxar.didx", accessor))


@given(st.lists(st.integers(0, 30) | st.integers(0, 2**46)), st.integers(1, 9))
def test_links_are_counted(targets: list[int], run: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pxar_hardlinks, "RUN", run)
        links = Links(iter(targets))
    assert len(links) == len(targets)
    expected = Counter(targets)
    for offset in {*targets, *range(31)}:
        assert links.count(offset) == expected[offset]


def test_links_past_the_limit_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pxar_hardlinks, "MAX_LINKS", 100)
    links = Links(itertools.count(7))
    assert (len(links), links.count(7), links.count(106), links.count(107)) == (100, 1, 1, 0)


def test_many_links_take_8_bytes_each() -> None:
    tracemalloc.start()
    links = Links(range(500_000, 0, -1))
    now, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert links.count(1) == links.count(500_000) == 1
    assert now < 5e6
    assert most < 16e6


class Rememberer:
    def __init__(self) -> None:
        self.forgot = 0

    def forget_links(self) -> None:
        self.forgot += 1


def test_the_oldest_archives_forget_their_links() -> None:
    budget = LinkBudget(limit=10)
    first, second, third = archives = [Rememberer() for _ in range(3)]
    budget.keep(first, Links([1] * 4))
    budget.keep(second, Links([1] * 4))
    budget.keep(first, Links([1] * 5))  # counted again: the newest now
    assert [archive.forgot for archive in archives] == [0, 0, 0]
    budget.keep(third, Links([1] * 3))
    assert [archive.forgot for archive in archives] == [0, 1, 0]
    budget.keep(second, Links([1] * 40))  # too many on their own are kept, alone
    assert [archive.forgot for archive in archives] == [1, 1, 1]
