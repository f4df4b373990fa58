"""What we and the program in the micro-VM (agent.c) say to each other. Pure.

    request := length u32 | id u32 | op u32 | root u64 | inode u64 | offset u64 | size u32 | name
    reply   := length u32 | id u32 | errno i32 | payload
    ready   := version u32 | root u64 | inode u64 | kernel log          (unasked, of id 0)
    record  := root u64 | inode u64 | size u64 | mtime_s i64 | mtime_ns u32 | mode u32 | uid u32
             | gid u32 | links u32 | major u32 | minor u32 | errno i32
             | name_size u16 | target_size u16 | xattrs_size u32 | name | target | xattrs
    xattr   := name_size u16 | value_size u32 | name | value
    page    := next u64 | count u32 | last u32 | record*
    extents := (logical u64 | physical u64 | size u64 | flags u32)*

Little-endian; a length does not count itself. `root` is the Btrfs subvolume, 0 elsewhere. What the
guest says is not to be believed: whoever wrote its disk may have taken it over.
"""

import errno
import stat
from collections.abc import Callable
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from store.disks.attributes import KINDS
from store.errors import FormatError
from store.format.pxar.entries import name_is_valid

VERSION = 1
READY_ID = 0
MAX_READ = 1 << 20
MAX_NAME = 255
MAX_TARGET = 4096
LARGEST_REPLY = 2 * MAX_READ + 64 * 1024
LARGEST_FILE = (1 << 63) - 1

_REQUEST = Struct("<IIIQQQI")
_REPLY = Struct("<IIi")
_READY = Struct("<IQQ")
_RECORD = Struct("<QQQqIIIIIIIiHHI")
_PAGE = Struct("<QII")
_XATTR = Struct("<HI")
_EXTENT = Struct("<QQQI")
_LENGTH = 4


class Op(IntEnum):
    """What may be asked."""

    STAT = 1
    LOOKUP = 2
    LIST = 3
    READ = 4
    EXTENTS = 5


class Key(NamedTuple):
    """An inode: `root` is its Btrfs subvolume, 0 in other file systems."""

    root: int
    inode: int


class Reply(NamedTuple):
    """An answer: `error` is an errno, 0 for none."""

    id: int
    error: int
    payload: bytes


class Ready(NamedTuple):
    """The guest has mounted its disk, or has not: then the end of its kernel's log says why."""

    top: Key
    log: str


class Record(NamedTuple):
    """One file. `error` is what kept the guest from reading its inode: all but the name is void."""

    key: Key
    size: int
    mtime: tuple[int, int]
    mode: int
    owner: tuple[int, int]
    links: int
    device: tuple[int, int]
    error: int
    name: bytes
    target: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]


class Page(NamedTuple):
    """Part of a directory; `following` is the `offset` to ask with for the rest."""

    records: list[Record]
    following: int
    is_last: bool


class Extent(NamedTuple):
    """`size` bytes of a file from `logical` on, at `physical` of the disk; flags as FIEMAP's."""

    logical: int
    physical: int
    size: int
    flags: int


def encode_request(
    ident: int, op: Op, key: Key, offset: int = 0, size: int = 0, name: bytes = b""
) -> bytes:
    """One request. Raises FormatError for a name that no file can have."""
    if len(name) > MAX_NAME or b"\0" in name or b"/" in name:
        raise FormatError(f"no file in a disk can have the name {name[:64]!r}")
    length = _REQUEST.size - _LENGTH + len(name)
    return _REQUEST.pack(length, ident, op, *key, offset, size) + name


class ReplyReader:
    """Cuts what comes from the guest into replies, however it is split."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Reply]:
        """The replies that are complete now. Raises FormatError: nothing after it is to be read."""
        buffer, found, start = self._buffer, [], 0
        buffer += data
        while len(buffer) - start >= _REPLY.size:
            length, ident, error = _REPLY.unpack_from(buffer, start)
            end = start + _LENGTH + length
            if not _REPLY.size <= end - start <= LARGEST_REPLY or not 0 <= error < 4096:
                raise FormatError(f"micro-VM: a reply of {length} bytes with error {error}")
            if end > len(buffer):
                break
            found.append(Reply(ident, error, bytes(memoryview(buffer)[start + _REPLY.size : end])))
            start = end
        del buffer[:start]
        return found


def decode_ready(payload: bytes) -> Ready:
    """Raises FormatError: not ours, or of another version."""
    if len(payload) < _READY.size:
        raise FormatError(f"micro-VM: its first words are {len(payload)} bytes")
    version, root, inode = _READY.unpack_from(payload)
    if version != VERSION:
        raise FormatError(f"micro-VM: its agent speaks version {version}, we speak {VERSION}")
    return Ready(Key(root, inode), printable(payload[_READY.size :]))


def printable(text: bytes) -> str:
    """Text of a guest, made safe for a terminal and a log."""
    shown = text.decode("ascii", "replace")
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in shown)


def decode_page(payload: bytes, omit: Callable[[bytes], object] = lambda _: None) -> Page:
    """A reply to LIST.

    Entries whose names cannot be are left out, for they must not hide the others; `omit` is told.
    Raises FormatError.
    """
    if len(payload) < _PAGE.size:
        raise FormatError(f"micro-VM: a page of {len(payload)} bytes")
    following, count, last = _PAGE.unpack_from(payload)
    records, position, found = [], _PAGE.size, 0
    while position < len(payload):
        record, position = _record_at(payload, position)
        found += 1
        if _can_be(record.name):
            _check(record)
            records.append(record)
        else:
            omit(record.name)
    if found != count or last not in (0, 1) or not (found or last):
        raise FormatError(f"micro-VM: a page of {found} entries that says {count}")
    return Page(records, following, bool(last))


def decode_record(payload: bytes) -> Record:
    """A reply to STAT or LOOKUP. Raises FormatError."""
    record, end = _record_at(payload, 0)
    if end != len(payload):
        raise FormatError(f"micro-VM: {len(payload) - end} bytes after a record")
    # A name is missing in the reply to STAT.
    if record.name and not _can_be(record.name):
        raise FormatError(f"micro-VM: a file of the name {record.name[:64]!r}")
    _check(record)
    return record


def decode_extents(payload: bytes) -> list[Extent]:
    """A reply to EXTENTS, in order and without overlap. Raises FormatError."""
    if len(payload) % _EXTENT.size:
        raise FormatError(f"micro-VM: extents of {len(payload)} bytes")
    found, end = [], 0
    for extent in map(Extent._make, _EXTENT.iter_unpack(payload)):
        if extent.logical < end or not extent.size:
            raise FormatError(f"micro-VM: an extent at {extent.logical}, before {end}, or empty")
        found.append(extent)
        end = extent.logical + extent.size
    return found


def _record_at(payload: bytes, position: int) -> tuple[Record, int]:
    """The record there and where it ends."""
    if position + _RECORD.size > len(payload):
        raise FormatError(f"micro-VM: a record cut at {len(payload)}")
    (
        root, inode, size, seconds, nanoseconds, mode, uid, gid, links, major, minor, error,
        name_size, target_size, xattrs_size,
    ) = _RECORD.unpack_from(payload, position)  # fmt: skip
    name_at = position + _RECORD.size
    target_at = name_at + name_size
    xattrs_at = target_at + target_size
    end = xattrs_at + xattrs_size
    if end > len(payload):
        raise FormatError(f"micro-VM: a record of {end - position} bytes is cut")
    record = Record(
        Key(root, inode), size, (seconds, nanoseconds), mode, (uid, gid), links, (major, minor),
        error, payload[name_at:target_at], payload[target_at:xattrs_at],
        _xattrs(payload[xattrs_at:end]),
    )  # fmt: skip
    return record, end


def _can_be(name: bytes) -> bool:
    return len(name) <= MAX_NAME and name_is_valid(name)


def _check(record: Record) -> None:
    """Whatever users of a tree rely on, but for the name."""
    name, target = record.name, record.target
    if record.size > LARGEST_FILE or record.mtime[1] >= 1_000_000_000 or record.mode > 0o177777:
        raise FormatError(f"micro-VM: {name!r} has a size, mode or time that no file has")
    if stat.S_IFMT(record.mode) not in KINDS and not record.error:
        raise FormatError(f"micro-VM: {name!r} has the mode {record.mode:#o}")
    is_link = stat.S_ISLNK(record.mode) and not record.error
    if bool(target) != is_link or len(target) > MAX_TARGET or b"\0" in target:
        raise FormatError(f"micro-VM: {name!r} leads to {target[:64]!r}")


def _xattrs(raw: bytes) -> tuple[tuple[bytes, bytes], ...]:
    found, position = [], 0
    while position < len(raw):
        if position + _XATTR.size > len(raw):
            raise FormatError("micro-VM: an xattr is cut")
        name_size, value_size = _XATTR.unpack_from(raw, position)
        value_at = position + _XATTR.size + name_size
        end = value_at + value_size
        name = raw[value_at - name_size : value_at]
        if end > len(raw) or not name or b"\0" in name:
            raise FormatError(f"micro-VM: an xattr of the name {name[:64]!r} is cut")
        found.append((name, raw[value_at:end]))
        position = end
    return tuple(found)


def is_damage(error: int) -> bool:
    """Whether the guest's kernel found the file system broken, by its errno."""
    return error in (errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ENXIO)
