"""The names of several directories in one: what a listing of merged snapshots is made of."""

from collections.abc import Iterable, Iterator

from store.format.pxar.entries import Entry, EntryKind
from store.trees.closed import is_alike
from store.trees.moments import Moment
from store.trees.places import Found


class Name:
    """What the snapshots have under one name, as far as a listing needs it.

    directories: the metadata of its directories, the newest first, alike ones once.
    """

    __slots__ = ("directories", "newest")

    def __init__(self, newest: Found) -> None:
        self.newest = newest
        self.directories: list[bytes] = []

    def add(self, raw: bytes) -> None:
        """One more directory of this name."""
        if not any(is_alike(known, raw) for known in self.directories):
            self.directories.append(raw)


class Union:
    """Collects the entries of directories, given from the newest to the oldest."""

    def __init__(self) -> None:
        self._names: dict[bytes, Name] = {}

    def add(self, position: int, moment: Moment, entries: Iterable[Entry]) -> None:
        """All of one snapshot's directory."""
        names, directory = self._names, EntryKind.DIRECTORY
        for entry in entries:
            name = names.get(entry.name)
            if name is None:
                name = names[entry.name] = Name(Found(position, moment, entry))
            if entry.kind is directory:
                name.add(entry.raw_metadata)

    def sorted(self) -> Iterator[Name]:
        """Every name once, in order."""
        return (self._names[name] for name in sorted(self._names))
