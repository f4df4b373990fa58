import pytest

from store.errors import NotFound
from store.trees.base import FileTree
from store.trees.joined import JoinedTree, Member
from store.trees.paths import Spot, find_path
from tests.fakes.trees import File, GuestTree, Link, archive

NODES = {
    b"etc": {b"fstab": b"x", b"up": Link(b"../var"), b"self": Link(b"self")},
    b"lib": Link(b"/usr/lib"),
    b"out": Link(b"../../../etc/fstab"),
    b"usr": {b"lib": {b"a.so": b"library"}},
    b"var": {b"log": Link(b"/usr/lib/a.so")},
}


@pytest.fixture
def tree() -> FileTree:
    return archive(NODES)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (b"", b""),
        (b"/", b""),
        (b"etc/fstab", b"etc/fstab"),
        (b"//etc//./fstab", b"etc/fstab"),
        (b"etc/../usr/lib", b"usr/lib"),
        (b"../..", b""),
        (b"lib/a.so", b"usr/lib/a.so"),
        (b"etc/up/log", b"usr/lib/a.so"),
        (b"out", b"etc/fstab"),
    ],
)
def test_paths(tree: FileTree, path: bytes, found: bytes) -> None:
    assert find_path(tree, path).path == found


def test_a_link_itself(tree: FileTree) -> None:
    assert find_path(tree, b"lib", follow=False).path == b"lib"
    assert find_path(tree, b"lib/", follow=False).path == b"usr/lib"
    assert find_path(tree, b"lib/a.so", follow=False).path == b"usr/lib/a.so"


def test_from_a_directory(tree: FileTree) -> None:
    etc = find_path(tree, b"etc")
    assert find_path(tree, b"fstab", etc).path == b"etc/fstab"
    assert find_path(tree, b"../var", etc).path == b"var"
    assert find_path(tree, b"/usr", etc).path == b"usr"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (b"no", "no: no no"),
        (b"etc/no/x", "no etc/no"),
        (b"etc/fstab/x", "etc/fstab is no directory"),
        (b"etc/self", "circles"),
        (b"a\nb", r"no \$'a\\nb'"),
    ],
)
def test_what_is_not_there(tree: FileTree, path: bytes, text: str) -> None:
    with pytest.raises(NotFound, match=text):
        find_path(tree, path)


def test_links_stay_in_their_partition() -> None:
    part = GuestTree({b"etc": {b"x": File(b"1")}, b"abs": Link(b"/etc/x"), b"up": Link(b"../../x")})
    other = GuestTree({b"x": File(b"other")})
    disk = JoinedTree(
        [
            Member(b"part1", open_tree=lambda: part),
            Member(b"part2", open_tree=lambda: other),
            Member(b"root", target=b"part1"),
        ]
    )
    assert find_path(disk, b"part1/abs").path == b"part1/etc/x"
    assert find_path(disk, b"root/etc/x").path == b"part1/etc/x"
    with pytest.raises(NotFound):
        find_path(disk, b"part1/up")


def test_parents() -> None:
    tree = archive(NODES)
    spot = find_path(tree, b"etc/fstab")
    assert spot.parent.path == b"etc"
    assert spot.parent.prefix == b"etc/"
    assert spot.parent.parent.parent == Spot(spot.entries[:1])
    assert spot.parent.parent.prefix == b""
