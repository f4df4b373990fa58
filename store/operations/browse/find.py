"""Finding files in a snapshot: `snapshot find`."""

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from store.datastore.archives import SnapshotReader
from store.errors import InvalidName, NotFound, StoreError
from store.format.pxar.entries import Entry, EntryKind
from store.operations.browse.contents import TREE, Place, SnapshotContents, spot_of
from store.trees.base import FileTree
from store.trees.catalog import CatalogTree
from store.trees.matching import Query, Test
from store.trees.paths import Spot, find_path, followed
from store.trees.walk import PARTIAL, Walk

log = logging.getLogger(__name__)

OnError = Callable[[bytes, StoreError], None]


class Found(NamedTuple):
    """One entry that matches. `path` begins with the archive's name; `tree` is where it is from."""

    path: bytes
    entry: Entry
    tree: FileTree


def find_in_snapshot(
    contents: SnapshotContents,
    query: Query,
    where: str | None = None,
    *,
    names_only: bool = False,
    on_error: OnError,
) -> Iterator[Found]:
    """Yield what matches, in the order of the archives, as it is found.

    Args:
        where: an archive or a path in one; default all trees and disks.
        names_only: the caller wants paths, no more: a catalog may do.
        on_error: gets the path of what is damaged and left out. An archive that was not named and
            cannot be opened is left out like that, too.

    Raises NotFound, InvalidName, and where an archive was named what opening it raises.
    """
    if where is not None:
        place = contents.enter(where)
        if place.tree is None:
            raise InvalidName(f"{place}: is no tree of files, there is nothing to find in it")
        yield from _find(contents.reader, place, query, names_only, on_error)
        return
    for archive in contents.trees:
        try:
            place = Place(archive, b"", contents.tree(archive))
            yield from _find(contents.reader, place, query, names_only, on_error)
        except StoreError as error:
            on_error(archive.encode(), error)


def find_below(
    tree: FileTree, top: Spot, query: Query, on_error: OnError | None = None
) -> Iterator[tuple[bytes, Entry]]:
    """Yield `(prefix, entry)` of what matches below a directory, or of the file itself."""
    test = _reporting(query.test(lambda entry: followed(tree, entry)), on_error)
    if top.entry.kind is not EntryKind.DIRECTORY:
        if test(top.parent.prefix, top.entry):
            yield top.parent.prefix, top.entry
        return
    walk = Walk(tree, on_error, query.enters())
    for prefix, entry in walk.below(top.entry, top.prefix):
        if test(prefix, entry):
            yield prefix, entry


def _reporting(test: Test, on_error: OnError | None) -> Test:
    """The test, with entries left out whose facts are damaged."""
    if on_error is None:
        return test

    def reporting(prefix: bytes, entry: Entry) -> bool:
        try:
            return test(prefix, entry)
        except PARTIAL as error:
            on_error(prefix + entry.name, error)
            return False

    return reporting


def _find(
    reader: SnapshotReader, place: Place, query: Query, names_only: bool, on_error: OnError
) -> Iterator[Found]:
    head = place.archive.encode() + b"/"
    tree, top = _searched(reader, place, query, names_only)
    below = find_below(tree, top, query, lambda path, error: on_error(head + path, error))
    for prefix, entry in below:
        yield Found(b"%b%b%b" % (head, prefix, entry.name), entry, tree)


def _searched(
    reader: SnapshotReader, place: Place, query: Query, names_only: bool
) -> tuple[FileTree, Spot]:
    """The tree to go through and where to begin: the catalog where it has what is asked for."""
    assert place.tree is not None
    top = spot_of(place)
    # It has sizes and times of files alone.
    enough = names_only and (not query.wants_times_or_sizes or list(query.kinds) == ["f"])
    if enough and place.archive.endswith(TREE):
        catalog = catalog_tree(reader, place.archive)
        with suppress(NotFound):  # never: the catalog has the same names
            if catalog is not None:
                return catalog, find_path(catalog, top.path, follow=False)
    return place.tree, top


def catalog_tree(reader: SnapshotReader, archive: str) -> CatalogTree | None:
    """The catalog's view of a tree; None where there is none, or none that can be read."""
    try:
        catalog = reader.catalog()
        if catalog is None:
            return None
        name = f"{archive}.didx".encode()
        root = next((found for found in catalog.archives() if found.name == name), None)
    except StoreError as error:
        log.warning("%s: going through the archive instead of its catalog: %s", archive, error)
        return None
    return CatalogTree(catalog, root, lambda: reader.open_tree(archive)) if root else None
