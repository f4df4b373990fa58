"""The nodes above the archives, and an archive's entries by their offsets."""

import stat as st_module
from pathlib import Path

import pytest

from fsgateway.archive import Archive
from fsgateway.attributes import Facts
from fsgateway.disks import DiskNode
from fsgateway.tree import (
    BlobNode,
    Directory,
    ImageNode,
    LatestNode,
    ManifestNode,
    NamespaceNode,
    Node,
    TreeNode,
)
from fsgateway.view import View
from store.datastore.datastore import Datastore
from store.errors import FormatError, NotFound
from store.format.manifest import Manifest
from store.format.pxar.entries import Entry, EntryKind
from store.names import Namespace, Snapshot
from tests.fakes.archives import SplitTree, snapshot, stat
from tests.fakes.datastores import local_datastore

TIME = "2025-01-01T00:00:00Z"


@pytest.fixture
def datastore(tmp_path: Path) -> Datastore:
    found = local_datastore(tmp_path / "store")
    found.create_namespace(Namespace(("a",)))
    tree = SplitTree()
    tree.enter(b"d")
    tree.file(b"f", b"content")
    target = tree.encoder.last_offset
    tree.add(tree.encoder.hardlink(b"g", target, b"d/f"))
    tree.leave()
    tree.add(tree.encoder.symlink(b"l", stat(0o120777), b"d/f"))
    with snapshot(found, f"host/h/{TIME}") as builder:
        builder.split_tree("root", tree)
        builder.blob("a.conf", b"hello")
        builder.image("disk.img", b"x" * 100)
    with snapshot(found, f"vm/1/{TIME}", namespace=Namespace(("a",))) as builder:
        builder.blob("a.conf", b"hello")
    return found


@pytest.fixture
def root(datastore: Datastore) -> NamespaceNode:
    return NamespaceNode(View(datastore, None, 32 << 20), (), Namespace())


def find(root: Directory, path: str) -> Node:
    node: Node = root
    for name in path.split("/"):
        assert isinstance(node, Directory)
        node = node.child(name)
    return node


def names(node: Node) -> list[str]:
    assert isinstance(node, Directory)
    return [child.path[-1] for child in node.children()]


def test_names(root: NamespaceNode) -> None:
    assert names(root) == ["ns", "host"]
    assert names(find(root, "ns")) == ["a"]
    assert names(find(root, "ns/a")) == ["vm"]
    assert names(find(root, "host/h")) == [TIME, "latest"]
    top = find(root, f"host/h/{TIME}")
    assert names(top) == ["root.pxar", "a.conf", "disk.img", "disk.img.d", "index.json"]
    kinds = [TreeNode, BlobNode, ImageNode, DiskNode, ManifestNode]
    assert isinstance(top, Directory)
    assert [type(child) for child in top.children()] == kinds
    with pytest.raises(NotFound, match="nothing"):
        find(root, "host/nothing")


def test_facts(root: NamespaceNode) -> None:
    top = f"host/h/{TIME}"
    sizes = {name: find(root, f"{top}/{name}").facts().size for name in ("a.conf", "disk.img")}
    assert sizes == {"a.conf": 5, "disk.img": 100}
    assert find(root, f"{top}/disk.img").facts().mode == st_module.S_IFREG | 0o440
    assert find(root, "host/h").facts().mtime_ns == Snapshot.parse(f"host/h/{TIME}").time * 10**9
    latest = find(root, "host/h/latest")
    assert isinstance(latest, LatestNode)
    assert latest.target() == latest.known_target() == TIME
    assert st_module.S_ISLNK(latest.facts().mode)


def test_manifest_is_shown_as_pbs_wrote_it(root: NamespaceNode, datastore: Datastore) -> None:
    node = find(root, f"host/h/{TIME}/index.json")
    assert isinstance(node, ManifestNode)
    expected = datastore.read_manifest(Namespace(), Snapshot.parse(f"host/h/{TIME}"))
    assert Manifest.decode(node.read()) == expected
    assert node.read() == expected.encode()


def test_an_archive_s_entries_are_found_again_by_their_offsets(root: NamespaceNode) -> None:
    node = find(root, f"host/h/{TIME}/root.pxar")
    assert isinstance(node, TreeNode)
    assert isinstance(node.describe(), Entry)
    archive = Archive(node)
    top = archive.entry(0)
    directory = archive.lookup(top, b"d")
    assert directory is not None
    again = archive.entry(directory.offset, directory.end)
    listing = archive.listing(again)
    assert [entry.name for entry in listing] == [b"f", b"g"]
    assert listing.entry(0).offset == listing.entry(1).offset
    file = archive.entry(listing.entry(0).offset)
    assert (file.kind, file.size, file.name) == (EntryKind.FILE, 7, b"f")
    assert archive.known_links is None
    assert archive.links().count(file.offset) == 1
    assert archive.known_links is archive.links()
    archive.forget_links()
    assert archive.known_links is None
    assert archive.links().count(file.offset) == 1
    content = archive.content(file)
    assert content.stream.read(content.start, content.size) == b"content"
    assert archive.content_if_cached(file) == content
    with pytest.raises(FormatError):
        archive.entry(file.offset + 1)


def test_a_tree_that_does_not_open_is_a_closed_directory(
    root: NamespaceNode, tmp_path: Path
) -> None:
    index = tmp_path / "store/host/h" / TIME / "root.mpxar.didx"
    index.chmod(0o600)
    index.write_bytes(index.read_bytes()[:-1])
    described = find(root, f"host/h/{TIME}/root.pxar").describe()
    assert isinstance(described, Facts)
    assert described.mode == st_module.S_IFDIR | 0o500
    assert described.size > 0
