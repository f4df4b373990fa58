"""One tree of files as the mount sees it: entries by number, directories as listings.

Everything here may read the datastore and is called in threads, from several at once; the caller
keeps the results.
"""

import logging
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING
from weakref import ref

from fsgateway.hardlinks import MAX_LINKS, Links
from fsgateway.listings import MAX_NAME, Listing
from fsgateway.readahead import Ways
from fsgateway.tree import TreeNode
from fsgateway.view import Content, Tree
from store.datastore.streams import NotCached
from store.errors import StoreError
from store.format.pxar.accessor import Accessor
from store.format.pxar.entries import Entry, EntryKind
from store.format.pxar.packed import index, pack, pack_all, unpack_all
from store.trees.base import FileTree

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

HARDLINK = EntryKind.HARDLINK
# So many entries are listed in about two milliseconds.
MOST_ON_THE_WAY = 1000
MOST_KEPT_BYTES = 48 << 10


class Archive:
    """A pxar archive, say; opened again when its keeper has closed it meanwhile."""

    def __init__(self, node: TreeNode) -> None:
        self.node = node
        self.ways = Ways()
        self._lock = Lock()
        self._links: Links | None = None
        self._last: Callable[[], Tree | None] = lambda: None

    def __str__(self) -> str:
        return str(self.node)

    @property
    def is_slow(self) -> bool:
        """As its node's."""
        return self.node.is_slow

    def _open(self) -> Tree:
        tree = self.node.open()
        self._last = ref(tree)
        return tree

    def _cached(self) -> Accessor | None:
        tree = self._last()
        return None if tree is None else tree.cached()

    def root(self) -> Entry:
        """The tree's root directory. Raises StoreError."""
        return self._open().files.root()

    def entry(self, offset: int, directory_end: int = 0) -> Entry:
        """The entry whose number is `offset`; 0 is the root.

        Args:
            offset: its number, as an earlier listing gave it.
            directory_end: where it ends, if it is a directory: its parent's table knows, its own
                items do not.

        Raises:
            FormatError: there is no such entry. Other StoreErrors as the datastore's.
        """
        files = self._open().files
        return files.entry_at(offset, directory_end) if offset else files.root()

    def entry_if_cached(self, offset: int, directory_end: int = 0) -> Entry | None:
        """The same if nothing has to be read for it: for the event loop, as all `_if_cached`."""
        files = self._cached()
        with suppress(NotCached, StoreError):
            return files.entry_at(offset, directory_end) if files and offset else None
        return None

    def listing(self, directory: Entry) -> Listing:
        """Everything in a directory. Raises StoreError."""
        tree = self._open()
        packed = tree.kept.get(directory.offset) if tree.kept else None
        if packed is None:
            packed = self._keep(tree, directory.offset, _packed(tree.files, directory))
        return self._list(tree.files, packed)

    def listing_if_cached(self, directory: Entry) -> Listing | None:
        """The same if nothing has to be read for it, and it is not too much to do on the way."""
        tree, files = self._last(), self._cached()
        with suppress(NotCached, StoreError):
            if tree and files and files.count(directory) <= MOST_ON_THE_WAY:
                packed = self._keep(tree, directory.offset, files.packed(directory))
                return self._list(files, packed)
        return None

    def listing_at_hand(self, offset: int, end: int) -> Listing | None:
        """The same of a directory by its number and end, if it was kept or is all in one chunk."""
        tree, files = self._last(), self._cached()
        if not tree or not files:
            return None
        with suppress(NotCached, StoreError):
            packed = None
            if tree.kept and 0 < tree.kept.size_of(offset) <= MOST_KEPT_BYTES:
                packed = tree.kept.get(offset)
            if packed is None:
                packed = tree.packed_at_hand(offset, end)
                if packed is None:
                    return None
                self._keep(tree, offset, packed)
            return self._list(files, packed)
        return None

    def _keep(self, tree: Tree, directory: int, packed: bytes) -> bytes:
        """A directory's children, which are kept if the tree keeps any."""
        if tree.kept is not None:
            tree.kept.put(directory, packed)
        return packed

    def _list(self, files: FileTree, packed: bytes) -> Listing:
        found = index(packed, MAX_NAME)
        if found.has_links:
            children = unpack_all(packed)
            packed = b"".join(pack(self._followed(files, child), child.name) for child in children)
            found = index(packed, MAX_NAME)
        return Listing(packed, found)

    def lookup(self, directory: Entry, name: bytes) -> Entry | None:
        """The entry of that name, a hard link's target for a hard link. Raises StoreError."""
        return self._lookup(self._open().files, directory, name)

    def lookup_if_cached(self, directory: Entry, name: bytes) -> Entry | None:
        """The same if nothing has to be read for it; None also when there is none."""
        files = self._cached()
        with suppress(NotCached, StoreError):
            return self._lookup(files, directory, name) if files else None
        return None

    def _lookup(self, files: FileTree, directory: Entry, name: bytes) -> Entry | None:
        entry = files.lookup(directory, name)
        return None if entry is None else self._followed(files, entry)

    def _followed(self, files: FileTree, entry: Entry) -> Entry:
        if entry.kind is not HARDLINK:
            return entry
        try:
            return files.follow(entry)
        except StoreError as error:
            # One bad link must not hide its directory; the link itself answers EIO.
            log.warning("%s: hard link %r: %s", self, entry.name, error)
            return entry

    def content(self, entry: Entry) -> Content:
        """Where a regular file's content is.

        Raises StoreError, also if it is not where it should be.
        """
        return self._open().content(entry)

    def content_if_cached(self, entry: Entry) -> Content | None:
        """The same if nothing has to be read for it: for the event loop."""
        tree = self._last()
        return None if tree is None else tree.content_if_cached(entry)

    def links(self) -> Links:
        """How many hard links each file has; counted at the first call, by one thread.

        Never raises StoreError.
        """
        with self._lock:
            links = self._links
            if links is None:
                links = self._links = self._count_links()
                self.node.view.link_budget.keep(self, links)
            return links

    def forget_links(self) -> None:
        """They are counted again when they are asked for."""
        self._links = None

    @property
    def known_links(self) -> Links | None:
        """The counted links, None until `links` was called (again): for the event loop."""
        return self._links

    def _count_links(self) -> Links:
        try:
            links = self._open().count_links()
        except StoreError as error:
            log.warning(
                "%s: hard links not counted, each name shows as a file of its own: %s", self, error
            )
            return Links()
        if len(links) == MAX_LINKS:
            log.warning("%s: hard links past %d are not counted", self, MAX_LINKS)
        return links


def _packed(files: FileTree, directory: Entry) -> bytes:
    if isinstance(files, Accessor):
        return files.packed(directory)
    return pack_all(files.iterate(directory))
