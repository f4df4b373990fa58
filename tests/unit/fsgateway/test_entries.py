"""Entries by number: from memory where they were met lately, whichever way."""

from pathlib import Path

import pytest
import trio
from pyfuse3 import InodeT

from fsgateway.archive import Archive
from fsgateway.bridge import Bridge
from fsgateway.entries import TreeEntries
from fsgateway.inodes import entry_inode
from fsgateway.tree import TreeNode
from fsgateway.view import SnapshotId, View
from store.format.pxar.entries import Entry
from store.names import Namespace, Snapshot
from tests.fakes.datastores import local_datastore
from tests.fakes.large_trees import LargeTree, fill_flat, write_large_tree

NAME = "host/h/2025-01-01T00:00:00Z"
SMALL, LARGE = 100, 5000


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    def make(tree: LargeTree) -> None:
        for name, files in ((b"large", LARGE), (b"small", SMALL)):
            tree.enter(name)
            fill_flat(tree, files)
            tree.leave()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    datastore = local_datastore(tmp_path / "store")
    write_large_tree(datastore, NAME, make)
    ident = SnapshotId(Namespace(), Snapshot.parse(NAME))
    return Archive(TreeNode(View(datastore, None, 64 << 20), ("root.pxar",), ident, "root.pxar"))


@pytest.fixture
def entries(archive: Archive) -> TreeEntries:
    found = TreeEntries(Bridge())
    assert found.table.archive_number(("root.pxar",), lambda: archive) == 0
    return found


async def directory(entries: TreeEntries, name: bytes) -> InodeT:
    entry = await entries.lookup(entry_inode(0, 0), name)
    assert entry is not None
    inode = entry_inode(0, entry.offset)
    entries.remember(inode, entry)
    return inode


@pytest.mark.parametrize(("name", "is_listed"), [(b"small", True), (b"large", False)])
def test_who_looks_up_one_name_after_another_gets_a_listing(
    entries: TreeEntries, archive: Archive, name: bytes, is_listed: bool
) -> None:
    async def look() -> list[Entry | None]:
        inode = await directory(entries, name)
        first = [await entries.lookup(inode, b"flat-0000000")]
        assert entries._listings.get(inode) is None
        archive.node.view.cache.clear()
        await entries.listing(entry_inode(0, 0))  # the chunk is in memory again
        first += [await entries.lookup(inode, b"flat-%07d" % number) for number in range(1, 9)]
        assert (entries._listings.get(inode) is not None) == is_listed
        return [*first, await entries.lookup(inode, b"none")]

    *found, none = trio.run(look)
    assert none is None
    assert [entry and entry.name for entry in found] == [b"flat-%07d" % n for n in range(9)]


def test_an_entry_is_that_of_the_listing(entries: TreeEntries, archive: Archive) -> None:
    async def look() -> None:
        inode = await directory(entries, b"small")
        listing = await entries.listing(inode)
        archive.node.view.cache.clear()
        for entry in listing:
            known = entries.known(entry_inode(0, entry.offset))
            assert known is not None
            assert known.name == entry.name
            assert await entries.get(entry_inode(0, entry.offset)) is known
        assert archive.node.view.cache.used_bytes == 0

    trio.run(look)
