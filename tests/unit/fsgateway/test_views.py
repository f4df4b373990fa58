"""What a group shows beside its snapshots: which trees, under which names, and as of when."""

import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from fsgateway.attributes import CHANGING_S, Facts
from fsgateway.tree import Directory, LatestNode, NamespaceNode, Node, TreeNode
from fsgateway.view import OpenSnapshot, SnapshotId, View
from fsgateway.views import show_views
from store.datastore.datastore import Datastore
from store.errors import NotFound
from store.format.crypt import CryptConfig
from store.format.pxar.entries import Entry
from store.names import Namespace, Snapshot
from tests.fakes.archives import SplitTree, snapshot, stat
from tests.fakes.datastores import local_datastore

TIMES = ("2025-01-01T00:00:00Z", "2025-01-02T00:00:00Z", "2025-01-03T00:00:00Z")
GMT = ("@GMT-2025.01.01-00.00.00", "@GMT-2025.01.02-00.00.00", "@GMT-2025.01.03-00.00.00")
KEY = CryptConfig(bytes(32))


def tree(content: bytes, mtime: int) -> SplitTree:
    made = SplitTree()
    made.file(b"f.txt", content, stat(0o100644, mtime_s=mtime))
    return made


def write(datastore: Datastore, day: int, key: CryptConfig | None = None) -> None:
    with snapshot(datastore, f"host/h/{TIMES[day]}", key) as builder:
        builder.split_tree("root", tree(b"day %d" % day, day))
        builder.blob("a.conf", b"x")


@pytest.fixture
def datastore(tmp_path: Path) -> Datastore:
    return local_datastore(tmp_path / "store")


def mount(datastore: Datastore, key: CryptConfig | None = None) -> NamespaceNode:
    """A root whose lists of snapshots are asked for anew every time."""
    view = View(datastore, key, 32 << 20)
    view.snapshots = datastore.list_snapshots  # type: ignore[method-assign]
    show_views(view, versions=True, shadow_copy=True)
    return NamespaceNode(view, (), Namespace())


def find(root: Directory, path: str) -> Node:
    node: Node = root
    for name in path.split("/"):
        assert isinstance(node, Directory)
        node = node.child(name)
    return node


def names(node: Node) -> list[str]:
    assert isinstance(node, Directory)
    return [child.path[-1] for child in node.children()]


def versions(node: Node) -> list[bytes]:
    assert isinstance(node, TreeNode)
    files = node.open().files
    (directory,) = files.iterate(files.root())
    return [files.read(version, 0, 100) for version in files.iterate(directory)]


def test_only_who_asks_sees_them(datastore: Datastore) -> None:
    write(datastore, 0)
    assert names(find(mount(datastore), "host/h")) == [TIMES[0], "latest", "versions", "shadow"]
    for wanted in ({"versions"}, {"shadow"}, set[str]()):
        view = View(datastore, None, 32 << 20)
        show_views(view, versions="versions" in wanted, shadow_copy="shadow" in wanted)
        root = NamespaceNode(view, (), Namespace())
        assert set(names(find(root, "host/h"))) == {TIMES[0], "latest"} | wanted


def test_every_group_has_them(datastore: Datastore) -> None:
    """`latest`, too: of each kind, in namespaces."""
    datastore.create_namespace(Namespace(("a",)))
    for namespace in (Namespace(), Namespace(("a",))):
        for group in ("host/h", "vm/100", "ct/101"):
            for time in TIMES[:2]:
                with snapshot(datastore, f"{group}/{time}", namespace=namespace) as builder:
                    builder.split_tree("root", tree(b"x", 1))
    root = mount(datastore)
    for group in ("host/h", "vm/100", "ct/101"):
        for path in (group, f"ns/a/{group}"):
            latest = find(root, f"{path}/latest")
            assert isinstance(latest, LatestNode)
            assert latest.target() == TIMES[1]
            assert names(find(root, f"{path}/versions")) == ["root.pxar"]
            assert names(find(root, f"{path}/shadow/root.pxar")) == [*reversed(GMT[:2])]


def test_trees_of_any_snapshot(datastore: Datastore) -> None:
    """Images and blobs have no place there; a tree that is no longer backed up has."""
    write(datastore, 0)
    with snapshot(datastore, f"host/h/{TIMES[1]}") as builder:
        builder.split_tree("etc", tree(b"y", 1))
        builder.image("disk.img", b"x")
        builder.stream("old.pxar.didx", b"no archive at all")
        builder.stream("catalog.pcat1.didx", b"a catalog")
    root = mount(datastore)
    for view in ("versions", "shadow"):
        assert names(find(root, f"host/h/{view}")) == ["etc.pxar", "old.pxar", "root.pxar"]
        with pytest.raises(NotFound):
            find(root, f"host/h/{view}/disk.img")
    assert versions(find(root, "host/h/versions/root.pxar")) == [b"day 0"]


def test_a_new_snapshot_makes_another_tree(datastore: Datastore) -> None:
    write(datastore, 0)
    write(datastore, 1)
    root = mount(datastore)
    before = find(root, "host/h/versions/root.pxar")
    assert isinstance(before, TreeNode)
    assert before.kept_s == CHANGING_S
    assert versions(before) == [b"day 0", b"day 1"]
    again = find(root, "host/h/versions/root.pxar")
    assert isinstance(again, TreeNode)
    assert again.identity == before.identity
    assert again.open().files is before.open().files
    write(datastore, 2)
    after = find(root, "host/h/versions/root.pxar")
    assert isinstance(after, TreeNode)
    assert after.identity != before.identity
    assert versions(after) == [b"day 0", b"day 1", b"day 2"]
    assert versions(before) == [b"day 0", b"day 1"]
    datastore.forget_snapshot(Namespace(), Snapshot.parse(f"host/h/{TIMES[0]}"))
    assert versions(find(root, "host/h/versions/root.pxar")) == [b"day 1", b"day 2"]


def test_shadow_copies(datastore: Datastore) -> None:
    write(datastore, 0)
    write(datastore, 1)
    root = mount(datastore)
    node = find(root, f"host/h/shadow/root.pxar/{GMT[0]}")
    assert isinstance(node, TreeNode)
    assert node.kept_s == CHANGING_S
    assert isinstance(node.describe(), Entry)
    found = node.open()
    (file,) = found.files.iterate(found.files.root())
    stream, start, size = found.content(file)
    assert stream.read(start, size) == b"day 0"
    with pytest.raises(NotFound):
        find(root, f"host/h/shadow/root.pxar/{GMT[2]}")
    with pytest.raises(NotFound):
        find(root, "host/h/shadow/root.pxar/latest")


@pytest.mark.expect_warnings
def test_without_its_key_one_is_left_out(
    datastore: Datastore, caplog: pytest.LogCaptureFixture
) -> None:
    write(datastore, 0)
    write(datastore, 1, KEY)
    write(datastore, 2)
    root = mount(datastore)
    for _ in range(2):
        assert versions(find(root, "host/h/versions/root.pxar")) == [b"day 0", b"day 2"]
        assert names(find(root, "host/h/shadow/root.pxar")) == [GMT[2], GMT[0]]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"host/h/{TIMES[1]}/root.pxar: left out: ")
    assert str(KEY.fingerprint) in record.getMessage()
    keyed = find(mount(datastore, KEY), "host/h/versions/root.pxar")
    assert versions(keyed) == [b"day 0", b"day 1", b"day 2"]


@pytest.mark.expect_warnings
def test_with_no_key_at_all_the_tree_is_closed(datastore: Datastore) -> None:
    write(datastore, 0, KEY)
    root = mount(datastore)
    facts = find(root, "host/h/versions/root.pxar").describe()
    assert isinstance(facts, Facts)
    assert facts.mode == 0o40500
    assert names(find(root, "host/h/shadow/root.pxar")) == []


@pytest.mark.expect_warnings
def test_a_damaged_manifest_hides_no_other(
    datastore: Datastore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(datastore, 0)
    write(datastore, 1)
    (tmp_path / "store/host/h" / TIMES[1] / "index.json.blob").write_bytes(b"rubbish" * 10)
    root = mount(datastore)
    for _ in range(2):
        assert versions(find(root, "host/h/versions/root.pxar")) == [b"day 0"]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"host/h/{TIMES[1]}: left out")


def test_far_storages_are_asked_at_once(
    datastore: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Manifests and archives are opened by threads, before the one that wants them comes by."""
    for day in range(3):
        write(datastore, day)
    threads: list[str] = []
    open_snapshot = OpenSnapshot.__init__

    def noted(opened: OpenSnapshot, view: View, ident: SnapshotId) -> None:
        threads.append(threading.current_thread().name)
        open_snapshot(opened, view, ident)

    monkeypatch.setattr(OpenSnapshot, "__init__", noted)
    monkeypatch.setattr(type(datastore.backend), "parallelism", 64)
    root = mount(datastore)
    node = find(root, "host/h/versions/root.pxar")
    assert isinstance(node, TreeNode)
    node.describe()
    assert len(threads) == 6
    assert all(name.startswith("views") for name in threads)
    assert versions(node) == [b"day 0", b"day 1", b"day 2"]


def open_files() -> set[tuple[str, str]]:
    """What this process holds. Datastores of earlier tests may be among them, and go any moment."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
    return found


def test_hundreds_of_open_trees_hold_no_files(datastore: Datastore) -> None:
    for day in range(3):
        write(datastore, day)
    root = mount(datastore)
    before = open_files()
    assert names(find(root, "host/h/shadow/root.pxar")) == [*reversed(GMT)]
    assert open_files() <= before
