"""ext2, ext3, ext4.

Source: linux fs/ext4/{ext4.h,ext4_extents.h,xattr.h,inline.c}, Documentation/filesystems/ext4.
"""

import stat
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from store.disks.parsers.acls import from_ext
from store.disks.parsers.files import (
    HOLE,
    BadFile,
    Blocks,
    Inode,
    Run,
    exactly,
    joined,
    read_runs,
    readable,
)

ROOT = 2
MAX_LINK = 65536
MAX_XATTRS = 1024
MAX_EXTENTS = 1 << 20
_INCOMPAT_KNOWN = (
    0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x1000 | 0x2000 | 0x4000 | 0x8000
    | 0x10000 | 0x20000
)  # fmt: skip
_META_BG, _64BIT, _ENCRYPT, _CASEFOLD = 0x10, 0x80, 0x10000, 0x20000
_EXTENTS, _INLINE, _ENCRYPTED, _EA_INODE, _VERITY = 0x80000, 0x10000000, 0x800, 0x200000, 0x100000
_XATTR_MAGIC = 0xEA020000
_PREFIXES = {
    1: b"user.", 2: b"system.posix_acl_access", 3: b"system.posix_acl_default", 4: b"trusted.",
    6: b"security.", 7: b"system.", 8: b"system.richacl",
}  # fmt: skip
_INODE = struct.Struct("<HHIIIIIHHIII60sIIII12s")
_EXTENT = struct.Struct("<IHHI")
_INDEX = struct.Struct("<IIHH")
_XATTR = struct.Struct("<BBHIII")


class _Raw(NamedTuple):
    """What of an inode on the disk is of use."""

    mode: int
    uid: int
    gid: int
    size: int
    links: int
    flags: int
    block: bytes
    acl_block: int
    mtime_ns: int
    whole: bytes


class Ext:
    """A FileSystem. Numbers are its own inode numbers."""

    def __init__(self, blocks: Blocks) -> None:
        """Raises BadFile."""
        self._blocks = blocks
        raw = exactly(blocks, 1024, 1024)
        if raw[56:58] != b"\x53\xef":
            raise BadFile("no ext superblock")
        self._incompatible = struct.unpack_from("<I", raw, 0x60)[0]
        unknown = self._incompatible & ~_INCOMPAT_KNOWN
        if unknown:
            raise BadFile(f"ext4 with unknown features ({unknown:#x})")
        shift = struct.unpack_from("<I", raw, 24)[0]
        if shift > 6:
            raise BadFile(f"ext blocks of 2^{10 + shift} bytes")
        self._block: int = 1024 << shift
        self._count, self._per_group = (struct.unpack_from("<I", raw, at)[0] for at in (0, 40))
        self._first = struct.unpack_from("<I", raw, 20)[0]
        self._blocks_per_group = struct.unpack_from("<I", raw, 32)[0]
        self._size = struct.unpack_from("<H", raw, 88)[0] if raw[76] else 128
        wide = self._incompatible & _64BIT
        self._descriptor = struct.unpack_from("<H", raw, 254)[0] if wide else 32
        self._first_meta = struct.unpack_from("<I", raw, 260)[0]
        if not self._per_group or not self._blocks_per_group or self._size < 128:
            raise BadFile("ext superblock without inodes")
        if self._size > self._block or not 32 <= self._descriptor <= 1024:
            raise BadFile("ext superblock with impossible sizes")
        self._table = lru_cache(4096)(self._inode_table)
        self._raw = lru_cache(8192)(self._read_inode)

    def root(self) -> int:
        return ROOT

    # ----- inodes

    def _inode_table(self, group: int) -> int:
        """Where the inodes of a group are, in bytes."""
        per_block = self._block // self._descriptor
        meta = group // per_block
        if self._incompatible & _META_BG and meta >= self._first_meta:
            first = meta * per_block
            block = self._first + first * self._blocks_per_group + self._has_super(first)
            block += self._block == 1024 and not first and not self._first  # clusters
        else:
            block = (2 if self._block == 1024 else 1) + meta
        raw = exactly(
            self._blocks,
            block * self._block + group % per_block * self._descriptor,
            self._descriptor,
        )
        table = int(struct.unpack_from("<I", raw, 8)[0])
        if self._descriptor >= 64:
            table |= struct.unpack_from("<I", raw, 40)[0] << 32
        return table * self._block

    @staticmethod
    def _has_super(group: int) -> int:
        """1 if a group begins with a copy of the superblock (sparse_super): 0, 1, 3^n, 5^n, 7^n."""
        if group <= 1:
            return 1
        for base in (3, 5, 7):
            power = base
            while power < group:
                power *= base
            if power == group:
                return 1
        return 0

    def _read_inode(self, number: int) -> _Raw:
        if not 1 <= number <= self._count:
            raise BadFile(f"inode {number} of {self._count}")
        group, index = divmod(number - 1, self._per_group)
        whole = exactly(self._blocks, self._table(group) + index * self._size, self._size)
        (
            mode, uid, size, _, _, mtime, _, gid, links, _, flags, _, block, _, acl, high, _, osd2,
        ) = _INODE.unpack_from(whole)  # fmt: skip
        acl_high, uid_high, gid_high = struct.unpack_from("<2xHHH", osd2)
        extra = struct.unpack_from("<I", whole, 136)[0] if self._extra_size(whole) >= 12 else 0
        return _Raw(
            mode,
            uid | uid_high << 16,
            gid | gid_high << 16,
            size | high << 32,
            links,
            flags,
            block,
            acl | acl_high << 32,
            _time_ns(mtime, extra),
            whole,
        )

    def _extra_size(self, whole: bytes) -> int:
        return int(struct.unpack_from("<H", whole, 128)[0]) if len(whole) >= 160 else 0

    def inode(self, number: int) -> Inode:
        raw = self._raw(number)
        inode = Inode(number, raw.mode, raw.uid, raw.gid, raw.mtime_ns, links=raw.links)
        kind = stat.S_IFMT(raw.mode)
        if not kind or not raw.links:
            raise BadFile(f"inode {number} is not in use")
        if kind == stat.S_IFREG:
            inode.size = raw.size
        elif kind == stat.S_IFLNK:
            inode.target = self._target(number, raw)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            inode.device = _device(raw.block)
        inode.xattrs = readable(self._visible_xattrs(raw))
        return inode

    def _target(self, number: int, raw: _Raw) -> bytes:
        if raw.flags & _ENCRYPTED:
            raise BadFile(f"inode {number} is encrypted by its file system")
        if raw.size > MAX_LINK:
            raise BadFile(f"symlink of {raw.size} bytes")
        if raw.size < 60 and not raw.flags & (_EXTENTS | _INLINE):
            return raw.block[: raw.size]
        if raw.flags & _EXTENTS and raw.block[:2] != b"\x0a\xf3":
            return raw.block[: min(raw.size, 60)]
        return self._content(raw, 0, raw.size)

    # ----- content

    def runs(self, number: int) -> list[Run] | None:
        raw = self._raw(number)
        if raw.flags & _ENCRYPTED:
            raise BadFile(f"inode {number} is encrypted by its file system")
        return None if raw.flags & _INLINE else self._runs(raw)

    def read(self, number: int, offset: int, size: int) -> bytes:
        return self._content(self._raw(number), offset, size)

    def _content(self, raw: _Raw, offset: int, size: int) -> bytes:
        size = min(size, raw.size - offset)
        if raw.flags & _INLINE:
            return self._inline(raw)[offset : offset + max(0, size)]
        return read_runs(self._blocks, self._runs(raw), offset, size)

    def _inline(self, raw: _Raw) -> bytes:
        """Content in the inode: 60 bytes, and the rest in its xattr `system.data`."""
        rest = dict(self._xattrs(raw)).get(b"system.data", b"")
        return (raw.block + rest)[: raw.size]

    def _runs(self, raw: _Raw) -> list[Run]:
        blocks = -(-raw.size // self._block)
        found = self._extents(raw) if raw.flags & _EXTENTS else self._mapped(raw, blocks)
        return joined(found, raw.size)

    def _extents(self, raw: _Raw) -> Iterator[Run]:
        position = 0
        for first, start, count, written in self._leaves(raw.block, 5, [MAX_EXTENTS]):
            if first < position:
                raise BadFile("extents that overlap")
            if first > position:
                yield Run(HOLE, (first - position) * self._block)
            yield Run(start * self._block if written else HOLE, count * self._block)
            position = first + count

    def _leaves(
        self, node: bytes, depth: int, left: list[int]
    ) -> Iterator[tuple[int, int, int, bool]]:
        """(first block of the file, first of the disk, how many, written to) of a tree."""
        magic, entries, _, level = struct.unpack_from("<HHHH", node)
        if magic != 0xF30A or level > depth or 12 + 12 * entries > len(node):
            raise BadFile("a broken extent tree")
        left[0] -= entries
        if left[0] < 0:
            raise BadFile("too many extents")
        for at in range(12, 12 + 12 * entries, 12):
            if level:
                _, low, high, _ = _INDEX.unpack_from(node, at)
                child = exactly(self._blocks, (low | high << 32) * self._block, self._block)
                yield from self._leaves(child, level - 1, left)
            else:
                first, count, high, low = _EXTENT.unpack_from(node, at)
                written = count <= 0x8000
                yield first, low | high << 32, count if written else count - 0x8000, written

    def _mapped(self, raw: _Raw, blocks: int) -> Iterator[Run]:
        """The old way: twelve blocks, then blocks of blocks of blocks."""
        pointers = struct.unpack("<15I", raw.block)
        for pointer in pointers[:12]:
            yield self._one(pointer)
        blocks -= 12
        for level in (1, 2, 3):
            if blocks <= 0:
                return
            many = min(blocks, (self._block // 4) ** level)
            yield from self._indirect(pointers[11 + level], level, many)
            blocks -= many

    def _indirect(self, pointer: int, level: int, blocks: int) -> Iterator[Run]:
        if not pointer:
            yield Run(HOLE, blocks * self._block)
            return
        each = (self._block // 4) ** (level - 1)
        raw = exactly(self._blocks, pointer * self._block, self._block)
        for child in struct.unpack(f"<{self._block // 4}I", raw)[: -(-blocks // each)]:
            if level == 1:
                yield self._one(child)
            else:
                yield from self._indirect(child, level - 1, min(each, blocks))
            blocks -= each

    def _one(self, pointer: int) -> Run:
        return Run(pointer * self._block if pointer else HOLE, self._block)

    # ----- directories

    def names(self, number: int) -> Iterator[tuple[bytes, int]]:
        raw = self._raw(number)
        if not stat.S_ISDIR(raw.mode):
            raise BadFile(f"inode {number} is no directory")
        if raw.flags & _INLINE:
            # Four bytes for the parent, then entries, which go on in the xattr.
            yield from _entries(raw.block[4:])
            yield from _entries(self._inline(raw)[60:])
            return
        for start, size in self._runs(raw):
            if start == HOLE:
                continue
            for at in range(0, size, self._block):
                block = exactly(self._blocks, start + at, min(self._block, size - at))
                yield from _entries(block)

    # ----- extended attributes

    def _visible_xattrs(self, raw: _Raw) -> Iterator[tuple[bytes, bytes]]:
        if not raw.acl_block and self._size <= 128 + 28:
            return
        for name, value in self._xattrs(raw):
            if name.startswith(b"system.posix_acl_"):
                yield name, from_ext(value)
            elif name != b"system.data" and not name.startswith(b"system.richacl"):
                yield name, value

    def _xattrs(self, raw: _Raw) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        start = 128 + self._extra_size(raw.whole)
        if start + 8 <= len(raw.whole) and raw.whole[start : start + 4] == _MAGIC:
            found += self._xattr_entries(raw.whole[start + 4 :], 0, 0)
        if raw.acl_block:
            block = exactly(self._blocks, raw.acl_block * self._block, self._block)
            if block[:4] == _MAGIC:
                found += self._xattr_entries(block, 32, 0)
        return found

    def _xattr_entries(self, data: bytes, at: int, base: int) -> Iterator[tuple[bytes, bytes]]:
        for _ in range(MAX_XATTRS):
            if data[at : at + 4] in (bytes(4), b"") or at + 16 > len(data):
                return
            length, index, place, inode, size, _ = _XATTR.unpack_from(data, at)
            name = _PREFIXES.get(index, b"unknown.") + data[at + 16 : at + 16 + length]
            if inode:
                value = self._xattr_inode(inode, size)
            else:
                value = data[base + place : base + place + size]
            if len(value) != size or index not in _PREFIXES:
                raise BadFile(f"xattr {name!r} is broken")
            yield name, value
            at += 16 + (length + 3 & ~3)

    def _xattr_inode(self, number: int, size: int) -> bytes:
        raw = self._raw(number)
        if not raw.flags & _EA_INODE or size > MAX_LINK:
            raise BadFile(f"inode {number} holds no xattr")
        return self._content(raw, 0, size)


_MAGIC = struct.pack("<I", _XATTR_MAGIC)


def _time_ns(seconds: int, extra: int) -> int:
    """Signed 32-bit seconds; the extra field adds two bits of epoch, and nanoseconds."""
    if seconds >= 1 << 31:
        seconds -= 1 << 32
    return (seconds + ((extra & 3) << 32)) * 1_000_000_000 + min(extra >> 2, 999_999_999)


def _device(block: bytes) -> tuple[int, int]:
    old, new = struct.unpack_from("<II", block)
    if old:
        return old >> 8 & 0xFF, old & 0xFF
    return new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xFFF00


def _entries(block: bytes) -> Iterator[tuple[bytes, int]]:
    """The directory entries of one block; an index block holds one that spans it, and is empty."""
    at = 0
    while at + 8 <= len(block):
        number, length, name_length = struct.unpack_from("<IHB", block, at)
        if length < 8 or length % 4 or at + length > len(block):
            # 64 KiB blocks write 65535 or 0 for a length that does not fit.
            if length in (0, 65535) and len(block) == 65536 and not at:
                length = 65536
            else:
                raise BadFile("a broken directory block")
        name = block[at + 8 : at + 8 + name_length]
        if number and name not in (b".", b"..") and name_length <= length - 8:
            yield name, number
        at += length
