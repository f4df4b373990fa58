"""Random access to a pxar archive, by its goodbye tables.

A directory's items lie between its content_offset and its goodbye table; what a child reaches over
lies within. So every step down is a strictly smaller range, whatever a hostile archive says, and a
listing only moves forward.

Source: pxar src/accessor/mod.rs (spec 9.7, 9.10).
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import lru_cache, partial
from typing import TypeVar

from store import native
from store.errors import FormatError, NotFound
from store.format.buffer import Buffer, ReadAt
from store.format.pxar.entries import (
    Entry,
    EntryKind,
    hash_name,
    payload_header,
)
from store.format.pxar.goodbye import GoodbyeTable
from store.format.pxar.items import HEADER_SIZE, PXAR_PAYLOAD, PXAR_PAYLOAD_REF
from store.format.pxar.packed import pack
from store.format.pxar.parser import KINDS, EntryParser, Incomplete
from store.format.pxar.preamble import read_preamble
from store.format.pxar.unlike import Known, unlike

M = TypeVar("M")
ParseMany = Callable[[bytes, int, int, bytes, int, int], tuple[list[Entry], int]]
PackMany = Callable[[bytes, int, int, bytes, int, int], tuple[bytes, int]]
PackDirectory = Callable[[Buffer, int, int, int, int], bytes | None]


def _in_c() -> tuple[ParseMany, PackMany, PackDirectory]:
    """The parsers in C; where the extension was not built, they never find any."""
    if not native.is_usable("store.format.pxar._entries"):
        return (
            lambda _window, _base, position, *_: ([], position),
            lambda _window, _base, position, *_: (b"", position),
            lambda *_: None,
        )
    from store.format.pxar import _entries

    return (
        lambda *at_hand: _entries.children(Entry, KINDS, *at_hand),
        lambda *at_hand: _entries.children(None, None, *at_hand),
        _entries.directory,
    )


# The last is for all of a directory that is at hand from its FILENAME to its end.
parse_many, pack_many, pack_directory = _in_c()

# One child alone; the first and the largest window of a listing.
CHILD_WINDOW = 512
FIRST_WINDOW = 4 * 1024
LARGEST_WINDOW = 256 * 1024
# Open tables keep up to 64 KiB each.
OPEN_TABLES = 32
# Of a directory whose children are being listed, and have many directories among them.
LARGEST_TABLE = 8 << 20


class Accessor:
    """One archive, looked at anywhere. Safe to use from several threads if its streams are.

    Memory: 2 MiB of goodbye tables at most, whatever the archive's size; list() as many entries as
        there are.

    Attributes:
        version: of the format, 1 or 2.
        prelude: of a v2 archive, None without.

    Every method raises FormatError when the archive is damaged, and what its streams raise.
    """

    def __init__(
        self, metadata: ReadAt, payload: ReadAt | None = None, *, tables: int = OPEN_TABLES
    ) -> None:
        """Open an archive.

        Args:
            metadata: the archive (v1) or the metadata stream (v2).
            payload: the payload stream (v2). Without it files have no content, all else works.
            tables: how many goodbye tables stay open: fewer where many archives are.
        """
        self._metadata = metadata
        self._payload = payload
        preamble = read_preamble(metadata.read)
        self.version, self.prelude = preamble.version, preamble.prelude
        self.content_item = PXAR_PAYLOAD if self.version == 1 else PXAR_PAYLOAD_REF
        self._root = self._read_root(preamble.root_offset)
        self._tables = tables
        self._open_table = self._opener(metadata)
        self._table(self._root)

    def _opener(self, metadata: ReadAt) -> Callable[[int, int, int], GoodbyeTable]:
        return lru_cache(self._tables)(partial(GoodbyeTable, metadata))

    def through(self, metadata: ReadAt) -> "Accessor":
        """The same archive, read through another stream of the same bytes; nothing is read now."""
        other = copy(self)
        other._metadata, other._open_table = metadata, self._opener(metadata)
        return other

    def root(self) -> Entry:
        """The root directory; its name is empty."""
        return self._root

    def list(self, directory: Entry) -> list[Entry]:
        """The children of a directory, in archive order (by raw name)."""
        return [*self.iterate(directory)]

    def iterate(self, directory: Entry) -> Iterator[Entry]:
        """The same one by one, for directories of millions."""
        children = self.children(directory)
        while batch := children.batch():
            yield from batch

    def packed(self, directory: Entry) -> bytes:
        """The children of a directory as a packed listing (packed.py)."""
        return b"".join(iter(self.children(directory).packed, b""))

    def count(self, directory: Entry) -> int:
        """How many children a directory has."""
        return self._table(directory).count

    def children(self, directory: Entry) -> "Children":
        """The same, and the bytes they are read from."""
        return Children(self, self._table(directory), directory.content_offset)

    def extent(self, directory: Entry) -> tuple[ReadAt, int, int]:
        """Where everything below a directory is stored: stream, offset, size.

        Equal bytes there are equal trees; their contents with them in a v1 archive.
        """
        self._table(directory)
        start = directory.content_offset
        return self._metadata, start, directory.end - start

    def lookup(self, directory: Entry, name: bytes) -> Entry | None:
        """The child of this name, or None."""
        table = self._table(directory)
        for offset, size in table.find(hash_name(name)):
            entry = self.child_at(offset, size, table)
            if entry.name == name:
                return entry
        return None

    def resolve(self, path: bytes) -> Entry:
        """The entry at a path from the root; links are not followed, needless slashes allowed.

        Raises:
            NotFound: no such entry, or something before the last slash is no directory.
        """
        entry: Entry | None = self._root
        for name in path.split(b"/"):
            if name and entry is not None:
                is_directory = entry.kind is EntryKind.DIRECTORY
                entry = self.lookup(entry, name) if is_directory else None
        if entry is None:
            raise NotFound(f"no {path.decode(errors='backslashreplace')} in the archive")
        return entry

    def follow(self, link: Entry) -> Entry:
        """The regular file that a hard link is another name of."""
        offset = link.target_offset
        if link.kind is not EntryKind.HARDLINK or offset < self._root.content_offset:
            raise FormatError(f"pxar archive: {link!r} links to {offset}, which is no file")
        target = self._child(offset, link.offset)
        if target.kind is not EntryKind.FILE:
            raise FormatError(
                f"pxar archive: {link!r} links to {target!r}, which is no regular file"
            )
        return target

    def entry_at(self, offset: int, directory_end: int = 0) -> Entry:
        """An entry met before, by its `offset` (not the root's); of a directory also its `end`."""
        table = self._table(self._root)
        entry = self._child(offset, table.start)
        if entry.kind is EntryKind.DIRECTORY:
            self._bound_directory(entry, table, directory_end - offset)
        return entry

    def path_to(self, offset: int) -> Sequence[Entry]:
        """The innermost entry around `offset`, and before it the directories it is in.

        Without the root. Goodbye tables are searched from their start: for what was met before.
        """
        table = self._table(self._root)
        path: list[Entry] = []
        while not path or _is_inside(offset, path[-1]):
            if path:
                table = self._table(path[-1])
            path.append(self.child_at(*table.around(offset), table))
        return path

    def unlike(self, directory: Entry, known: Known) -> Iterator[Entry]:
        """The children that are not as known from other directories (see `unlike`)."""
        return unlike(self, self._table(directory), known)

    def child_at(self, offset: int, size: int, table: GoodbyeTable) -> Entry:
        """The child at `offset`, by its record in the directory's table."""
        entry = self._child(offset, table.start)
        if entry.kind is EntryKind.DIRECTORY:
            self._bound_directory(entry, table, size)
        return entry

    def content(self, file: Entry) -> tuple[ReadAt, int]:
        """The stream that has a regular file's content, and the offset in it.

        `file.size` bytes are there.
        """
        if file.kind is not EntryKind.FILE:
            raise FormatError(f"pxar archive: {file!r} has no content")
        if self.version == 1:
            stream, offset = self._metadata, file.payload_offset
        else:
            stream, offset = self._checked_payload(file), file.payload_offset + HEADER_SIZE
        if offset + file.size > stream.size:
            raise FormatError(
                f"pxar archive: content of {file!r}: {file.size} bytes reach past {stream.size}"
            )
        return stream, offset

    def read(self, file: Entry, offset: int, size: int) -> bytes:
        """Up to `size` bytes of a regular file's content, fewer only at its end."""
        stream, start = self.content(file)
        offset = min(max(0, offset), file.size)
        return stream.read(start + offset, min(max(0, size), file.size - offset))

    def _checked_payload(self, file: Entry) -> ReadAt:
        """The payload stream, if it has the header of this file's content where it should."""
        if self._payload is None:
            raise FormatError(
                f"pxar archive: content of {file!r}: opened without its payload stream"
            )
        offset = file.payload_offset
        if offset + HEADER_SIZE > self._payload.size:
            raise FormatError(
                f"pxar archive: content of {file!r}: {offset} is past the payload stream"
            )
        found = self._payload.read(offset, HEADER_SIZE)
        if found != payload_header(file.size):
            raise FormatError(
                f"pxar archive: content of {file!r}: no header of {file.size} bytes at {offset}"
            )
        return self._payload

    def next_child(self, parser: EntryParser, position: int, table: GoodbyeTable) -> Entry:
        """The child at `position` of what a parser has. Raises Incomplete, FormatError."""
        entry = parser.child(position)
        if entry.kind is EntryKind.DIRECTORY:
            self._bound_directory(entry, table, self._stored_size(entry, table))
        elif entry.end > table.start:
            raise _overlap(entry, table.start)
        return entry

    def _read_root(self, offset: int) -> Entry:
        limit = self._metadata.size - HEADER_SIZE
        end = offset
        while True:
            window = self.window(offset, CHILD_WINDOW, end, limit)
            try:
                root = EntryParser(window, offset, self.content_item).root()
            except Incomplete as error:
                end = error.end
            else:
                root.end = self._metadata.size
                return root

    def _table(self, directory: Entry) -> GoodbyeTable:
        if directory.kind is not EntryKind.DIRECTORY:
            raise FormatError(f"pxar archive: {directory!r} is no directory")
        # Quirk: the root's table points to the start of the stream, not to its ENTRY.
        stat_offset = directory.stat_offset if directory.name else 0
        return self._open_table(directory.content_offset, directory.end, stat_offset)

    def _bound_directory(self, entry: Entry, table: GoodbyeTable, size: int) -> None:
        """Set the end of a directory, which only the table around it knows."""
        end = entry.offset + size
        if not entry.content_offset < end <= table.start:
            raise FormatError(
                f"pxar archive: {entry!r} ends at {end}, its parent's table is at {table.start}"
            )
        entry.end = end

    def _stored_size(self, entry: Entry, table: GoodbyeTable) -> int:
        for offset, size in table.find(hash_name(entry.name)):
            if offset == entry.offset:
                return size
        raise FormatError(
            f"pxar archive: {entry!r} is missing in the goodbye table at {table.start}"
        )

    def _child(self, offset: int, limit: int) -> Entry:
        """Parse the child at `offset`, all of which must lie before `limit`."""
        end = offset
        while True:
            window = self.window(offset, CHILD_WINDOW, end, limit)
            try:
                entry = EntryParser(window, offset, self.content_item).child(0)
            except Incomplete as error:
                end = error.end
                continue
            if entry.end > limit:
                raise _overlap(entry, limit)
            return entry

    def window(self, offset: int, size: int, end: int, limit: int) -> bytes:
        """About `size` bytes of what lies before `limit`, at least up to `end`.

        The header of the item at `limit` may be looked at too. Twice as much when one entry is
        larger than `size`, so that it is not parsed once per item.
        """
        stop, needed = limit + HEADER_SIZE, end - offset
        if end > stop:
            raise FormatError(f"pxar archive: the entry at {offset} reaches past {limit}")
        return self._metadata.read(
            offset, min(size if needed <= size else 2 * needed, stop - offset)
        )


class Children(Iterator[Entry]):
    """Goes through a directory's children in archive order, reading larger and larger pieces."""

    def __init__(self, accessor: Accessor, table: GoodbyeTable, position: int) -> None:
        self._accessor, self._table = accessor, table
        self._position = self._base = position
        self._buffer, self._size = b"", FIRST_WINDOW
        self._parser = EntryParser(b"", position, accessor.content_item)
        self._records = table.item()

    def batch(self) -> list[Entry]:
        """The next children, as many as are at hand; at the end none."""
        return self._many(parse_many) or self._one()

    def packed(self) -> bytes:
        """The same, packed."""
        return self._many(pack_many) or b"".join(map(pack, self._one()))

    def _many(self, parse: Callable[[bytes, int, int, bytes, int, int], tuple[M, int]]) -> M | None:
        """What the parser in C makes of what is at hand; may be nothing."""
        if self._position >= self._table.start:
            return None
        if self._position - self._base >= len(self._buffer):
            self._read_on(self._position)
        found, position = parse(
            self._buffer,
            self._base,
            self._position - self._base,
            self._records,
            self._table.start,
            self._accessor.content_item,
        )
        if found:
            self._position = self._base + position
        return found

    def _one(self) -> list[Entry]:
        return [self._next_alone()] if self._position < self._table.start else []

    def _next_alone(self) -> Entry:
        """The next child, if it is cut by the window, or not of the usual kind."""
        entry = next(self)
        if entry.kind is EntryKind.DIRECTORY:
            self._records = self._table.item(LARGEST_TABLE)
        return entry

    def __next__(self) -> Entry:
        if self._position >= self._table.start:
            raise StopIteration
        if self._position - self._base >= len(self._buffer):
            self._read_on(self._position)
        while True:
            try:
                entry = self._accessor.next_child(
                    self._parser, self._position - self._base, self._table
                )
            except Incomplete as error:
                self._read_on(error.end)
                continue
            self._position = entry.end
            return entry

    def raw(self, entry: Entry) -> tuple[memoryview, int]:
        """Bytes of the archive, and where in them `entry`, the child given last, begins.

        Behind it what is at hand of its siblings, the last one perhaps cut: nobody has checked it.
        """
        end = min(len(self._buffer), self._table.start - self._base)
        return memoryview(self._buffer)[:end], entry.offset - self._base

    def move_to(self, offset: int) -> None:
        """Go on with the child at `offset`: those before it the caller has recognised in `raw`."""
        self._position = offset

    def _read_on(self, end: int) -> None:
        """Read from here to `end` and beyond.

        Larger and larger while pieces are used up; small again after a jump over a subtree or a
        file's content.
        """
        used_up = self._position - self._base <= len(self._buffer)
        self._size = min(2 * self._size, LARGEST_WINDOW) if used_up else FIRST_WINDOW
        limit = self._table.start
        self._buffer = self._accessor.window(self._position, self._size, end, limit)
        self._base = self._position
        self._parser = EntryParser(self._buffer, self._base, self._accessor.content_item)


def _overlap(entry: Entry, limit: int) -> FormatError:
    return FormatError(f"pxar archive: {entry!r} ends at {entry.end}, its range at {limit}")


def _is_inside(offset: int, entry: Entry) -> bool:
    """Whether `offset` is among the children of a directory, not in its own items."""
    return entry.kind is EntryKind.DIRECTORY and offset >= entry.content_offset
