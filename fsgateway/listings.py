"""Directories and entries that were read lately, kept for the next request.

Used on the event loop only, so there are no locks.
"""

from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property
from itertools import islice

from fsgateway.inodes import MAX_OFFSET, OFFSET_BITS
from store.format.pxar.entries import Entry
from store.format.pxar.packed import Index, index, name_at, offset_at, unpack

# The kernel refuses a whole listing for one longer name; Linux file systems make at most 255.
MAX_NAME = 1024
# About 160 bytes each, and as much again where names are looked up: 12 MB, and an open directory
# keeps its own beside. Few, because they are listed again from chunks in memory in no time.
LISTED_ENTRIES = 40_000
RECENT_ENTRIES = 10_000
# Who asks about an entry has just read its directory, or a few directories since.
NEIGHBOURS = 16


class Listing:
    """A directory's entries in the tree's order; for a hard link, its target's entry.

    packed: as `store.format.pxar.packed` has them.
    starts: where the records begin that are shown: each name once, none too long for the kernel.
    """

    def __init__(self, packed: bytes, found: Index | None = None) -> None:
        """`found` are the records, if that is known. Raises FormatError: `packed` is no listing."""
        found = found or index(packed, MAX_NAME)
        self.packed = packed
        self.starts = found.starts
        if not found.ascends:  # a name may be there twice
            self.starts = type(self.starts)("Q", self._by_name.values())

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Entry]:
        return (unpack(self.packed, start) for start in self.starts)

    def entry(self, position: int) -> Entry:
        """The entry at a position."""
        return unpack(self.packed, self.starts[position])

    def find(self, name: bytes) -> Entry | None:
        """The entry of that name."""
        start = self._by_name.get(name)
        return None if start is None else unpack(self.packed, start)

    def at(self, offset: int) -> Entry | None:
        """The entry of that number."""
        start = self._by_offset.get(offset)
        return None if start is None else unpack(self.packed, start)

    @cached_property
    def _by_name(self) -> dict[bytes, int]:
        """In the same order; of equal names the first."""
        starts: dict[bytes, int] = {}
        for start in self.starts:
            starts.setdefault(name_at(self.packed, start), start)
        return starts

    @cached_property
    def _by_offset(self) -> dict[int, int]:
        return {offset_at(self.packed, start): start for start in self.starts}


class Listings:
    """The directories read last, by inode number, at most `budget` entries in all."""

    def __init__(self, budget: int = LISTED_ENTRIES) -> None:
        self._budget = budget
        self._used = 0
        self._listings: OrderedDict[int, Listing] = OrderedDict()

    def __len__(self) -> int:
        """How many entries are kept; an empty directory counts as one."""
        return self._used

    def get(self, inode: int) -> Listing | None:
        """The listing of a directory, if it is still here."""
        listing = self._listings.get(inode)
        if listing is not None:
            self._listings.move_to_end(inode)
        return listing

    def entry(self, inode: int) -> Entry | None:
        """The entry of a number, if it is in one of the directories read just now."""
        archive, offset = inode >> OFFSET_BITS, inode & MAX_OFFSET - 1
        for directory in islice(reversed(self._listings), NEIGHBOURS):
            if directory >> OFFSET_BITS == archive:
                entry = self._listings[directory].at(offset)
                if entry is not None:
                    return entry
        return None

    def keep(self, inode: int, listing: Listing) -> None:
        """Keep one and drop the oldest others; one that is larger than the budget is not kept."""
        if len(listing) >= self._budget or inode in self._listings:
            return
        self._listings[inode] = listing
        self._used += len(listing) + 1
        while self._used > self._budget:
            _, dropped = self._listings.popitem(last=False)
            self._used -= len(dropped) + 1


class RecentEntries:
    """The entries met last, by inode number: between `limit` and twice as many. Cheap to fill."""

    def __init__(self, limit: int = RECENT_ENTRIES) -> None:
        self._limit = limit
        self._young: dict[int, Entry] = {}
        self._old: dict[int, Entry] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, inode: int) -> Entry | None:
        """The entry of a number, if it is still here."""
        entry = self._young.get(inode)
        if entry is None:
            entry = self._old.get(inode)
            if entry is not None:
                self.keep(inode, entry)
        return entry

    def keep(self, inode: int, entry: Entry) -> None:
        """Keep one; when enough young ones are here, the old ones go."""
        if len(self._young) >= self._limit:
            self._old, self._young = self._young, {}
        self._young[inode] = entry
