"""The files of a file system that a child parses, as a FileTree."""

import stat
import struct
from collections.abc import Iterator
from functools import lru_cache

from store.disks.attributes import KINDS, encode_attributes
from store.disks.base import Omitted, SegmentStream
from store.disks.parsers import wire
from store.disks.parsers.files import HOLE, BadFile, Inode, Run
from store.disks.parsers.process import ParserProcess
from store.disks.parsers.runs import RunStream
from store.errors import FormatError, IntegrityError
from store.format.buffer import ReadAt
from store.format.pxar.entries import Entry, EntryKind, encode_stat

OPENED = 256
# A child that looks for the next name for two seconds says so; it may not go on for ever.
EMPTY_PAGES = 15
# A `payload_offset` no file has: its inode cannot be read, so neither can it.
UNREADABLE = (1 << 64) - 1


class ParsedTree:
    """A GuestTree. Thread-safe; requests are answered one after the other.

    Numbers are those of the parser: the same after the child was started again.
    """

    def __init__(self, process: ParserProcess) -> None:
        """Raises IntegrityError (it cannot be opened), and what the stream raises."""
        self._process = process
        self._root = self._one(wire.ROOT, 0)
        if self._root.kind is not EntryKind.DIRECTORY:
            raise self._wrong("its root is no directory")
        self._content = lru_cache(OPENED)(self._find_content)
        self._omitted = Omitted(process.name)

    def close(self) -> None:
        self._process.close()

    def root(self) -> Entry:
        return self._root

    def iterate(self, directory: Entry) -> Iterator[Entry]:
        self._check(directory)
        cursor, done, count, empty = 0, False, 0, 0
        while not done:
            payload = self._process.ask(wire.LIST, directory.offset, cursor)
            done, following, entries = self._page(payload)
            if not done and following < cursor:
                raise self._wrong("a directory that goes backwards")
            cursor, count = following, count + len(entries)
            empty = 0 if entries else empty + 1
            if count > self._process.most_entries or empty > EMPTY_PAGES:
                raise self._wrong("a directory without an end")
            yield from entries

    def _page(self, payload: bytes) -> tuple[bool, int, list[Entry]]:
        try:
            done, following = wire.PAGE.unpack_from(payload)
            found = wire.decode_inodes(payload[wire.PAGE.size :], omit=self._omitted)
            return bool(done), following, [self._entry(name, inode) for name, inode in found]
        except (BadFile, struct.error) as error:
            raise self._wrong(error) from error

    def lookup(self, directory: Entry, name: bytes) -> Entry | None:
        self._check(directory)
        if len(name) > wire.MAX_NAME:
            return None
        payload = self._process.ask(wire.LOOKUP, directory.offset, name=name)
        found = self._decoded(payload) if payload else []
        return found[0] if found and found[0].name == name else None

    def follow(self, link: Entry) -> Entry:
        raise FormatError(f"{self._process.name}: {link!r} is no hard link by name")

    def entry_at(self, offset: int, directory_end: int = 0) -> Entry:
        return self._root if offset == self._root.offset else self._one(wire.INODE, offset)

    def content(self, file: Entry) -> tuple[ReadAt, int]:
        if file.kind is not EntryKind.FILE:
            raise FormatError(f"{self._process.name}: {file!r} has no content")
        if file.payload_offset == UNREADABLE:
            raise self._wrong(f"{file!r}: its inode cannot be read")
        return self._content(file.offset, file.size)

    def read(self, file: Entry, offset: int, size: int) -> bytes:
        stream, start = self.content(file)
        offset = min(max(0, offset), file.size)
        return stream.read(start + offset, min(max(0, size), file.size - offset))

    def _find_content(self, number: int, size: int) -> tuple[ReadAt, int]:
        """Straight from the disk where that can be: only what is packed goes through the child."""
        payload, stream = self._process.ask(wire.RUNS, number), self._process.stream
        try:
            runs = wire.decode_runs(payload, size, stream.size)
        except (BadFile, struct.error) as error:
            raise self._wrong(error) from error
        if runs is None:
            return ChildStream(self._process, number, size), 0
        return _in_one_piece(stream, runs) or (RunStream(stream, runs, self._process.name), 0)

    def _one(self, op: int, number: int) -> Entry:
        found = self._decoded(self._process.ask(op, number), named=False)
        if len(found) != 1 or (op == wire.INODE and found[0].offset != number):
            raise self._wrong("its parser answered something else")
        return found[0]

    def _decoded(self, payload: bytes, *, named: bool = True) -> list[Entry]:
        try:
            found = wire.decode_inodes(payload, named=named)
            return [self._entry(name, inode) for name, inode in found]
        except (BadFile, struct.error) as error:
            raise self._wrong(error) from error

    def _entry(self, name: bytes, inode: Inode) -> Entry:
        entry = Entry(name, EntryKind.FILE, inode.number, 0, b"", UNREADABLE, links=inode.links)
        if inode.mode == wire.BROKEN:
            entry.raw_metadata = encode_stat(stat.S_IFREG, 0, 0, 0, 0, 0)
            return entry
        entry.kind = KINDS[stat.S_IFMT(inode.mode)]
        entry.raw_metadata = _metadata(inode)
        entry.payload_offset = 0
        entry.size, entry.target, entry.device = inode.size, inode.target, inode.device
        return entry

    def _check(self, directory: Entry) -> None:
        if directory.kind is not EntryKind.DIRECTORY:
            raise FormatError(f"{self._process.name}: {directory!r} is no directory")

    def _wrong(self, why: object) -> IntegrityError:
        return IntegrityError(f"{self._process.name}: {why}")


class ChildStream:
    """The content of one file that only the parser can make out."""

    def __init__(self, process: ParserProcess, number: int, size: int) -> None:
        self._process, self._number, self.size = process, number, size

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes. Raises FormatError past the end, IntegrityError."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise FormatError(f"{self._process.name}: {size} bytes at {offset} reach past the end")
        parts = []
        while size:
            many = min(size, wire.MAX_READ)
            data = self._process.ask(wire.READ, self._number, offset, many)
            if len(data) != many:
                raise IntegrityError(
                    f"{self._process.name}: {many} bytes of a file at {offset}, got {len(data)}"
                )
            parts.append(data)
            offset, size = offset + many, size - many
        return b"".join(parts)


def _in_one_piece(stream: ReadAt, runs: list[Run]) -> tuple[ReadAt, int] | None:
    """A file in one run is a range of the disk; of the image itself, if the part is one."""
    if len(runs) != 1 or runs[0].start == HOLE:
        return None
    start, size = runs[0]
    if isinstance(stream, SegmentStream):
        pieces = stream.pieces(start, size)
        if len(pieces) == 1:
            return stream.image, pieces[0].start
    return stream, start


def _metadata(inode: Inode) -> bytes:
    owner, mtime = (inode.uid, inode.gid), divmod(inode.mtime_ns, 1_000_000_000)
    return encode_attributes(inode.mode, owner, mtime, inode.xattrs)
