"""Directories and entries that were read lately, kept for the next request.

Used on the event loop only, so there are no locks.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from store.format.pxar.entries import Entry

# The kernel refuses a whole listing for one longer name; Linux file systems make at most 255.
MAX_NAME = 1024
# About 0.5 KB each: 20 MB, and an open directory keeps its own beside. Few, because they are listed
# again from chunks in memory in a microsecond or two each.
LISTED_ENTRIES = 40_000
RECENT_ENTRIES = 10_000


@dataclass(slots=True)
class Listing:
    """A directory's entries in archive order; for a hard link, its target's entry."""

    names: list[bytes] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    by_name: dict[bytes, Entry] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def add(self, name: bytes, entry: Entry) -> None:
        """Append one, unless its name is there already or too long for the kernel."""
        if len(name) <= MAX_NAME and name not in self.by_name:
            self.names.append(name)
            self.entries.append(entry)
            self.by_name[name] = entry


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

    def update(self, told: Iterable[tuple[int, Entry]]) -> None:
        """Keep many, which is at once what a reply has."""
        if len(self._young) >= self._limit:
            self._old, self._young = self._young, {}
        self._young.update(told)
