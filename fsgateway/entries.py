"""The entries of all trees by inode number: from memory at once, else from the datastore.

All of this runs on the event loop, so there are no locks; only reading crosses to a thread.
"""

import errno
from typing import TYPE_CHECKING

from pyfuse3 import InodeT

from fsgateway.archive import Archive
from fsgateway.bridge import Bridge, as_fuse_error
from fsgateway.hardlinks import Links
from fsgateway.inodes import MAX_OFFSET, EntryTable
from fsgateway.listings import Listing, Listings, RecentEntries
from store.format.pxar.entries import Entry, EntryKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from fsgateway._fuse_extra import ListingRequest

DIRECTORY = EntryKind.DIRECTORY
# About 2,000 entries of a metadata stream.
SMALL_BYTES = 256 << 10


class TreeEntries:
    """What the kernel knows of the inside of trees, and what was read of it lately.

    Attributes:
        table: the trees by number, and their directories' ends.
        start_soon: starts a background task, which is activity from then on; None before the mount
            runs and at its end.

    Every method raises StoreError, and OSError(ESTALE) for a number that was forgotten.
    """

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self.table: EntryTable[Archive] = EntryTable(on_reuse=self._forget)
        self.start_soon: Callable[..., object] | None = None
        self._forget()

    def _forget(self) -> None:
        """Start without entries, or again when a number means another archive's."""
        self._listings = Listings()
        self._recent = RecentEntries()
        self._last_parent = InodeT(0)

    # ----- one entry

    def known(self, inode: InodeT) -> Entry | None:
        """The entry of a number, if it was met lately."""
        entry = self._recent.get(inode)
        if entry is None:
            entry = self._listings.entry(inode)
            if entry is not None:
                self._recent.keep(inode, entry)
        return entry

    async def get(self, inode: InodeT) -> Entry:
        """The entry of a number, read again if it was not."""
        entry = self.known(inode)
        if entry is None:
            archive, offset = self.table.archive(inode)
            end = self.table.directory_end(inode)
            entry = archive.entry_if_cached(offset, end)
            if entry is None:
                entry = await self._bridge.of(archive).run(archive.entry, offset, end)
            self._recent.keep(inode, entry)
        return entry

    async def lookup(self, parent: InodeT, name: bytes) -> Entry | None:
        """The entry of a name in a directory."""
        listing = self._listings.get(parent)
        if listing is None and parent == self._last_parent and self._is_small(parent):
            listing = self._listing_at_once(parent)
        self._last_parent = parent
        if listing is not None:
            return listing.find(name)
        archive, _ = self.table.archive(parent)
        directory = await self.get(parent)
        entry = archive.lookup_if_cached(directory, name)
        if entry is None:
            entry = await self._bridge.of(archive).run(archive.lookup, directory, name)
        return entry

    def _is_small(self, directory: InodeT) -> bool:
        """Whether its listing is made in no time: worth it for who looks up one name after another.

        The kernel does so when it still has a listing, but not what is in it.
        """
        size: int = self.table.directory_end(directory) - directory % MAX_OFFSET
        return size <= SMALL_BYTES

    def remember(self, inode: InodeT, entry: Entry) -> None:
        """The kernel was told of an entry."""
        self.table.remember(inode, entry.end if entry.kind is DIRECTORY else None)
        self._recent.keep(inode, entry)

    async def links(self, archive: Archive) -> Links:
        """How many names its files have."""
        links = archive.known_links
        return links if links is not None else await self._bridge.of(archive).run(archive.links)

    # ----- a directory

    async def listing(self, inode: InodeT) -> Listing:
        """Everything in a directory."""
        listing = self._listing_at_once(inode)
        if listing is None:
            entry = await self.get(inode)
            archive, _ = self.table.archive(inode)
            listing = archive.listing_if_cached(entry)
            if listing is None:
                listing = await self._bridge.of(archive).run(archive.listing, entry)
            self._listings.keep(inode, listing)
        return listing

    def _listing_at_once(self, inode: InodeT) -> Listing | None:
        listing = self._listings.get(inode)
        if listing is None:
            archive, offset = self.table.archive(inode)
            listing = archive.listing_at_hand(offset, self.table.directory_end(inode))
            if listing is not None:
                self._listings.keep(inode, listing)
        return listing

    def read_directory(self, request: "ListingRequest", inode: int) -> None:
        """Answer for `extra_handlers.set_listing`: at once, or by a task of its own."""
        number = InodeT(inode)
        try:
            links = self.table.archive(number)[0].known_links
            listing = self._listing_at_once(number) if links is not None else None
        except Exception as error:  # noqa: BLE001 - as for every handler: an errno, no end of the mount
            request.reply_error(as_fuse_error(error, "readdir").errno)
            return
        if listing is not None and links is not None:
            request.reply_listing(listing.packed, listing.starts, links.targets)
        elif self.start_soon is None:
            request.reply_error(errno.EIO)
        else:
            self.start_soon(self._read_directory, request, number)

    async def _read_directory(self, request: "ListingRequest", inode: InodeT) -> None:
        try:
            # First: that a tree cannot be opened is to be said once, and by this.
            listing = await self.listing(inode)
            links = await self.links(self.table.archive(inode)[0])
        except Exception as error:  # noqa: BLE001 - as above
            request.reply_error(as_fuse_error(error, "readdir").errno)
        else:
            request.reply_listing(listing.packed, listing.starts, links.targets)
