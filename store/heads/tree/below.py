"""What a head's tree stands on: the entries of a snapshot's archive, and their inode numbers."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from store.datastore.streams import IndexedStream
from store.errors import FormatError
from store.format.pxar.accessor import Accessor
from store.format.pxar.entries import Entry, EntryKind
from store.format.pxar.hardlinks import MAX_LINKS, Links, links_in_stream
from store.heads.base import WouldWait
from store.heads.journal import Hurry

ROOT = 1
OWN = 1 << 45
"""The first number of what the base did not have when the head was opened."""
KEPT_ENTRIES = 4096


class PatientStream:
    """A ReadAt that raises WouldWait in a thread that may not wait, if it had to."""

    def __init__(self, stream: IndexedStream, hurry: Hurry) -> None:
        self.stream, self.size, self._hurry = stream, stream.size, hurry

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes."""
        if not self._hurry.now:
            return self.stream.read(offset, size)
        found = self.stream.peek(offset, size)
        if found is None:
            raise WouldWait
        return bytes(found)


class Numbers:
    """Inode numbers of the base's entries.

    As long as the head was not sealed while it is open: their offsets. A seal moves entries in runs
    that keep their distances, so what is remembered of it are the runs' beginnings.
    """

    def __init__(self, runs: Iterable[tuple[int, int, int]] = ()) -> None:
        """`runs`: first number, offset of that one, and the number after the last."""
        self.runs = sorted(runs)
        self._by_offset = sorted((offset, number, end) for number, offset, end in self.runs)
        self._numbers = [run[0] for run in self.runs]
        self._offsets = [run[0] for run in self._by_offset]

    def offset(self, number: int) -> int | None:
        """Where the entry is now, None when it is not in the base."""
        if not self.runs:
            return number
        at = bisect_right(self._numbers, number) - 1
        if at < 0 or number >= self.runs[at][2]:
            return None
        return self.runs[at][1] + number - self.runs[at][0]

    def number(self, offset: int) -> int | None:
        """The other way round; None: the seal put something of the head's own there."""
        if not self.runs:
            return offset
        at = bisect_right(self._offsets, offset) - 1
        if at < 0:
            return None
        start, number, end = self._by_offset[at]
        found = number + offset - start
        return found if found < end else None


class Base:
    """The archive below. Thread-safe but for what its accessor remembers, which is under the lock.

    Raises what Accessor raises, and WouldWait in a hurried thread.
    """

    def __init__(
        self,
        metadata: IndexedStream,
        payload: IndexedStream | None,
        hurry: Hurry,
        links: Links | None = None,
    ) -> None:
        self.metadata, self.payload = metadata, payload
        self.accessor = Accessor(
            PatientStream(metadata, hurry),
            None if payload is None else PatientStream(payload, hurry),
        )
        self.root = self.accessor.root()
        self._hurry = hurry
        self._links = links
        self._entries: OrderedDict[int, Entry] = OrderedDict()

    def entry(self, offset: int) -> Entry:
        """The entry whose item is at an offset; a directory's end is looked up if need be."""
        found = self._entries.get(offset)
        if found is None:
            if offset == self.root.offset:
                return self.root
            found = self.accessor.path_to(offset)[-1]
            if found.offset != offset:
                raise FormatError(f"pxar archive: no entry begins at {offset}")
            self._remember(found)
        return found

    def lookup(self, directory: Entry, name: bytes) -> Entry | None:
        """A child; of a hard link its target."""
        found = self.accessor.lookup(directory, name)
        return None if found is None else self._followed(found)

    def children(self, directory: Entry, after: int = 0) -> Iterator[tuple[int, bytes, Entry]]:
        """Where each is, its name and entry, behind the one whose item is at `after`."""
        children = self.accessor.children(directory)
        if after:
            children.move_to(after)
            next(children, None)
        for entry in children:
            yield entry.offset, entry.name, self._followed(entry)

    def parent(self, offset: int) -> int:
        """The offset of the directory that an entry is in."""
        around = self.accessor.path_to(offset)[:-1]
        return around[-1].offset if around else self.root.offset

    def count_links(self, offset: int) -> int:
        """How many names a file has. The first time all links of the archive are counted."""
        if self._links is None:
            if self._hurry.now:
                raise WouldWait
            self._links = (
                Links(links_in_stream(self.metadata.chunks()))
                if self.payload is not None
                else Links(self._links_by_walking())
            )
        names = 1 + self._links.count(offset)
        # Past the limit nobody knows: then no file may be taken for one of a single name.
        return names if len(self._links) < MAX_LINKS else names + 1

    def _links_by_walking(self) -> Iterator[int]:
        """The targets of the links of an archive in one stream: by its directories."""
        todo = [self.root]
        while todo:
            for entry in self.accessor.iterate(todo.pop()):
                if entry.kind is EntryKind.DIRECTORY:
                    todo.append(entry)
                elif entry.kind is EntryKind.HARDLINK:
                    yield entry.target_offset

    def _followed(self, entry: Entry) -> Entry:
        if entry.kind is EntryKind.HARDLINK:
            entry = self.accessor.follow(entry)
        self._remember(entry)
        return entry

    def _remember(self, entry: Entry) -> None:
        self._entries[entry.offset] = entry
        if len(self._entries) > KEPT_ENTRIES:
            self._entries.popitem(last=False)

    def directory(self, offset: int) -> Entry:
        """A directory's entry. Raises FormatError when it is something else."""
        entry = self.entry(offset)
        if entry.kind is not EntryKind.DIRECTORY:
            raise FormatError(f"pxar archive: {entry!r} is no directory")
        return entry
