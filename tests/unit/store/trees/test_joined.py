import pytest

from store.errors import FormatError, IntegrityError, NotFound
from store.format.buffer import BytesReadAt
from store.format.pxar.entries import EntryKind
from store.trees.base import FileTree
from store.trees.joined import JoinedTree, Member
from store.trees.paths import find_path
from store.trees.walk import Walk
from tests.fakes.trees import File, GuestTree, Hard, archive


def locked() -> FileTree:
    raise IntegrityError("part3: needs a key")


@pytest.fixture
def disk() -> JoinedTree:
    shared = File(b"shared")
    guest = GuestTree({b"b": shared, b"a": shared, b"d": {b"c": File(b"deep", uid=5)}})
    real = archive({b"f": b"first", b"g": Hard(b"f")})
    return JoinedTree(
        [
            Member(b"part1", open_tree=lambda: guest),
            Member(b"part1.raw", stream=BytesReadAt(b"0123456789")),
            Member(b"part2", open_tree=lambda: real),
            Member(b"part3", open_tree=locked),
            Member(b"boot", target=b"part2"),
        ],
        mtime_s=77,
    )


def test_root(disk: JoinedTree) -> None:
    found = [(entry.name, entry.kind) for entry in disk.iterate(disk.root())]
    assert found == [
        (b"part1", EntryKind.DIRECTORY),
        (b"part1.raw", EntryKind.FILE),
        (b"part2", EntryKind.DIRECTORY),
        (b"part3", EntryKind.DIRECTORY),
        (b"boot", EntryKind.SYMLINK),
    ]
    assert disk.root().metadata.mtime_s == 77
    assert disk.lookup(disk.root(), b"nothing") is None


def test_content(disk: JoinedTree) -> None:
    raw = find_path(disk, b"part1.raw").entry
    assert raw.size == 10
    assert disk.read(raw, 7, 10) == b"789"
    stream, offset = disk.content(raw)
    assert stream.read(offset, 4) == b"0123"
    deep = find_path(disk, b"part1/d/c").entry
    stream, offset = disk.content(deep)
    assert stream.read(offset, deep.size) == b"deep"
    assert (disk.read(deep, 1, 2), deep.metadata.uid) == (b"ee", 5)


def test_numbers_are_unique_and_lead_back(disk: JoinedTree) -> None:
    problems: list[bytes] = []
    walk = Walk(disk, lambda path, _: problems.append(path))
    found = {prefix + entry.name: entry for prefix, entry in walk.below(disk.root())}
    assert problems == [b"part3"]
    assert found[b"part1/a"].offset == found[b"part1/b"].offset  # two names of one file
    assert found[b"part1/a"].links == 2
    numbers = {entry.offset for entry in found.values()}
    assert len(numbers) == len(found) - 1
    for entry in found.values():
        again = disk.entry_at(entry.offset, entry.end)
        assert (again.offset, again.kind, again.size) == (entry.offset, entry.kind, entry.size)
    assert disk.entry_at(0) is disk.root()
    with pytest.raises(NotFound):
        disk.entry_at(99 << 46)


def test_hard_links(disk: JoinedTree) -> None:
    link = find_path(disk, b"boot/g").entry
    assert (link.kind, link.target) == (EntryKind.HARDLINK, b"part2/f")
    file = disk.follow(link)
    assert link.target_offset == file.offset == find_path(disk, b"part2/f").entry.offset
    assert disk.read(file, 0, 9) == b"first"


def test_what_cannot_be_opened_disturbs_nothing_else(disk: JoinedTree) -> None:
    part = find_path(disk, b"part3").entry
    for _ in range(2):
        with pytest.raises(IntegrityError, match="needs a key"):
            next(disk.iterate(part))
    assert find_path(disk, b"part1/a").entry.size == 6
    with pytest.raises(FormatError, match="no directory"):
        next(disk.iterate(find_path(disk, b"part1.raw").entry))
    with pytest.raises(FormatError, match="none of the joined"):
        disk.follow(disk.root())
