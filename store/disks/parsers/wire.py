"""The frames between the parent and the child that parses, on one socket.

    request   op u8 | number u64 | a u64 | size u32 | name length u16 | name
    answer    kind u8 | length u32 | payload
    blocks    what the child asks for is an answer of kind WANT: offset u64 | size u32;
              the parent sends: good u8 | length u32 | bytes

Little-endian. The child is the enemy's: the parent checks every answer as if it were a file.
"""

import stat
import struct
from collections.abc import Callable, Iterator

from store.disks.attributes import KINDS
from store.disks.parsers.files import HOLE, MAX_RUNS, BadFile, Inode, Run

REQUEST = struct.Struct("<BQQIH")
ANSWER = struct.Struct("<BI")
WANT_BLOCKS = struct.Struct("<QI")
PAGE = struct.Struct("<BQ")
RUN = struct.Struct("<qQ")
_INODE = struct.Struct("<QIIIqIQIIIHII")
_XATTR = struct.Struct("<HI")
_KEY = struct.Struct("<H")

TABLE, ROOT, INODE, LIST, LOOKUP, RUNS, READ, LABEL, UNLOCK = range(1, 10)
DONE, FAILED, WANT, AGAIN, LOCKED = range(5)

MAX_ANSWER = 8 << 20
MAX_FETCH = 4 << 20
MAX_READ = 1 << 20
PAGE_SIZE = 256 << 10
MAX_NUMBER = 1 << 46
MAX_SIZE = 1 << 62
MAX_NAME = 1024
MAX_TARGET = 65535
MAX_XATTRS = 4 << 20
MAX_KEY = 16384
_NANOSECONDS = 1_000_000_000
_FORBIDDEN = frozenset({b"", b".", b".."})
BROKEN = 0
"""The mode of a name whose inode cannot be read: it is listed, and nothing more."""


def encode_inode(inode: Inode, name: bytes) -> bytes:
    """One file. Raises struct.error, BadFile for what has no room."""
    xattrs = b"".join(
        _XATTR.pack(len(key), len(value)) + key + value for key, value in inode.xattrs
    )
    seconds, nanoseconds = divmod(inode.mtime_ns, _NANOSECONDS)
    head = _INODE.pack(
        inode.number,
        inode.mode,
        inode.uid,
        inode.gid,
        seconds,
        nanoseconds,
        inode.size,
        min(max(1, inode.links), 0xFFFFFFFF),
        *inode.device,
        len(name),
        len(inode.target),
        len(xattrs),
    )
    if len(xattrs) > MAX_XATTRS:
        raise BadFile(f"inode {inode.number}: {len(xattrs)} bytes of xattrs")
    return head + name + inode.target + xattrs


def decode_inodes(
    data: bytes, *, named: bool = True, omit: Callable[[bytes], object] = lambda _: None
) -> Iterator[tuple[bytes, Inode]]:
    """The files of an answer, each checked.

    Those whose names cannot be are left out, for they must not hide the others; `omit` is told.
    Raises BadFile, struct.error.
    """
    at = 0
    while at < len(data):
        (
            number, mode, uid, gid, seconds, nanoseconds, size, links, major, minor,
            name_size, target_size, xattr_size,
        ) = _INODE.unpack_from(data, at)  # fmt: skip
        at += _INODE.size
        end = at + name_size + target_size + xattr_size
        if end > len(data):
            raise BadFile("an answer cut short")
        name, target = data[at : at + name_size], data[at + name_size :][:target_size]
        xattrs = tuple(_decode_xattrs(data[end - xattr_size : end]))
        at = end
        if named and (len(name) > MAX_NAME or b"/" in name or b"\0" in name or name in _FORBIDDEN):
            omit(name)
            continue
        if not 0 < number < MAX_NUMBER or size > MAX_SIZE or nanoseconds >= _NANOSECONDS:
            raise BadFile(f"file {number}: impossible numbers")
        if mode != BROKEN and (stat.S_IFMT(mode) not in KINDS or mode > 0o177777):
            raise BadFile(f"file {number}: of unknown kind {mode:#o}")
        if stat.S_ISLNK(mode) and (not target or b"\0" in target or len(target) > MAX_TARGET):
            raise BadFile(f"file {number}: a symlink to nowhere")
        mtime_ns = seconds * _NANOSECONDS + nanoseconds
        device = major, minor
        yield name, Inode(number, mode, uid, gid, mtime_ns, size, links, target, device, xattrs)


def _decode_xattrs(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(data):
        name_size, value_size = _XATTR.unpack_from(data, at)
        at += _XATTR.size
        name, value = data[at : at + name_size], data[at + name_size :][:value_size]
        at += name_size + value_size
        if at > len(data) or not 0 < name_size < 256 or b"\0" in name or value_size > 65536:
            raise BadFile(f"an xattr that cannot be: {name[:40]!r}")
        yield name, value


def encode_runs(runs: list[Run] | None) -> bytes:
    """A byte of 0 for none; else one of 1, and the runs."""
    if runs is None:
        return b"\0"
    return b"\1" + b"".join(RUN.pack(*run) for run in runs)


def decode_runs(data: bytes, size: int, limit: int) -> list[Run] | None:
    """The runs of a file of `size` bytes on a disk of `limit`, checked. Raises BadFile."""
    if data[:1] == b"\0":
        return None
    if len(data) % RUN.size != 1 or len(data) > 1 + (MAX_RUNS + 2) * RUN.size:
        raise BadFile("an answer of a wrong size")
    runs = [Run(*run) for run in RUN.iter_unpack(data[1:])]
    for start, length in runs:
        if length > MAX_SIZE or (start != HOLE and not 0 <= start <= start + length <= limit):
            raise BadFile(f"a file's content is past the disk's end ({start} + {length})")
    if sum(run.size for run in runs) != size:
        raise BadFile("a file whose pieces are not its size")
    return runs


def encode_keys(keys: tuple[bytes, ...]) -> bytes:
    """The keys of encrypted disks, for UNLOCK; those that do not fit are left out."""
    packed = b""
    for key in keys:
        piece = _KEY.pack(len(key)) + key if len(key) <= MAX_KEY else b""
        packed += piece if len(packed) + len(piece) <= MAX_TARGET else b""
    return packed


def decode_keys(data: bytes) -> list[bytes]:
    """The same keys again."""
    keys, at = [], 0
    while at < len(data):
        (size,) = _KEY.unpack_from(data, at)
        keys.append(data[at + _KEY.size : at + _KEY.size + size])
        at += _KEY.size + size
    return keys
