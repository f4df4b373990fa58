"""A tree on the event loop: what is in memory, or kept on disk, is the same, at once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fsgateway.archive import Archive
from fsgateway.listings import Listing
from fsgateway.tree import TreeNode
from fsgateway.view import SnapshotId, View
from store.datastore.datastore import Datastore
from store.format.crypt import CryptConfig
from store.format.pxar.entries import Entry, EntryKind
from store.names import Namespace, Snapshot
from tests.fakes.datastores import local_datastore
from tests.fakes.large_trees import fill, fill_flat, write_large_tree

KEY = CryptConfig(bytes(range(32)))
NAME = "host/h/2025-01-01T00:00:00Z"
FORMS = [(True, None), (True, KEY), (False, None), (False, KEY)]


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(params=FORMS, ids=["split", "split-encrypted", "legacy", "legacy-encrypted"])
def form(request: pytest.FixtureRequest) -> tuple[bool, CryptConfig | None]:
    split, key = request.param
    return split, key


@pytest.fixture
def datastore(tmp_path: Path, form: tuple[bool, CryptConfig | None]) -> Datastore:
    datastore, (split, key) = local_datastore(tmp_path / "store"), form
    write_large_tree(datastore, NAME, lambda tree: fill(tree, 300), key, split=split)
    return datastore


def opened(datastore: Datastore) -> Archive:
    view = View(datastore, KEY, 64 << 20)
    ident = SnapshotId(Namespace(), Snapshot.parse(NAME))
    return Archive(TreeNode(view, ("root.pxar",), ident, "root.pxar"))


def forget_chunks(archive: Archive) -> None:
    archive.node.view.cache.clear()


def facts(listing: Listing | None) -> list[tuple[object, ...]]:
    assert listing is not None
    slots = [name for name in Entry.__slots__ if name != "_metadata"]
    return [tuple(getattr(entry, name) for name in slots) for entry in listing]


def walk(archive: Archive) -> Iterator[tuple[Entry, Listing]]:
    todo = [archive.root()]
    while todo:
        directory = todo.pop()
        listing = archive.listing(directory)
        yield directory, listing
        todo += [entry for entry in listing if entry.kind is EntryKind.DIRECTORY]


def test_what_is_in_memory_is_the_same(datastore: Datastore) -> None:
    archive = opened(datastore)
    for directory, listing in walk(archive):
        assert facts(archive.listing_if_cached(directory)) == facts(listing)
        if directory.name:
            at_hand = archive.listing_at_hand(directory.offset, directory.end)
            assert facts(at_hand) == facts(listing)
        for entry in listing:
            found = archive.entry_if_cached(entry.offset, entry.end)
            assert found is not None
            assert (found.name, found.end) == (entry.name, entry.end)
            found = archive.lookup_if_cached(directory, entry.name)
            assert found is not None
            assert found.offset == entry.offset
        assert archive.lookup_if_cached(directory, b"none") is None


def test_what_is_not_in_memory_is_not_waited_for(datastore: Datastore) -> None:
    archive = opened(datastore)
    directory = archive.root()
    first = archive.listing(directory).entry(0)
    archive._last().cached()._open_table.cache_clear()  # type: ignore[union-attr, attr-defined]
    forget_chunks(archive)
    assert archive.listing_if_cached(directory) is None
    assert archive.entry_if_cached(first.offset, first.end) is None
    assert archive.lookup_if_cached(directory, first.name) is None


def test_nothing_is_known_of_a_tree_that_is_not_open(datastore: Datastore) -> None:
    archive = opened(datastore)
    assert archive.entry_if_cached(1) is None
    assert archive.listing_at_hand(0, 0) is None


def test_a_legacy_archive_is_read_once(
    datastore: Datastore, form: tuple[bool, CryptConfig | None]
) -> None:
    expected = {
        (directory.offset, directory.end): facts(listing)
        for directory, listing in walk(opened(datastore))
    }
    again = opened(datastore)
    again.root()
    forget_chunks(again)
    for place, listing in expected.items():
        if form[0]:
            assert again.listing_at_hand(*place) is None
        else:
            assert facts(again.listing_at_hand(*place)) == listing
    assert again.node.view.cache.used_bytes == 0


def test_what_was_listed_is_kept_when_the_view_is_closed(
    datastore: Datastore, form: tuple[bool, CryptConfig | None]
) -> None:
    archive = opened(datastore)
    listing = archive.listing(archive.root())
    archive.node.view.close()
    again = opened(datastore)
    tree = again.node.open()
    assert (tree.kept is None) == form[0]
    if tree.kept is not None:
        assert tree.kept.get(again.root().offset) == listing.packed


def test_too_many_to_list_on_the_way(tmp_path: Path) -> None:
    datastore = local_datastore(tmp_path / "flat")
    write_large_tree(datastore, NAME, lambda tree: fill_flat(tree, 10_000), split=False)
    archive = opened(datastore)
    listing = archive.listing(archive.root())
    assert len(listing) == 10_000
    assert archive.listing_if_cached(archive.root()) is None
    assert archive.listing_at_hand(0, 0) is None
    assert facts(archive.listing(archive.root())) == facts(listing)
