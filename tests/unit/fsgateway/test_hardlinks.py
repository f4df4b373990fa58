"""The links of an archive are all found, wherever its chunks are cut."""

from hypothesis import given
from hypothesis import strategies as st

from fsgateway.hardlinks import links_in_catalog, links_in_stream, names_of
from store.format.buffer import BytesReadAt
from store.format.catalog import Catalog, CatalogWriter
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
    assert links_in_stream(pieces) == expected


def test_byte_by_byte() -> None:
    stream, expected = tree_with_links()
    assert links_in_stream(stream[at : at + 1] for at in range(len(stream))) == expected


@given(st.binary(max_size=300), st.integers(1, 40))
def test_garbage_does_no_harm(data: bytes, size: int) -> None:
    links_in_stream(data[start : start + size] for start in range(0, len(data), size))


def test_magic_bytes_in_an_xattr_are_no_link() -> None:
    tree = SplitTree()
    magic = bytes.fromhex("7572bd22849c2651") + bytes(40)
    tree.file(b"a", b"", encode_metadata(Metadata(0o100644, xattrs=((b"user.x", magic),))))
    assert not links_in_stream([tree.finish()[0]])


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
    links = links_in_catalog(Catalog(BytesReadAt(text)), b"root.pxar.didx", accessor)
    assert links == {target: 2}
    assert names_of(accessor.resolve(b"d/a"), links) == 3
    assert not links_in_catalog(Catalog(BytesReadAt(text)), b"other.pxar.didx", accessor)
