"""The files of a part in a micro-VM, as a FileTree."""

import errno
import os
import stat
from collections.abc import Iterator
from functools import lru_cache
from threading import Lock

from store.disks.attributes import KINDS, encode_attributes
from store.disks.base import Omitted
from store.disks.microvm.extents import all_extents, runs_of
from store.disks.microvm.guest import Guest
from store.disks.microvm.protocol import (
    MAX_NAME,
    MAX_READ,
    Key,
    Op,
    Record,
    Reply,
    decode_extents,
    decode_page,
    decode_record,
    is_damage,
)
from store.disks.parsers.runs import RunStream
from store.errors import FormatError, IntegrityError
from store.format.buffer import ReadAt
from store.format.pxar.entries import Entry, EntryKind, encode_stat, name_is_valid

PAGE_SIZE = 256 * 1024
# A guest that has been taken over could go on listing for ever.
MAX_ENTRIES = 2_000_000
# From this size on it pays to ask where a file is, instead of for its bytes.
LARGE = 256 * 1024
# Large files whose places are remembered.
OPENED = 64
# A `payload_offset` no file has: its inode cannot be read, so neither can it.
UNREADABLE = (1 << 64) - 1


class GuestFiles:
    """A GuestTree. Thread-safe; several questions are answered at a time.

    An entry's number is its inode's, so that it is found again after the machine was stopped and
    without anything being kept for it; the guest's kernel opens inodes by number.
    """

    def __init__(self, guest: Guest, numbers: "Numbers | None" = None) -> None:
        """Starts the guest. Raises what it raises; FormatError: it cannot be mounted.

        numbers: those that files of this disk were given before, by a tree that is closed.
        """
        self._guest = guest
        self._numbers = Numbers(guest.name) if numbers is None else numbers
        self._large = lru_cache(OPENED)(self._find_large)
        self._omitted = Omitted(guest.name)
        self._top = guest.top()
        self._root = self._entry(self._record(Op.STAT, self._top))
        if self._root.kind is not EntryKind.DIRECTORY:
            raise IntegrityError(f"{guest.name}: its root is no directory")

    @property
    def guest(self) -> Guest:
        """Who answers."""
        return self._guest

    def close(self) -> None:
        self._guest.close()

    def root(self) -> Entry:
        return self._root

    def iterate(self, directory: Entry) -> Iterator[Entry]:
        key, cursor, count, last = self._key_of_directory(directory), 0, 0, False
        while not last:
            reply = self._ask(Op.LIST, key, cursor, PAGE_SIZE)
            records, cursor, last = decode_page(reply.payload, self._omitted)
            count += len(records)
            if count > MAX_ENTRIES:
                raise FormatError(
                    f"{self._guest.name}: {directory!r} has more than {MAX_ENTRIES} entries"
                )
            for record in records:
                yield self._entry(record)

    def lookup(self, directory: Entry, name: bytes) -> Entry | None:
        key = self._key_of_directory(directory)
        if len(name) > MAX_NAME or not name_is_valid(name):
            return None
        reply = self._guest.ask(Op.LOOKUP, key, name=name)
        if reply.error == errno.ENOENT:
            return None
        record = decode_record(self._checked(reply).payload)
        # File systems without case answer to other spellings; the name is the one asked for.
        if record.name != name:
            raise FormatError(f"{self._guest.name}: asked for {name!r}, got {record.name!r}")
        return self._entry(record)

    def follow(self, link: Entry) -> Entry:
        raise FormatError(f"{self._guest.name}: {link!r} is no hard link by name")

    def entry_at(self, offset: int, directory_end: int = 0) -> Entry:
        if offset == self._root.offset:
            return self._root
        entry = self._entry(self._record(Op.STAT, self._numbers.key(offset)))
        if entry.offset != offset:
            raise FormatError(f"{self._guest.name}: asked for {offset}, got {entry.offset}")
        return entry

    def content(self, file: Entry) -> tuple[ReadAt, int]:
        if file.kind is not EntryKind.FILE:
            raise FormatError(f"{self._guest.name}: {file!r} has no content")
        if file.payload_offset == UNREADABLE:
            raise IntegrityError(f"{self._guest.name}: {file!r}: its inode cannot be read")
        key = self._numbers.key(file.offset)
        if file.size >= LARGE and self._guest.has_plain_extents:
            return self._large(key, file.size), 0
        return FileStream(self, key, file.size), 0

    def read(self, file: Entry, offset: int, size: int) -> bytes:
        stream, _ = self.content(file)
        offset = min(max(0, offset), file.size)
        return stream.read(offset, min(max(0, size), file.size - offset))

    def read_some(self, key: Key, offset: int, size: int) -> bytes:
        """Up to MAX_READ bytes of a file."""
        return self._ask(Op.READ, key, offset, size).payload

    def wrong(self, why: str) -> IntegrityError:
        """An error that names the disk."""
        return IntegrityError(f"{self._guest.name}: {why}")

    def _find_large(self, key: Key, size: int) -> ReadAt:
        """Straight from the disk, many times faster, unless the file is packed in some way."""
        extents = all_extents(lambda at: decode_extents(self._ask(Op.EXTENTS, key, at).payload))
        runs = None if extents is None else runs_of(extents, size, self._guest.disk_size)
        if runs is None:
            return FileStream(self, key, size)
        return RunStream(ReplayedDisk(self._guest), runs, self._guest.name)

    def _record(self, op: Op, key: Key) -> Record:
        return decode_record(self._ask(op, key).payload)

    def _ask(self, op: Op, key: Key, offset: int = 0, size: int = 0) -> Reply:
        return self._checked(self._guest.ask(op, key, offset, size))

    def _checked(self, reply: Reply) -> Reply:
        if is_damage(reply.error):
            raise self.wrong(f"its file system is damaged, says Linux: {os.strerror(reply.error)}")
        if reply.error:
            raise FormatError(f"{self._guest.name}: {os.strerror(reply.error)}")
        return reply

    def _entry(self, record: Record) -> Entry:
        number = self._numbers.number(record.key)
        if record.error:
            return Entry(
                record.name, EntryKind.FILE, number, 0, encode_stat(stat.S_IFREG, 0, 0, 0, 0, 0),
                UNREADABLE, links=1,
            )  # fmt: skip
        kind = KINDS[stat.S_IFMT(record.mode)]
        return Entry(
            record.name, kind, number, 0,
            encode_attributes(record.mode, record.owner, record.mtime, record.xattrs),
            size=record.size if kind is EntryKind.FILE else 0,
            target=record.target, device=record.device, links=record.links,
        )  # fmt: skip

    def _key_of_directory(self, directory: Entry) -> Key:
        if directory.kind is not EntryKind.DIRECTORY:
            raise FormatError(f"{self._guest.name}: {directory!r} is no directory")
        return self._numbers.key(directory.offset)


class ReplayedDisk:
    """A part's bytes as the replay left them."""

    def __init__(self, guest: Guest) -> None:
        self._guest, self.size = guest, guest.disk_size
        self.read = guest.read_disk


class FileStream:
    """The content of one file."""

    def __init__(self, tree: GuestFiles, key: Key, size: int) -> None:
        self._tree, self._key, self.size = tree, key, size

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes. Raises FormatError past the end, IntegrityError."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise FormatError(f"{size} bytes at {offset} reach past the file's end ({self.size})")
        pieces = []
        while size:
            many = min(size, MAX_READ)
            piece = self._tree.read_some(self._key, offset, many)
            if len(piece) != many:
                raise self._tree.wrong(f"a file ends at {offset + len(piece)}, not {self.size}")
            pieces.append(piece)
            offset, size = offset + many, size - many
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Numbers:
    """Inodes as numbers below 2^46, both ways; thread-safe.

    Btrfs counts inodes in each subvolume: there a number is 14 bits of which subvolume, by order of
    appearance, and 32 bits of inode.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = Lock()
        self._roots: list[int] = []
        self._places: dict[int, int] = {}

    def number(self, key: Key) -> int:
        """Raises FormatError: there are too many, or it is too large."""
        if not key.root:
            if 0 < key.inode < 1 << 46:
                return key.inode
        elif 0 < key.inode < 1 << 32:
            return self._place(key.root) << 32 | key.inode
        raise FormatError(f"{self._name}: inode {key.inode} has no room in a mount")

    def key(self, number: int) -> Key:
        """Raises FormatError: no such number was given."""
        roots = self._roots
        if not roots:
            return Key(0, number)
        place, inode = number >> 32, number & 0xFFFF_FFFF
        if not 0 <= place < len(roots):
            raise FormatError(f"{self._name}: no file has the number {number}")
        return Key(roots[place], inode)

    def _place(self, root: int) -> int:
        with self._lock:
            place = self._places.get(root)
            if place is None:
                if len(self._roots) == 1 << 14:
                    raise FormatError(f"{self._name}: more than {1 << 14} Btrfs subvolumes")
                place = self._places[root] = len(self._roots)
                self._roots.append(root)
            return place
