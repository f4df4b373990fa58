"""XFS, by dissect.xfs; extended attributes and long symlinks by ourselves.

Source of what is ours: linux fs/xfs/libxfs/xfs_da_format.h.
"""

import stat
import struct
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from dissect.xfs import xfs as dissect

from store.disks.parsers.acls import from_xfs
from store.disks.parsers.blocks import BlockFile, CachedBlocks
from store.disks.parsers.files import (
    HOLE,
    BadFile,
    Inode,
    Run,
    exactly,
    joined,
    read_runs,
    readable,
)

LOCAL, EXTENTS = 1, 2
MAX_NUMBER = 1 << 46
MAX_LINK = 1024
KEPT = 4096
_ATTR_ROOT, _ATTR_SECURE, _INCOMPLETE = 2, 4, 0x80
_SYMLINK_HEADER = 56
_DATA_BLOCKS = (b"XD2B", b"XD2D", b"XDB3", b"XDD3")
# From here on a directory's blocks are its index.
_LEAVES = 32 << 30
_LEAF, _LEAF_V5, _LEAF_LOCAL = 0xFBEE, 0x3BEE, 1


class Xfs:
    """A FileSystem. Numbers are its own inode numbers."""

    def __init__(self, blocks: CachedBlocks) -> None:
        self._blocks = blocks
        self._fs = dissect.XFS(BlockFile(blocks))
        self._block = int(self._fs.block_size)
        self._inodes: OrderedDict[int, Any] = OrderedDict()
        if self._fs.sb.sb_agblocks == 0 or self._fs.sb.sb_inodesize < 256:
            raise BadFile("XFS superblock with impossible sizes")

    def root(self) -> int:
        return int(self._fs.sb.sb_rootino)

    def _inode(self, number: int) -> Any:  # noqa: ANN401 - dissect's
        found = self._inodes.get(number)
        if found is None:
            found = self._inodes[number] = self._fs.get_inode(number)
            if len(self._inodes) > KEPT:
                self._inodes.popitem(last=False)
        return found

    def inode(self, number: int) -> Inode:
        node = self._inode(number)
        raw = node.inode
        mode = int(raw.di_mode)
        inode = Inode(number, mode, int(raw.di_uid), int(raw.di_gid), links=int(raw.di_nlink))
        inode.mtime_ns = _time_ns(int(raw.di_mtime), big=bool(node._has_bigtime()))
        kind = stat.S_IFMT(mode)
        if kind == stat.S_IFREG:
            inode.size = int(node.size)
        elif kind == stat.S_IFLNK:
            inode.target = self._target(node)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            number = struct.unpack(">I", node.datafork().read(4))[0]
            inode.device = number >> 18 & 0x3FFF, number & 0x3FFFF
        inode.xattrs = readable(self._xattrs(node))
        return inode

    def _target(self, node: Any) -> bytes:  # noqa: ANN401
        if node.inode.di_format == LOCAL:
            return bytes(node.datafork().read(MAX_LINK)[: int(node.size)])
        left, found = int(node.size), b""
        header = _SYMLINK_HEADER if self._fs.version == 5 else 0
        if left > MAX_LINK:
            raise BadFile(f"symlink of {left} bytes")
        for start, size in self._extents(node):
            piece = exactly(self._blocks, start, min(size, header + left))[header:]
            found, left = found + piece, left - len(piece)
        return found

    def runs(self, number: int) -> list[Run] | None:
        node = self._inode(number)
        return (
            None if node.inode.di_format == LOCAL else joined(self._extents(node), int(node.size))
        )

    def _extents(self, node: Any) -> Iterator[Run]:  # noqa: ANN401
        position = 0
        shift, ag_blocks = int(self._fs.sb.sb_agblklog), int(self._fs.sb.sb_agblocks)
        for first, block, count, unwritten in node._iter_blocks():
            if first < position:
                raise BadFile("extents that overlap")
            if first > position:
                yield Run(HOLE, (first - position) * self._block)
            place = (block >> shift) * ag_blocks + (block & (1 << shift) - 1)
            yield Run(HOLE if unwritten else place * self._block, count * self._block)
            position = first + count

    def read(self, number: int, offset: int, size: int) -> bytes:
        node = self._inode(number)
        return bytes(node.datafork().read(int(node.size))[offset : offset + size])

    def names(self, number: int) -> Iterator[tuple[bytes, int]]:
        node = self._inode(number)
        if not stat.S_ISDIR(node.inode.di_mode):
            raise BadFile(f"inode {number} is no directory")
        if node.inode.di_format == LOCAL:
            yield from self._short_directory(bytes(node.datafork().read(int(node.size))))
            return
        size, runs = self._block << int(self._fs.sb.sb_dirblklog), [*self._extents(node)]
        position = 0
        for start, length in runs:
            # A directory block of several file system blocks may lie in several runs.
            at = position
            position += length
            if start != HOLE:
                for block in range(-(-at // size) * size, min(position, _LEAVES), size):
                    yield from self._directory_block(read_runs(self._blocks, runs, block, size))

    def _short_directory(self, fork: bytes) -> Iterator[tuple[bytes, int]]:
        """Count of entries, count of them with long numbers, the parent's number, entries."""
        count, wide = fork[0], 8 if fork[1] else 4
        at = 2 + wide
        for _ in range(count):
            length = fork[at]
            name = fork[at + 3 : at + 3 + length]
            at += 3 + length + bool(self._fs._has_ftype)
            if at + wide > len(fork):
                raise BadFile("a directory cut short")
            yield name, int.from_bytes(fork[at : at + wide], "big")
            at += wide

    def _directory_block(self, block: bytes) -> Iterator[tuple[bytes, int]]:
        magic = block[:4]
        if magic not in _DATA_BLOCKS:
            raise BadFile("a broken directory block")
        end, at = len(block), 64 if magic in (b"XDB3", b"XDD3") else 16
        if magic in (b"XD2B", b"XDB3"):  # the only block: its index is behind the entries
            end -= 8 + 8 * struct.unpack_from(">I", block, len(block) - 8)[0]
        while at + 8 <= end:
            free, length = struct.unpack_from(">HH", block, at)
            if free == 0xFFFF:
                at += max(8, length)
                continue
            number, length = struct.unpack_from(">QB", block, at)
            name = block[at + 9 : at + 9 + length]
            if name not in (b".", b".."):
                yield name, number
            at += 8 + 1 + length + bool(self._fs._has_ftype) + 2 + 7 & ~7

    # ----- extended attributes

    def _xattrs(self, node: Any) -> Iterator[tuple[bytes, bytes]]:  # noqa: ANN401
        if not node.inode.di_forkoff:
            return
        fork = bytes(node.attrfork().read(4096))
        if node.inode.di_aformat == LOCAL:
            found = _short_form(fork)
        elif node.inode.di_aformat == EXTENTS:
            found = self._leaves(fork, int(node.attr_extents))
        else:
            raise BadFile("xattrs in a tree")
        for flags, name, value in found:
            if flags & _ATTR_ROOT and name == b"SGI_ACL_FILE":
                yield b"system.posix_acl_access", from_xfs(value)
            elif flags & _ATTR_ROOT and name == b"SGI_ACL_DEFAULT":
                yield b"system.posix_acl_default", from_xfs(value)
            elif not flags & _INCOMPLETE:
                prefix = b"security." if flags & _ATTR_SECURE else b"user."
                yield (b"trusted." if flags & _ATTR_ROOT else prefix) + name, value

    def _leaves(self, fork: bytes, count: int) -> Iterator[tuple[int, bytes, bytes]]:
        """The attributes in blocks of their own; long values lie in further blocks."""
        runs: list[tuple[int, Run]] = []
        shift, ag_blocks = int(self._fs.sb.sb_agblklog), int(self._fs.sb.sb_agblocks)
        for at in range(0, 16 * min(count, len(fork) // 16), 16):
            first, block, many, _ = dissect.parse_fsblock(fork[at : at + 16])
            place = (block >> shift) * ag_blocks + (block & (1 << shift) - 1)
            runs.append((first, Run(place * self._block, many * self._block)))
        for _, (start, size) in runs:
            for skip in range(0, min(size, 1 << 20), self._block):
                block = exactly(self._blocks, start + skip, self._block)
                yield from self._leaf(block, runs)

    def _leaf(
        self, block: bytes, runs: list[tuple[int, Run]]
    ) -> Iterator[tuple[int, bytes, bytes]]:
        magic = struct.unpack_from(">H", block, 8)[0]
        if magic not in (_LEAF, _LEAF_V5):
            return  # a node of the index, or a long value
        is_v5 = magic == _LEAF_V5
        count, entries = (
            struct.unpack_from(">H", block, 56 if is_v5 else 12)[0],
            80 if is_v5 else 32,
        )
        for index in range(min(count, (len(block) - entries) // 8)):
            _, place, flags = struct.unpack_from(">IHB", block, entries + 8 * index)
            if flags & _LEAF_LOCAL:
                size, length = struct.unpack_from(">HB", block, place)
                name = block[place + 3 : place + 3 + length]
                value = block[place + 3 + length : place + 3 + length + size]
            else:
                first, size, length = struct.unpack_from(">IIB", block, place)
                name = block[place + 9 : place + 9 + length]
                value = self._remote(first, size, runs)
            if len(name) != length or len(value) != size:
                raise BadFile("an xattr that does not fit its block")
            yield flags, name, value

    def _remote(self, first: int, size: int, runs: list[tuple[int, Run]]) -> bytes:
        """A long value: from block `first` of the fork on; in version 5 each has a header."""
        if size > 65536:
            raise BadFile(f"xattr of {size} bytes")
        header = 56 if self._fs.version == 5 else 0
        value, block = b"", first
        while len(value) < size:
            for start, (place, length) in runs:
                if start <= block < start + length // self._block:
                    raw = exactly(self._blocks, place + (block - start) * self._block, self._block)
                    value += raw[header:]
                    break
            else:
                raise BadFile("an xattr without its value")
            block += 1
        return value[:size]


def _short_form(fork: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """The attributes that lie in the inode: (flags, name, value)."""
    total, count = struct.unpack_from(">HB", fork)
    at = 4
    for _ in range(count):
        length, size, flags = fork[at], fork[at + 1], fork[at + 2]
        name, value = fork[at + 3 :][:length], fork[at + 3 + length :][:size]
        at += 3 + length + size
        if at > total:
            raise BadFile("xattrs that do not fit their inode")
        yield flags, name, value


def _time_ns(raw: int, *, big: bool) -> int:
    """Either nanoseconds since 1901 in one number, or signed seconds and nanoseconds."""
    if big:
        return raw - (1 << 31) * 1_000_000_000
    seconds, nanoseconds = raw >> 32, raw & 0xFFFFFFFF
    if seconds >= 1 << 31:
        seconds -= 1 << 32
    return seconds * 1_000_000_000 + nanoseconds
