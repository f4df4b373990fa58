"""Catalogs (`catalog.pcat1.didx`): the names, sizes and times of all v1 archives of a snapshot.

    magic 8 | directory blocks, children before their parent | root block | root block's offset u64

    block    U(length of the rest) U(count) entries        root block: a `d` entry per archive
    entry    kind 1 | U(length) name | d: U(offset of this block - offset of the child's)
                                     | f: U(size) I(mtime in seconds)       other kinds: nothing

Numbers are base-128 groups, the lowest first, all but the last with the high bit set (U). In a
negative one (I) every group has it, and a zero byte follows.

Source: proxmox-backup pbs-datastore/src/catalog.rs (spec section 10).
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

from store.errors import FormatError
from store.format.buffer import ReadAt

PROXMOX_CATALOG_FILE_MAGIC_1_0 = bytes.fromhex("91fd60f9c46758d5")
DIRECTORY = b"d"
FILE = b"f"
# symlink, hard link, block device, character device, fifo, socket
OTHER_KINDS = frozenset({b"l", b"h", b"b", b"c", b"p", b"s"})
KINDS = OTHER_KINDS | {DIRECTORY, FILE}

MAX_NAME_LENGTH = 4095
MAX_U64 = 2**64 - 1
MIN_I64, MAX_I64 = -(2**63), 2**63 - 1
MAX_NUMBER_LENGTH = 11
MAX_ENTRY_LENGTH = 1 + 3 * MAX_NUMBER_LENGTH + MAX_NAME_LENGTH
ROOT_OFFSET = struct.Struct("<Q")
# How much of a large directory is in memory at once, before its entries are made.
WINDOW = 256 * 1024


def encode_unsigned(value: int) -> bytes:
    """Return U(value), 1 to 10 bytes. Raises FormatError outside 0 … 2^64 - 1."""
    if not 0 <= value <= MAX_U64:
        raise FormatError(f"catalog: {value} is not an unsigned 64-bit number")
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def encode_signed(value: int) -> bytes:
    """Return I(value), 1 to 11 bytes. Raises FormatError outside -2^63 … 2^63 - 1."""
    if not MIN_I64 <= value <= MAX_I64:
        raise FormatError(f"catalog: {value} is not a signed 64-bit number")
    groups = encode_unsigned(abs(value))
    return groups if value >= 0 else groups[:-1] + bytes((groups[-1] | 0x80, 0))


def decode_unsigned(data: bytes, position: int = 0) -> tuple[int, int]:
    """Return a number and the position behind it. Raises FormatError: too large, or cut short."""
    value, behind = _decode_groups(data, position)
    if value > MAX_U64 or _ends_in_zero(data, position, behind):
        raise FormatError("catalog: number out of range")
    return value, behind


def decode_signed(data: bytes, position: int = 0) -> tuple[int, int]:
    """Return a number and the position behind it. Raises FormatError: too large, or cut short."""
    value, behind = _decode_groups(data, position)
    if _ends_in_zero(data, position, behind):
        value = -value
    if not MIN_I64 <= value <= MAX_I64:
        raise FormatError("catalog: number out of range")
    return value, behind


def _ends_in_zero(data: bytes, start: int, behind: int) -> bool:
    """Say whether a zero byte follows other groups: the mark of a negative number."""
    return behind - start > 1 and data[behind - 1] == 0


def _decode_groups(data: bytes, position: int) -> tuple[int, int]:
    if position < len(data) and data[position] < 0x80:
        return data[position], position + 1
    value = shift = 0
    for behind, group in enumerate(data[position : position + MAX_NUMBER_LENGTH], position + 1):
        value |= (group & 0x7F) << shift
        if group < 0x80:
            return value, behind
        shift += 7
    raise FormatError("catalog: number cut short or too long")


@dataclass(slots=True)
class _OpenDirectory:
    """A directory whose block is not written yet: encoded entries, and where the distances go."""

    name: bytes
    count: int = 0
    entries: bytearray = field(default_factory=bytearray)
    # Position in `entries` behind a `d` entry's name, and the offset of the child's block.
    children: list[tuple[int, int]] = field(default_factory=list)

    def add(self, kind: bytes, name: bytes, extra: bytes = b"") -> None:
        self.entries += kind + encode_unsigned(len(name)) + name + extra
        self.count += 1

    def add_child(self, name: bytes, offset: int) -> None:
        self.add(DIRECTORY, name)
        self.children.append((len(self.entries), offset))

    def block(self, offset: int) -> bytes:
        """Return the block that stands at `offset`."""
        parts: list[bytes | bytearray] = [encode_unsigned(self.count)]
        done = 0
        for position, child in self.children:
            parts += self.entries[done:position], encode_unsigned(offset - child)
            done = position
        parts.append(self.entries[done:])
        return b"".join((encode_unsigned(sum(map(len, parts))), *parts))


class CatalogWriter:
    """Writes a catalog as a stream, directory by directory; what a call returns is to be appended.

    Calls must nest: start, then begin_archive … end_archive for each archive, with
    enter_directory … leave_directory inside, then finish. Entries keep the order of the calls.
    Memory holds the open directories only. A call out of order, a bad name or a number out of range
    raises FormatError and changes nothing. One caller at a time.
    """

    def __init__(self) -> None:
        self._position = 0
        self._open: list[_OpenDirectory] = []

    def start(self) -> bytes:
        """Begin the stream."""
        if self._position:
            self._refuse("start")
        self._open.append(_OpenDirectory(b""))
        return self._append(PROXMOX_CATALOG_FILE_MAGIC_1_0)

    def begin_archive(self, index_name: bytes) -> None:
        """Begin the archive whose index is `index_name`, for example `root.pxar.didx`."""
        if len(self._open) != 1:
            self._refuse("begin_archive")
        self._open.append(_OpenDirectory(_checked_name(index_name)))

    def enter_directory(self, name: bytes) -> None:
        """Begin a directory of the one that is open."""
        self._current("enter_directory")
        self._open.append(_OpenDirectory(_checked_name(name)))

    def file(self, name: bytes, size: int, mtime_s: int) -> None:
        """Add a regular file of `size` bytes; `mtime_s` is in seconds since the epoch, floored."""
        extra = encode_unsigned(size) + encode_signed(mtime_s)
        self._current("file").add(FILE, _checked_name(name), extra)

    def other(self, kind: bytes, name: bytes) -> None:
        """Add a symlink `l`, hard link `h`, device `b` or `c`, fifo `p` or socket `s`."""
        if kind not in OTHER_KINDS:
            raise FormatError(f"catalog: unknown kind {kind!r}")
        self._current("other").add(kind, _checked_name(name))

    def leave_directory(self) -> bytes:
        """End a directory and return its block."""
        if len(self._open) < 3:
            self._refuse("leave_directory")
        return self._close()

    def end_archive(self) -> bytes:
        """End an archive, all of whose directories have been left; return its root's block."""
        if len(self._open) != 2:
            self._refuse("end_archive")
        return self._close()

    def finish(self) -> bytes:
        """Return the end of the stream. No call may follow."""
        if len(self._open) != 1:
            self._refuse("finish")
        offset = self._position
        return self._append(self._open.pop().block(offset) + ROOT_OFFSET.pack(offset))

    def _close(self) -> bytes:
        directory, offset = self._open.pop(), self._position
        self._open[-1].add_child(directory.name, offset)
        return self._append(directory.block(offset))

    def _current(self, call: str) -> _OpenDirectory:
        if len(self._open) < 2:
            self._refuse(call)
        return self._open[-1]

    def _append(self, data: bytes) -> bytes:
        self._position += len(data)
        return data

    def _refuse(self, call: str) -> NoReturn:
        raise FormatError(f"catalog: {call} at depth {len(self._open)}, offset {self._position}")


# For the quick look at a whole catalog: kinds as bytes are indexed, one number and two of them.
_FILE, _DIRECTORY, _LINK = b"fdh"
_NUMBER = rb"[\x80-\xff]{0,10}[\x00-\x7f]"
_numbers = {count: re.compile(_NUMBER * count, re.DOTALL).match for count in (1, 2)}


class CatalogEntry(NamedTuple):
    """One name in a catalog. A tuple, because a directory may have millions.

    Attributes:
        kind: `d` directory, `f` file, or one of OTHER_KINDS.
        name: without a slash; never empty, `.` or `..`.
        size: bytes, of files; else 0.
        mtime_s: seconds since the epoch, of files; else 0.
        offset: where a directory's block is; else 0.
    """

    kind: bytes
    name: bytes
    size: int = 0
    mtime_s: int = 0
    offset: int = 0


class Catalog:
    """A catalog open for reading. Nothing is kept in memory; as thread-safe as its stream.

    All methods raise FormatError where the bytes are not a catalog, and what the stream raises.
    A directory's block lies before its parent's, so that no walk goes round in circles.
    """

    def __init__(self, stream: ReadAt) -> None:
        self._stream = stream
        size = stream.size
        minimum = len(PROXMOX_CATALOG_FILE_MAGIC_1_0) + ROOT_OFFSET.size
        if size < minimum:
            raise FormatError(f"catalog of {size} bytes: shorter than {minimum}")
        magic = stream.read(0, len(PROXMOX_CATALOG_FILE_MAGIC_1_0))
        if magic != PROXMOX_CATALOG_FILE_MAGIC_1_0:
            raise FormatError(f"not a catalog: it starts with {magic.hex()}")
        self._end = size - ROOT_OFFSET.size
        (offset,) = ROOT_OFFSET.unpack(stream.read(self._end, ROOT_OFFSET.size))
        self._root = CatalogEntry(DIRECTORY, b"", offset=offset)

    def may_have_links(self) -> bool:
        """Whether a hard link may be in it: one quick pass over all blocks, in order.

        True also where the bytes are not what they should be, for who reads on to find.
        """
        try:
            return _find_link(self._stream, len(PROXMOX_CATALOG_FILE_MAGIC_1_0), self._end)
        except (FormatError, IndexError):  # a number that does not end, an entry that is cut
            return True

    def archives(self) -> list[CatalogEntry]:
        """Return the archives' root directories, named after their index files."""
        return self.list(self._root)

    def list(self, directory: CatalogEntry) -> list[CatalogEntry]:
        """Return a directory's entries in archive order (sorted by name)."""
        return list(self.entries(directory))

    def lookup(self, directory: CatalogEntry, name: bytes) -> CatalogEntry | None:
        """Return the entry of that name, None if there is none. Reads up to it."""
        return next((entry for entry in self.entries(directory) if entry.name == name), None)

    def entries(self, directory: CatalogEntry) -> Iterator[CatalogEntry]:
        """Yield a directory's entries; a large one is read a window at a time."""
        offset = directory.offset
        window = _Window(self._stream, offset, self._end)
        length = window.unsigned()
        window.end_at(length)
        for _ in range(window.unsigned()):
            yield window.entry(offset)
        window.expect_end()


def _find_link(stream: ReadAt, offset: int, end: int) -> bool:
    """Whether an entry of kind `h` is in the blocks from `offset` to `end`."""
    data, position, left = b"", 0, 0
    while position < len(data) or offset < end:
        if len(data) - position <= MAX_ENTRY_LENGTH and offset < end:
            size = min(WINDOW, end - offset)
            data, position = data[position:] + stream.read(offset, size), 0
            offset += size
        whole = len(data) if offset == end else len(data) - MAX_ENTRY_LENGTH
        while position < whole:
            if left:
                if data[position] == _LINK:
                    return True
                position = _skip_entry(data, position)
                left -= 1
            else:
                left, position = decode_unsigned(data, _skip(data, position, 1))
        if position > len(data):
            return True
    return left > 0


def _skip(data: bytes, position: int, count: int) -> int:
    """Where one number, or two, end. Raises IndexError."""
    found = _numbers[count](data, position)
    if found is None:
        raise IndexError
    return found.end()


def _skip_entry(data: bytes, position: int) -> int:
    """Where the entry at `position` ends."""
    kind, length = data[position], data[position + 1]
    behind = position + 2
    if length > 0x7F:
        length, behind = decode_unsigned(data, position + 1)
    behind += length
    if kind == _FILE:
        return _skip(data, behind, 2)
    if kind == _DIRECTORY:
        return _skip(data, behind, 1)
    return behind


class _Window:
    """A block being read: `_data` from `_position` on, then the stream from `_offset` to `_end`."""

    __slots__ = ("_data", "_end", "_offset", "_position", "_stream")

    def __init__(self, stream: ReadAt, offset: int, end: int) -> None:
        if not len(PROXMOX_CATALOG_FILE_MAGIC_1_0) <= offset < end:
            raise FormatError(f"catalog: no block at {offset}")
        self._stream, self._offset, self._end = stream, offset, end
        self._data, self._position = b"", 0
        self._fill(MAX_ENTRY_LENGTH)

    def _fill(self, size: int) -> None:
        """Read on until an entry's worth is there, or the block's end."""
        count = min(size, self._end - self._offset)
        self._data = self._data[self._position :] + self._stream.read(self._offset, count)
        self._offset += count
        self._position = 0

    def end_at(self, length: int) -> None:
        """The block has `length` more bytes."""
        ahead = len(self._data) - self._position
        end = self._offset - ahead + length
        if end > self._end:
            raise FormatError(f"catalog: block of {length} bytes reaches past the end")
        if length < ahead:
            self._data = self._data[: self._position + length]
            self._offset = end
        self._end = end

    def unsigned(self) -> int:
        value, self._position = decode_unsigned(self._data, self._position)
        return value

    def entry(self, block_offset: int) -> CatalogEntry:
        """Read the next entry of the block at `block_offset`."""
        if len(self._data) - self._position < MAX_ENTRY_LENGTH and self._offset < self._end:
            self._fill(WINDOW)
        data, position = self._data, self._position
        kind = data[position : position + 1]
        length, position = decode_unsigned(data, position + 1)
        name = data[position : position + length]
        if len(name) != length:
            raise FormatError("catalog: block cut inside a name")
        _checked_name(name)
        self._position = position + length
        if kind == DIRECTORY:
            return CatalogEntry(kind, name, offset=self._child_offset(block_offset))
        if kind == FILE:
            size = self.unsigned()
            mtime_s, self._position = decode_signed(self._data, self._position)
            return CatalogEntry(kind, name, size, mtime_s)
        if kind not in OTHER_KINDS:
            raise FormatError(f"catalog: unknown kind {kind!r}")
        return CatalogEntry(kind, name)

    def _child_offset(self, block_offset: int) -> int:
        offset = block_offset - self.unsigned()
        if not len(PROXMOX_CATALOG_FILE_MAGIC_1_0) <= offset < block_offset:
            raise FormatError(f"catalog: directory at {block_offset} has a child at {offset}")
        return offset

    def expect_end(self) -> None:
        """Raise FormatError unless the block is used up: its length and its count disagree."""
        if self._position != len(self._data) or self._offset != self._end:
            raise FormatError("catalog: bytes left over in a block")


def _checked_name(name: bytes) -> bytes:
    if not 0 < len(name) <= MAX_NAME_LENGTH or name in {b".", b".."}:
        raise FormatError(f"catalog: bad name {name[:40]!r} ({len(name)} bytes)")
    if b"/" in name or b"\0" in name:
        raise FormatError(f"catalog: bad name {name[:40]!r}")
    return name
