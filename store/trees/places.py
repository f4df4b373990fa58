"""What all snapshots of an archive have at one path, and the number that leads there.

The archives are thought of as laid one after the other, the newest first: an entry's number is its
place among their bytes. So nothing has to be remembered: a number is an entry of one archive, whose
goodbye tables lead to its path, and the path to what all the others have there.
"""

import logging
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from threading import Lock
from typing import NamedTuple, TypeAlias, TypeVar

from store.errors import FormatError, IntegrityError, NotFound
from store.format.pxar.accessor import Accessor
from store.format.pxar.entries import Entry, EntryKind
from store.format.pxar.unlike import Known
from store.trees.moments import UNREADABLE, Moment

log = logging.getLogger(__name__)

T = TypeVar("T")
Path: TypeAlias = tuple[bytes, ...]

# What an inode number has room for.
MAX_NUMBER = 1 << 46
# Paths, with an entry of about 0.4 KB for each snapshot: 13 MB for 500 of them.
REMEMBERED = 64

Warm = Callable[[Sequence[Callable[[], object]]], None]


class Found(NamedTuple):
    """What a snapshot has at a path; `position` is the moment's among all."""

    position: int
    moment: Moment
    entry: Entry

    @property
    def is_directory(self) -> bool:
        """Of the entry."""
        return self.entry.kind is EntryKind.DIRECTORY

    def names(self) -> Accessor:
        """The archive. Raises IntegrityError: it was readable, and is no more."""
        names = self.moment.names()
        if names is None:
            raise IntegrityError(f"{self.moment.label}: cannot be read any more")
        return names

    def followed(self) -> Entry:
        """The entry, or the file that it is another name of. Raises FormatError."""
        is_link = self.entry.kind is EntryKind.HARDLINK
        return self.names().follow(self.entry) if is_link else self.entry


class Place(NamedTuple):
    """All that is at one path, the newest first; something always is."""

    path: Path
    found: tuple[Found, ...]

    def directories(self) -> list[Found]:
        """The directories, the newest first."""
        return [found for found in self.found if found.is_directory]

    def files(self) -> list[Found]:
        """What is no directory, the oldest first."""
        return [found for found in reversed(self.found) if not found.is_directory]


class Places:
    """The moments of one archive, asked together. Thread-safe; remembers the places met last.

    Every method raises BackendError; damage is left out and logged (moments.py).
    """

    def __init__(self, moments: Sequence[Moment], warm: Warm | None = None) -> None:
        """Opens nothing yet.

        Args:
            moments: newest first. One that is the same bytes as the next older one is not asked.
            warm: makes calls at once and drops what comes of them, where the storage is far away.
        """
        self._moments = _numbered(_distinct(moments))
        self._starts = [0, *accumulate(moment.size for moment in self._moments)][:-1]
        self._warm = warm
        self._places: OrderedDict[Path, Place] = OrderedDict()
        self._lock = Lock()

    def moment(self, number: int) -> Moment:
        """Whose entry a number is."""
        return self._moments[bisect_right(self._starts, number) - 1]

    def number(self, found: Found) -> int:
        """The number of an entry."""
        return self._starts[found.position] + found.entry.offset

    def root(self) -> Place:
        """The roots of all. Raises KeyRequired, IntegrityError, ... when none can be read."""
        self._warm_up([moment.names for moment in self._moments])
        opened = ((at, one, one.names()) for at, one in enumerate(self._moments))
        found = tuple(Found(at, one, names.root()) for at, one, names in opened if names)
        if not found:
            errors = [moment.error for moment in self._moments if moment.error is not None]
            raise errors[0] if errors else NotFound("no snapshot has it")
        return Place((), found)

    def child(self, place: Place, name: bytes) -> Place | None:
        """All that has a name in the directories of a place."""
        path = (*place.path, name)
        known = self._remembered(path)
        if known is not None:
            return known
        directories = place.directories()
        self._warm_up([partial(_lookup, found, name) for found in directories])
        entries = [asked(found, partial(_lookup, found, name)) for found in directories]
        pairs = zip(directories, entries, strict=True)
        there = tuple(found._replace(entry=entry) for found, entry in pairs if entry is not None)
        if not there:
            return None
        child = Place(path, there)
        self._remember(path, child)
        return child

    def at(self, path: Path) -> Place:
        """What is at a path. Raises FormatError: nothing is, any more."""
        depth, place = len(path), self._remembered(path)
        while place is None and depth:
            depth -= 1
            place = self._remembered(path[:depth])
        if place is None:
            place = self.root()
            self._remember((), place)
        for name in path[depth:]:
            child = self.child(place, name)
            if child is None:
                raise FormatError(f"nothing is at {b'/'.join(path)!r}, any more")
            place = child
        return place

    def entry(self, number: int) -> tuple[Path, Found]:
        """The innermost entry around a number, and its path. Raises FormatError, IntegrityError."""
        position = bisect_right(self._starts, number) - 1
        moment = self._moments[position]
        names = moment.names()
        if names is None:
            raise IntegrityError(f"{moment.label}: cannot be read any more: {moment.error}")
        path = names.path_to(number - self._starts[position])
        return tuple(entry.name for entry in path), Found(position, moment, path[-1])

    def listings(self, place: Place) -> Iterator[tuple[Found, Iterator[Entry]]]:
        """For each directory of a place, the newest first, what is in it and was not in newer ones.

        That is: a name with the metadata that it had there need not be given again.
        """
        directories, known = place.directories(), Known()
        self._warm_up([partial(_begin, found) for found in directories])
        for found in directories:
            yield found, _list(found, known)

    def _warm_up(self, asks: Sequence[Callable[[], object]]) -> None:
        if self._warm is not None and len(asks) > 1:
            self._warm(asks)

    def _remembered(self, path: Path) -> Place | None:
        with self._lock:
            place = self._places.get(path)
            if place is not None:
                self._places.move_to_end(path)
            return place

    def _remember(self, path: Path, place: Place) -> None:
        with self._lock:
            self._places[path] = place
            self._places.move_to_end(path)
            while len(self._places) > REMEMBERED:
                self._places.popitem(last=False)


def asked(found: Found, ask: Callable[[], T]) -> T | None:
    """What a snapshot answers; None, and a log line, where it is damaged."""
    try:
        return ask()
    except UNREADABLE as error:
        found.moment.report(error)
        return None


def _lookup(found: Found, name: bytes) -> Entry | None:
    return found.names().lookup(found.entry, name)


def _begin(found: Found) -> Entry | None:
    return next(found.names().iterate(found.entry), None)


def _list(found: Found, known: Known) -> Iterator[Entry]:
    """What is new in a snapshot's directory, up to where it is damaged."""
    try:
        yield from found.names().unlike(found.entry, known)
    except UNREADABLE as error:
        found.moment.report(error)


def _distinct(moments: Sequence[Moment]) -> list[Moment]:
    """Without those that are the same bytes as the next older one."""
    older = [*moments[1:], None]
    return [
        moment
        for moment, next_older in zip(moments, older, strict=True)
        if next_older is None or not moment.identity or moment.identity != next_older.identity
    ]


def _numbered(moments: Sequence[Moment]) -> list[Moment]:
    """As many of the newest as there are numbers for: 64 TiB of archives."""
    ends = [*accumulate(moment.size for moment in moments)]
    count = bisect_right(ends, MAX_NUMBER - 1)
    for moment in moments[count:]:
        moment.report(FormatError("more archives than there are inode numbers for"))
    return [*moments[:count]]
