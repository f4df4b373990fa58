"""One tree of files as the mount sees it: entries by number, directories as listings.

Everything here may read the datastore and is called in threads, from several at once; the caller
keeps the results.
"""

import logging
from threading import Lock
from typing import TYPE_CHECKING
from weakref import ref

from fsgateway.hardlinks import MAX_LINKS, Links
from fsgateway.listings import Listing
from fsgateway.readahead import Ways
from fsgateway.tree import TreeNode
from fsgateway.view import Content, Tree
from store.errors import StoreError
from store.format.pxar.entries import Entry, EntryKind
from store.trees.base import FileTree

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)


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

    def _open(self) -> Tree:
        tree = self.node.open()
        self._last = ref(tree)
        return tree

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

    def listing(self, directory: Entry) -> Listing:
        """Everything in a directory. Raises StoreError."""
        files = self._open().files
        listing = Listing()
        for entry in files.iterate(directory):
            listing.add(entry.name, self._followed(files, entry))
        return listing

    def lookup(self, directory: Entry, name: bytes) -> Entry | None:
        """The entry of that name, a hard link's target for a hard link. Raises StoreError."""
        files = self._open().files
        entry = files.lookup(directory, name)
        return None if entry is None else self._followed(files, entry)

    def _followed(self, files: FileTree, entry: Entry) -> Entry:
        if entry.kind is not EntryKind.HARDLINK:
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
