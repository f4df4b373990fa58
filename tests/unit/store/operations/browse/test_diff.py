"""What differs between trees and images, seen through whole snapshots."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from store.datastore.archives import SnapshotReader
from store.datastore.chunk_cache import ChunkCache
from store.datastore.datastore import Datastore
from store.errors import InvalidName, NotFound, StoreError
from store.format.buffer import BytesReadAt
from store.format.crypt import CryptConfig
from store.format.pxar.accessor import Accessor
from store.format.pxar.entries import Entry
from store.names import Namespace, Snapshot
from store.operations.browse.contents import OpenDisk, SnapshotContents
from store.operations.browse.diff import ArchiveChange, diff_snapshots
from store.operations.browse.ranges import Stretch, same_bytes
from store.operations.browse.tree_diff import Change
from store.trees.base import FileTree
from store.trees.joined import JoinedTree, Member
from tests.fakes.archives import IMAGE_CHUNK, Builder, snapshot
from tests.fakes.datastores import local_datastore
from tests.fakes.trees import File, GuestTree, Hard, Link, Nodes, archive_bytes

KEY = CryptConfig(bytes(range(32)))
Made = Callable[..., SnapshotContents]
BASE: Nodes = {
    b"dir": {b"same": b"1", b"sub": {b"deep": b"2"}},
    b"file": File(b"content"),
    b"link": Link(b"dir"),
    b"twin": Hard(b"file"),
}


def no_disk(_reader: SnapshotReader, image: str) -> FileTree:
    raise AssertionError(f"{image} is looked into")


@pytest.fixture
def datastore(tmp_path: Path) -> Datastore:
    return local_datastore(tmp_path / "store")


@pytest.fixture
def made(datastore: Datastore) -> Made:
    """`made(1, fill)`: the snapshot of day 1, as `fill(builder)` filled it, open."""

    def make(
        day: int,
        fill: Callable[[Builder], None],
        key: CryptConfig | None = None,
        open_disk: OpenDisk = no_disk,
    ) -> SnapshotContents:
        name = f"host/x/2025-01-{day:02d}T00:00:00Z"
        with snapshot(datastore, name, key) as builder:
            fill(builder)
        reader = SnapshotReader(
            datastore, Namespace(), Snapshot.parse(name), key, ChunkCache(1 << 24)
        )
        return SnapshotContents(reader, open_disk)

    return make


def tree(nodes: Nodes, *, split: bool = True, chunk: int = 1 << 20) -> Callable[[Builder], None]:
    def fill(builder: Builder) -> None:
        metadata, payload = archive_bytes(nodes, split=split)
        if payload is None:
            builder.stream("root.pxar.didx", metadata, chunk)
        else:
            builder.stream("root.ppxar.didx", payload, chunk)
            builder.stream("root.mpxar.didx", metadata, chunk)

    return fill


def image(data: bytes) -> Callable[[Builder], None]:
    return lambda builder: builder.image("disk.img", data)


def lines(
    before: SnapshotContents, after: SnapshotContents, *where: str, **options: Any
) -> list[str]:
    changes = diff_snapshots(before, after, *where, on_error=fail, **options)
    return [f"{change.letter.value} {change.path.decode()}" for change in changes]


@pytest.mark.parametrize("splits", [(True, True), (False, False), (False, True)])
@pytest.mark.parametrize("content", [False, True])
def test_nothing_differs(made: Made, splits: tuple[bool, bool], content: bool) -> None:
    before, after = made(1, tree(BASE, split=splits[0])), made(2, tree(BASE, split=splits[1]))
    assert lines(before, after, content=content) == []


@pytest.mark.parametrize("splits", [(True, True), (False, False), (False, True)])
def test_every_letter(made: Made, splits: tuple[bool, bool]) -> None:
    changed: Nodes = {
        b"dir": {b"new": {b"in": b""}, b"sub": {b"deep": File(b"2", mode=0o100600)}},
        b"file": File(b"longer content"),
        b"link": Link(b"elsewhere"),
        b"twin": {b"now": b"a directory"},
    }
    before, after = (
        made(day, tree(nodes, split=split))
        for day, nodes, split in zip((1, 2), (BASE, changed), splits, strict=True)
    )
    assert lines(before, after) == [
        "M root.pxar/file",
        "M root.pxar/link",
        "T root.pxar/twin",
        "+ root.pxar/twin/now",
        "+ root.pxar/dir/new",
        "+ root.pxar/dir/new/in",
        "- root.pxar/dir/same",
        "U root.pxar/dir/sub/deep",
    ]
    assert lines(before, after, "root.pxar/dir/sub") == ["U root.pxar/dir/sub/deep"]
    assert lines(before, after, "root.pxar/dir/same") == ["- root.pxar/dir/same"]
    assert lines(before, after, "root.pxar/dir/new") == [
        "+ root.pxar/dir/new",
        "+ root.pxar/dir/new/in",
    ]
    with pytest.raises(NotFound, match="neither"):
        lines(before, after, "root.pxar/nowhere")
    with pytest.raises(NotFound, match="no such archive"):
        lines(before, after, "no.pxar")


@pytest.mark.parametrize("split", [False, True])
def test_content(made: Made, split: bool) -> None:
    """Equal times tell nothing then, and other times neither."""
    old: Nodes = {
        b"rotten": File(b"abc"),
        b"touched": File(b"same", mtime_s=1),
        b"written": File(b"abc", mtime_s=1),
    }
    new: Nodes = {
        b"rotten": File(b"abd"),
        b"touched": File(b"same", mtime_s=2),
        b"written": File(b"xyz", mtime_s=2),
    }
    before, after = made(1, tree(old, split=split)), made(2, tree(new, split=split))
    assert lines(before, after, content=True) == [
        "? root.pxar/rotten",
        "U root.pxar/touched",
        "M root.pxar/written",
    ]
    quick = ["M root.pxar/touched", "M root.pxar/written"]
    assert lines(before, after) == quick


def test_a_subtree_that_is_stored_alike_is_not_read(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    many: Nodes = {b"d": {b"file-%04d" % number: b"" for number in range(3000)}}
    before = made(1, tree(many, chunk=4096))
    after = made(2, tree(many | {b"e": b""}, chunk=4096))
    parsed = []
    iterate = Accessor.iterate

    def count(self: Accessor, directory: Entry) -> Iterator[Entry]:
        parsed.append(directory.name)
        return iterate(self, directory)

    monkeypatch.setattr(Accessor, "iterate", count)
    assert lines(before, after) == ["+ root.pxar/e"]
    assert parsed == [b"", b""]


def test_archives_and_blobs(made: Made) -> None:
    def first(builder: Builder) -> None:
        builder.blob("a.conf", b"1")
        builder.blob("b.conf", b"same")
        builder.blob("c.conf", b"gone")

    def second(builder: Builder) -> None:
        builder.blob("a.conf", b"2")
        builder.blob("b.conf", b"same")
        image(bytes(10))(builder)

    before, after = made(1, first), made(2, second)
    assert lines(before, after) == ["M a.conf", "- c.conf", "+ disk.img"]
    assert lines(before, after, "a.conf") == ["M a.conf"]
    assert lines(before, after, "b.conf") == []
    assert lines(before, after, "disk.img") == ["+ disk.img"]


def blocks(*fills: int) -> bytes:
    return b"".join(bytes([fill]) * IMAGE_CHUNK for fill in fills)


def fail(path: bytes, error: StoreError) -> None:
    raise AssertionError(f"{path!r}: {error}")


def stretches(before: SnapshotContents, after: SnapshotContents, **options: Any) -> Any:
    (change,) = diff_snapshots(before, after, "disk.img", on_error=fail, **options)
    assert isinstance(change, ArchiveChange)
    return change


def test_images_by_their_indexes(made: Made, datastore: Datastore) -> None:
    before = made(1, image(blocks(1, 2, 3, 4, 5)))
    after = made(2, image(blocks(1, 9, 9, 4, 6) + b"grown"))
    datastore.chunks.read = pytest.fail  # type: ignore[method-assign, assignment]
    change = stretches(before, after)
    assert change.stretches == (
        (IMAGE_CHUNK, 2 * IMAGE_CHUNK, 2),
        (4 * IMAGE_CHUNK, IMAGE_CHUNK + 5, 2),
    )
    assert (change.chunks, change.bytes) == (4, 3 * IMAGE_CHUNK + 5)
    assert lines(before, made(3, image(blocks(1, 2, 3, 4, 5)))) == []
    shrunk = stretches(before, made(4, image(blocks(1, 2, 3, 4))))
    assert shrunk.stretches == ((4 * IMAGE_CHUNK, IMAGE_CHUNK, 1),)


def test_images_of_different_keys(made: Made) -> None:
    """Their digests say nothing; the bytes do."""
    before, after = made(1, image(blocks(1, 2))), made(2, image(blocks(1, 3)), KEY)
    with pytest.raises(InvalidName, match="--content"):
        lines(before, after, "disk.img")
    assert stretches(before, after, content=True).stretches == ((IMAGE_CHUNK, IMAGE_CHUNK, 1),)


def test_inside_disks(made: Made) -> None:
    """In any order, and with a part that cannot be opened in one of them."""
    guests = [
        GuestTree({b"z": File(b"1"), b"a": File(b"1"), b"d": {b"x": File(b"")}}),
        GuestTree({b"d": {b"x": File(b"!")}, b"b": File(b"1"), b"z": File(b"1")}),
    ]
    contents = [
        made(day, image(b"disk"), open_disk=lambda _reader, _name, day=day: guests[day - 1])
        for day in (1, 2)
    ]
    assert lines(contents[0], contents[1], "disk.img") == []
    assert lines(contents[0], contents[1], "disk.img.d") == [
        "- disk.img/a",
        "+ disk.img/b",
        "M disk.img/d/x",
    ]
    assert lines(contents[0], contents[1], "disk.img/d") == ["M disk.img/d/x"]


def test_partitions_differ_by_their_files(made: Made) -> None:
    """Not by the time of the snapshot, nor by all their bytes."""
    guests = [GuestTree({b"x": File(b"1")}), GuestTree({b"x": File(b"2")})]
    raws = [BytesReadAt(b"aa"), BytesReadAt(b"ab")]

    def opened(day: int) -> JoinedTree:
        part = Member(b"part1", open_tree=lambda: guests[day])
        more = [Member(b"part2", open_tree=lambda: guests[day])] if day else []
        return JoinedTree([Member(b"part1.raw", stream=raws[day]), part, *more], mtime_s=day)

    before, after = (
        made(day, image(b"disk"), open_disk=lambda _reader, _name, day=day: opened(day - 1))
        for day in (1, 2)
    )
    assert lines(before, after, "disk.img.d", content=True) == [
        "+ disk.img/part2",
        "+ disk.img/part2/x",
        "? disk.img/part1/x",
    ]


def test_a_damaged_directory_is_left_out(made: Made) -> None:
    good = GuestTree({b"a": {b"x": File()}, b"b": File()})
    bad = GuestTree({b"a": {b"x": File()}, b"b": File(b"1")}, damaged=frozenset({b"a"}))
    before = made(1, image(b"disk"), open_disk=lambda _reader, _name: good)
    after = made(2, image(b"disk"), open_disk=lambda _reader, _name: bad)
    problems: list[bytes] = []
    changes = diff_snapshots(
        before, after, "disk.img.d", on_error=lambda path, _error: problems.append(path)
    )
    assert [change.path for change in changes if isinstance(change, Change)] == [b"disk.img/b"]
    assert problems == [b"disk.img/a"]


@pytest.mark.parametrize("shift", [0, 1, 5000])
@pytest.mark.parametrize("wrong", [None, 0, 40_000, 99_999])
def test_same_bytes(made: Made, shift: int, wrong: int | None) -> None:
    data = bytes(range(250)) * 400
    other = bytearray(data)
    if wrong is not None:
        other[wrong] ^= 1
    before = made(1, lambda builder: builder.stream("a.didx", b"x" * 10 + data, 4096))
    after = made(2, lambda builder: builder.stream("a.didx", b"y" * (10 + shift) + other, 4096))
    a = Stretch(before.reader.open_stream("a.didx"), 10, len(data))
    b = Stretch(after.reader.open_stream("a.didx"), 10 + shift, len(data))
    assert same_bytes(a, b) is (wrong is None)
    assert same_bytes(a, a)
    assert not same_bytes(a, b._replace(size=len(data) - 1))
