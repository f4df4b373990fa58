"""Paths into snapshots, and what is read, found and restored there: archives and disks alike."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from store.datastore.archives import SnapshotReader
from store.datastore.chunk_cache import ChunkCache
from store.errors import AlreadyExists, InvalidName, KeyRequired, NotFound
from store.format.buffer import BytesReadAt, ReadAt
from store.format.catalog import CatalogWriter
from store.names import Namespace, Snapshot
from store.operations.browse.cat import read_file
from store.operations.browse.contents import SnapshotContents
from store.operations.browse.disk_tree import disk_tree
from store.operations.browse.find import find_in_snapshot
from store.operations.restore.place import restore_path
from store.operations.restore.request import RestoreOptions
from store.trees.base import FileTree
from store.trees.catalog import CatalogTree
from store.trees.matching import Query, SizeTest
from tests.fakes.archives import Builder, snapshot
from tests.fakes.datastores import local_datastore
from tests.fakes.trees import TIME, File, GuestTree, Hard, Link, Nodes, archive_bytes

NODES: Nodes = {
    b"etc": {b"alias": Link(b"fstab"), b"fstab": b"/dev/sda1 /", b"hard": Hard(b"etc/fstab")},
    b"large": File(bytes(range(256)) * (20 << 12)),
}
SHARED = File(b"shared", mode=0o100640)
GUEST: Nodes = {
    b"usr": {b"two": SHARED, b"one": SHARED},
    b"etc": {b"fstab": File(b"guest"), b"os": Link(b"/usr/one")},
    b"sparse": File(bytes(200_000) + b"end"),
}


@dataclass(frozen=True)
class FakePart:
    """The shape of a part in store/disks/disk.py."""

    name: str
    nodes: Nodes | None = None
    links: tuple[str, ...] = ()
    directory: str = ""
    has_tree: bool = True
    older: Nodes | None = None

    @property
    def has_older_tree(self) -> bool:
        return self.older is not None

    def open_older_tree(self) -> FileTree:
        assert self.older is not None
        return GuestTree(self.older)

    @property
    def raw(self) -> ReadAt:
        return BytesReadAt(b"raw bytes of " + self.name.encode())

    def open_tree(self) -> FileTree:
        if self.nodes is None:
            raise KeyRequired(f"{self.name}: needs a key")
        return GuestTree(self.nodes)


PARTS = (
    FakePart("part1", GUEST, ("root",), "part1", older={b"older": File(b"before")}),
    FakePart("part2", {b"old": File()}, (), "part2.unclean"),
    FakePart("part3", None, (), "part3"),
    FakePart("part4", None, (), "part4", has_tree=False),
)


def catalog() -> bytes:
    writer = CatalogWriter()
    out = writer.start()
    writer.begin_archive(b"v1.pxar.didx")
    writer.enter_directory(b"etc")
    writer.other(b"l", b"alias")
    writer.file(b"fstab", 11, TIME)
    writer.other(b"h", b"hard")
    out += writer.leave_directory()
    writer.file(b"large", 20 << 20, TIME)
    return out + writer.end_archive() + writer.finish()


def fill(builder: Builder) -> None:
    metadata, payload = archive_bytes(NODES)
    assert payload is not None
    builder.stream("root.ppxar.didx", payload)
    builder.stream("root.mpxar.didx", metadata)
    builder.stream("v1.pxar.didx", archive_bytes(NODES, split=False)[0])
    builder.stream("catalog.pcat1.didx", catalog())
    builder.image("disk.img", bytes(5 << 20))
    builder.blob("vm.conf", b"memory: 1G\n")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> SnapshotReader:
    datastore = local_datastore(tmp_path_factory.mktemp("browse") / "store")
    name = "vm/1/2025-01-01T00:00:00Z"
    with snapshot(datastore, name) as builder:
        fill(builder)
    return SnapshotReader(datastore, Namespace(), Snapshot.parse(name), None, ChunkCache(1 << 26))


@pytest.fixture
def contents(reader: SnapshotReader) -> SnapshotContents:
    return SnapshotContents(reader, open_parts)


def open_parts(_reader: SnapshotReader, _image: str) -> FileTree:
    return disk_tree(PARTS)


def content(contents: SnapshotContents, path: str) -> bytes:
    return b"".join(bytes(piece) for piece in read_file(contents, path))


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("root.pxar/etc/fstab", b"/dev/sda1 /"),
        ("v1.pxar/etc/fstab", b"/dev/sda1 /"),
        ("root.pxar/etc/alias", b"/dev/sda1 /"),
        ("v1.pxar//etc/hard", b"/dev/sda1 /"),
        ("root.mpxar.didx/etc/fstab", b"/dev/sda1 /"),
        ("/root.pxar/large", bytes(range(256)) * (20 << 12)),
        ("v1.pxar/large", bytes(range(256)) * (20 << 12)),
        ("vm.conf", b"memory: 1G\n"),
        ("vm.conf.blob", b"memory: 1G\n"),
        ("disk.img", bytes(5 << 20)),
        ("disk.img/part1/etc/fstab", b"guest"),
        ("disk.img.d/part1/etc/fstab", b"guest"),
        ("disk.img/root/etc/os", b"shared"),
        ("disk.img/part2.unclean/old", b""),
        ("disk.img/part3.raw", b"raw bytes of part3"),
        ("disk.img/part4.raw", b"raw bytes of part4"),
    ],
)
def test_cat(contents: SnapshotContents, path: str, found: bytes) -> None:
    assert content(contents, path) == found


@pytest.mark.parametrize(
    ("path", "error", "text"),
    [
        ("root.pxar", InvalidName, "is a directory"),
        ("root.pxar/etc", InvalidName, "root.pxar/etc: is a directory, list it"),
        ("disk.img/", InvalidName, "is a directory"),
        ("root.pxar/no", NotFound, "root.pxar: /no: no no"),
        ("no.pxar", NotFound, "there are root.pxar, v1.pxar"),
        ("vm.conf/x", NotFound, "is a file, with nothing below"),
        ("disk.img/part2", NotFound, "no part2"),
        ("disk.img/part3/x", KeyRequired, "needs a key"),
        ("disk.img/part4/x", NotFound, "no part4"),
    ],
)
def test_what_cannot_be_read(
    contents: SnapshotContents, path: str, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        content(contents, path)


def test_what_a_disk_had_before_its_journal_is_there_for_who_asks(
    contents: SnapshotContents,
) -> None:
    assert content(contents, "disk.img/part1.unclean/older") == b"before"
    tree = contents.tree("disk.img")
    assert b"part1.unclean" not in [entry.name for entry in tree.iterate(tree.root())]


def find(contents: SnapshotContents, where: str | None = None, **options: Any) -> list[str]:
    problems: list[bytes] = []
    names_only = options.pop("names_only", True)
    found = find_in_snapshot(
        contents,
        Query(**options),
        where,
        names_only=names_only,
        on_error=lambda path, _error: problems.append(path),
    )
    return [one.path.decode() for one in found] + [f"! {path.decode()}" for path in problems]


def test_find_everywhere(contents: SnapshotContents) -> None:
    assert find(contents, names=["fstab"]) == [
        "root.pxar/etc/fstab",
        "v1.pxar/etc/fstab",
        "disk.img/part1/etc/fstab",
        "! disk.img/part3",
    ]


def test_find_in_one_place(contents: SnapshotContents) -> None:
    assert find(contents, "disk.img/part1/usr") == [
        "disk.img/part1/usr/two",
        "disk.img/part1/usr/one",
    ]
    assert find(contents, "disk.img/root", sizes=[SizeTest.parse("+1k")]) == [
        "disk.img/part1/sparse"
    ]
    assert find(contents, "v1.pxar/etc/fstab") == ["v1.pxar/etc/fstab"]
    assert find(contents, "disk.img", names=["part1"]) == ["disk.img/part1", "! disk.img/part3"]
    with pytest.raises(InvalidName, match="is no tree"):
        find(contents, "vm.conf")
    with pytest.raises(NotFound):
        find(contents, "root.pxar/nowhere")


@pytest.mark.parametrize("options", [{}, {"kinds": "f", "sizes": [SizeTest.parse("11")]}])
def test_the_catalog_and_the_archive_say_the_same(
    contents: SnapshotContents, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    entered: list[bytes] = []
    iterate = CatalogTree.iterate

    def count(self: CatalogTree, directory: Any) -> Any:
        entered.append(directory.name)
        return iterate(self, directory)

    monkeypatch.setattr(CatalogTree, "iterate", count)
    split = [path.removeprefix("root") for path in find(contents, "root.pxar", **options)]
    assert not entered
    v1 = [path.removeprefix("v1") for path in find(contents, "v1.pxar", **options)]
    assert v1 == split
    assert entered == [b"", b"etc"]
    assert find(contents, "v1.pxar", names_only=False, **options)
    assert entered == [b"", b"etc"], "it was used where it does not know enough"


def restored(
    contents: SnapshotContents, path: str, target: Path, *patterns: str, **options: Any
) -> list[str]:
    warnings: list[str] = []
    asked = RestoreOptions(on_warning=warnings.append, **options)
    restore_path(contents, path, str(target), asked, patterns=patterns)
    assert all("owners" in warning for warning in warnings)
    return sorted(str(found.relative_to(target)) for found in target.rglob("*"))


def test_restore_a_directory_of_an_archive(contents: SnapshotContents, tmp_path: Path) -> None:
    for name in ("root.pxar", "v1.pxar"):
        target = tmp_path / name
        assert restored(contents, f"{name}/etc", target) == ["alias", "fstab", "hard"]
        assert (target / "fstab").samefile(target / "hard")
        assert os.readlink(target / "alias") == "fstab"
        assert (target / "hard").stat().st_mtime == TIME


def test_a_hard_link_out_of_the_directory_is_a_copy(tmp_path: Path) -> None:
    datastore = local_datastore(tmp_path / "store")
    name = "host/x/2025-01-01T00:00:00Z"
    nodes: Nodes = {b"a": b"one", b"b": {b"a": b"another", b"x": Hard(b"a"), b"y": Hard(b"a")}}
    with snapshot(datastore, name) as builder:
        builder.stream("root.pxar.didx", archive_bytes(nodes, split=False)[0])
    reader = SnapshotReader(datastore, Namespace(), Snapshot.parse(name), None, ChunkCache(1 << 20))
    target = tmp_path / "out"
    assert restored(SnapshotContents(reader, open_parts), "root.pxar/b", target) == ["a", "x", "y"]
    assert [(target / name).read_bytes() for name in ("a", "x", "y")] == [
        b"another",
        b"one",
        b"one",
    ]
    assert (target / "x").samefile(target / "y")
    assert not (target / "x").samefile(target / "a")


def test_restore_from_a_disk(contents: SnapshotContents, tmp_path: Path) -> None:
    target = tmp_path / "out"
    found = restored(contents, "disk.img/root", target, ignore_ownership=True)
    assert found == ["etc", "etc/fstab", "etc/os", "sparse", "usr", "usr/one", "usr/two"]
    assert (target / "usr/one").samefile(target / "usr/two")
    assert (target / "usr/one").read_bytes() == b"shared"
    assert (target / "usr/one").stat().st_mode & 0o7777 == 0o640
    assert (target / "usr").stat().st_mode & 0o7777 == 0o750
    assert target.stat().st_mode & 0o7777 == 0o750, "as the root of the guest's file system"
    assert (target / "sparse").read_bytes() == GUEST[b"sparse"].content
    assert (target / "sparse").stat().st_blocks * 512 < 200_000


def test_restore_what_patterns_take(contents: SnapshotContents, tmp_path: Path) -> None:
    found = restored(contents, "disk.img.d/part1", tmp_path / "out", "/usr/two")
    assert found == ["usr", "usr/two"]
    with pytest.raises(NotFound):
        restored(contents, "root.pxar/etc", tmp_path / "none", "nothing")
    assert not (tmp_path / "none").exists()


def test_restore_one_file(contents: SnapshotContents, tmp_path: Path) -> None:
    target = tmp_path / "fstab"
    restore_path(contents, "disk.img/part1/etc/fstab", str(target))
    assert target.read_bytes() == b"guest"
    with pytest.raises(AlreadyExists):
        restore_path(contents, "root.pxar/etc/fstab", str(target))
    restore_path(contents, "root.pxar/etc/fstab", str(target), RestoreOptions(overwrite=True))
    assert target.read_bytes() == b"/dev/sda1 /"
    for bad, text in (("-", "snapshot cat"), (str(tmp_path), "is a directory")):
        with pytest.raises(InvalidName, match=text):
            restore_path(contents, "root.pxar/etc/fstab", bad)
    with pytest.raises(InvalidName, match="patterns"):
        restore_path(contents, "root.pxar/etc/fstab", str(target), patterns=["x"])


def test_whole_archives_as_before(contents: SnapshotContents, tmp_path: Path) -> None:
    assert restored(contents, "root.pxar", tmp_path / "tree")[0] == "etc"
    restore_path(contents, "vm.conf", str(tmp_path / "conf"))
    assert (tmp_path / "conf").read_bytes() == b"memory: 1G\n"
    with pytest.raises(NotFound, match="there are"):
        restore_path(contents, "no.img", str(tmp_path / "x"))
