"""What looks other than in another archive's directory is given; nothing that is new is missed."""

import stat

from hypothesis import given
from hypothesis import strategies as st

from store.errors import FormatError
from store.format.pxar.accessor import Accessor
from store.format.pxar.entries import EntryKind, Metadata
from store.format.pxar.unlike import Known
from tests.unit.store.format.pxar.archives import Node, encode_tree, open_archive

NAMES = st.sampled_from([b"a", b"b", b"bb", b"c"])
METADATA = st.builds(
    Metadata,
    st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO]),
    mtime_s=st.integers(0, 1),
    xattrs=st.sampled_from([(), ((b"user.a", b"1"),), ((b"user.a", b"1"), (b"user.b", b"2"))]),
)
NODES = st.builds(Node, METADATA) | st.just(Node(Metadata(0), link=True))
DIRECTORIES = st.dictionaries(NAMES, NODES, max_size=4)


def archive(children: dict[bytes, Node], *, split: bool) -> Accessor:
    root = Node(Metadata(0o40755), children=children)
    return open_archive(*encode_tree(root, split=split))


def looks(accessor: Accessor) -> dict[bytes, tuple[EntryKind, bytes]]:
    found = accessor.iterate(accessor.root())
    return {entry.name: (entry.kind, entry.raw_metadata) for entry in found}


@given(st.lists(DIRECTORIES, max_size=4), st.booleans())
def test_every_look_of_every_name_is_given(
    directories: list[dict[bytes, Node]], split: bool
) -> None:
    known, given_looks = Known(), set()
    for children in directories:
        accessor = archive(children, split=split)
        for entry in accessor.unlike(accessor.root(), known):
            given_looks.add((entry.name, entry.kind, entry.raw_metadata))
            if entry.kind is EntryKind.DIRECTORY:
                assert entry.end == next(
                    other.end
                    for other in accessor.iterate(accessor.root())
                    if other.name == entry.name
                )
        expected = {(name, *look) for name, look in looks(accessor).items()}
        assert expected <= given_looks


def test_what_is_known_is_left_out() -> None:
    children = {b"%04d" % n: Node(Metadata(0o100644), content=b"x" * n) for n in range(3000)}
    children[b"d"] = Node(Metadata(0o40755), children=dict(children))
    for split in (False, True):
        known = Known()
        for changed in ([*children], [b"0007", b"2999"], []):
            for name in changed:
                children[name].metadata.mtime_s += 1
            accessor = archive(children, split=split)
            found = accessor.unlike(accessor.root(), known)
            assert sorted(entry.name for entry in found) == sorted(changed)


@given(st.data())
def test_a_broken_archive_is_a_format_error(data: st.DataObject) -> None:
    children = {b"%d" % n: Node(Metadata(0o100644), content=b"x") for n in range(5)}
    children[b"d"] = Node(Metadata(0o40755), children={b"f": Node(Metadata(0o100644))})
    raw, _ = encode_tree(Node(Metadata(0o40755), children=children), split=False)
    known = Known()
    whole = open_archive(raw, None)
    assert len([*whole.unlike(whole.root(), known)]) == 6
    broken = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(raw) - 1))
        broken[position] = data.draw(st.integers(0, 255))
    try:
        accessor = open_archive(bytes(broken), None)
        for _ in accessor.unlike(accessor.root(), dict(known)):
            pass
    except FormatError:
        pass
