"""Btrfs: chunks and their mirrors by dissect.btrfs; trees, files and compression by ourselves.

The root is the top of all subvolumes, so that each is seen, whichever is mounted by default.

    number   subvolume's place in the list of all, 14 bits | inode number in it, 32 bits

Source: linux include/uapi/linux/btrfs_tree.h, fs/btrfs/{lzo,inode}.c.
"""

import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import zstandard
from dissect.btrfs import btrfs as dissect
from dissect.btrfs import tree as dissect_tree
from dissect.util.compression import lzo

from store.disks.parsers.blocks import BlockFile, CachedBlocks
from store.disks.parsers.files import HOLE, BadFile, Inode, Run, joined

INODE_BITS = 32
MAX_SUBVOLUMES = 1 << 14
TOP, FIRST, LAST = 5, 256, (1 << 64) - 256
_EMPTY_DIRECTORY = 2
MAX_EXTENT = 1 << 20
MAX_EXTENTS = 1_000_000
_INODE_ITEM, _XATTR, _DIR_INDEX, _EXTENT_DATA, _ROOT_ITEM, _ROOT_BACKREF = 1, 24, 96, 108, 132, 144
_KEY = struct.Struct("<QBQ")
_LEAF_ITEM = struct.Struct("<QBQII")
_POINTER = struct.Struct("<QBQQQ")
_INODE = struct.Struct("<QQQQQIIIIQQQ32xQIQIQI")
_DIR_ITEM = struct.Struct("<QBQQHHB")
_EXTENT = struct.Struct("<QQBBHB")
_EXTENT_PLACE = struct.Struct("<QQQQ")
_HEADER = 101
_STRIPED = 0x8 | 0x40 | 0x80 | 0x100  # RAID0, RAID10, RAID5, RAID6
# Its caches count nodes of 16 KiB, by the thousand and for each subvolume.
_NODES = 256


def _small_cache(_size: int) -> Any:  # noqa: ANN401 - a decorator
    return lru_cache(_NODES)


dissect_tree.lru_cache = _small_cache
Key = tuple[int, int, int]


class _Extent(NamedTuple):
    """A piece of a file: `size` bytes from `skip` of what is stored at a logical address."""

    at: int
    size: int
    address: int
    stored: int
    skip: int
    compression: int
    unpacked: int


class Btrfs:
    """A FileSystem."""

    def __init__(self, blocks: CachedBlocks) -> None:
        self._fs = dissect.Btrfs(BlockFile(blocks))
        self._sector = int(self._fs.sector_size)
        self._roots = self._find_roots()
        self._subvolumes = [*sorted(self._roots)]
        self._places = {ident: place for place, ident in enumerate(self._subvolumes)}
        if len(self._subvolumes) > MAX_SUBVOLUMES:
            raise BadFile(f"{len(self._subvolumes)} subvolumes: too many")
        self._tree = lru_cache(16)(self._open_tree)
        self._unpacked = lru_cache(32)(self._unpack)

    def _find_roots(self) -> dict[int, int]:
        """Where the tree of each subvolume is, by its id; `_root_tree` knows all trees."""
        found, key = {}, (0, 0, 0)
        for (ident, kind, _), data in _items(self._fs._root_tree, key):
            if kind == _ROOT_ITEM and (ident == TOP or FIRST <= ident <= LAST):
                found[ident] = struct.unpack_from("<Q", data, 176)[0]
        return found

    def _open_tree(self, subvolume: int) -> Any:  # noqa: ANN401 - dissect's
        if subvolume not in self._roots:
            raise BadFile(f"no subvolume {subvolume}")
        return dissect_tree.BTree(self._fs, root_offset=self._roots[subvolume])

    def root(self) -> int:
        return self._number(TOP, FIRST)

    def _number(self, subvolume: int, inode: int) -> int:
        if inode >> INODE_BITS or subvolume not in self._places:
            raise BadFile(f"inode {inode} of subvolume {subvolume}: no number for it")
        return self._places[subvolume] << INODE_BITS | inode

    def _split(self, number: int) -> tuple[int, int]:
        place = number >> INODE_BITS
        if place >= len(self._subvolumes):
            raise BadFile(f"no subvolume number {place}")
        return self._subvolumes[place], number & (1 << INODE_BITS) - 1

    def inode(self, number: int) -> Inode:
        subvolume, ident = self._split(number)
        if ident == _EMPTY_DIRECTORY:
            return Inode(number, 0o040755)
        found: Inode | None = None
        xattrs: list[tuple[bytes, bytes]] = []
        for (at, kind, _), data in _items(self._tree(subvolume), (ident, _INODE_ITEM, 0)):
            if at != ident or kind > _XATTR:
                break
            if kind == _INODE_ITEM:
                found = self._inode(number, data)
            elif kind == _XATTR:
                xattrs += _xattrs(data)
        if found is None:
            raise BadFile(f"no inode {ident} in subvolume {subvolume}")
        found.xattrs = tuple(xattrs)
        if found.mode & 0o170000 == 0o120000:
            found.target = self.read(number, 0, 65536)
        return found

    def _inode(self, number: int, data: memoryview) -> Inode:
        raw = _INODE.unpack_from(data)
        size, links, uid, gid, mode, device = raw[2], raw[5], raw[6], raw[7], raw[8], raw[9]
        seconds, nanoseconds = raw[16], raw[17]
        if seconds >= 1 << 63:
            seconds -= 1 << 64
        mtime_ns = seconds * 1_000_000_000 + nanoseconds
        inode = Inode(number, mode, uid, gid, mtime_ns, links=links)
        if mode & 0o170000 == 0o100000:
            inode.size = size
        inode.device = device >> 20, device & 0xFFFFF
        return inode

    def names(self, number: int) -> Iterator[tuple[bytes, int]]:
        subvolume, ident = self._split(number)
        if ident == _EMPTY_DIRECTORY:
            return
        for (at, kind, _), data in _items(self._tree(subvolume), (ident, _DIR_INDEX, 0)):
            if at != ident or kind != _DIR_INDEX:
                return
            target, target_kind, _, _, _, length, _ = _DIR_ITEM.unpack_from(data)
            name = bytes(data[_DIR_ITEM.size : _DIR_ITEM.size + length])
            if target_kind == _ROOT_ITEM:
                here = self._is_here(target, subvolume)
                yield name, self._number(target if here else subvolume, FIRST if here else 2)
            else:
                yield name, self._number(subvolume, target)

    def _is_here(self, child: int, parent: int) -> bool:
        """Whether a subvolume lies in that other one; in a snapshot of it there is only a name."""
        key = child, _ROOT_BACKREF, parent
        found = next(_items(self._fs._root_tree, key), None)
        return child in self._roots and found is not None and found[0] == key

    # ----- content

    def runs(self, number: int) -> list[Run] | None:
        size = self.inode(number).size
        runs: list[Run] = []
        for extent in self._extents(number, size):
            if extent.compression or extent.stored < 0:
                return None
            if not extent.address:
                runs.append(Run(HOLE, extent.size))
                continue
            place = self._place(extent.address + extent.skip, extent.size)
            if place is None:
                return None
            runs.append(Run(place, extent.size))
        return joined(runs, size)

    def _place(self, address: int, size: int) -> int | None:
        """Where a logical address is on the disk; None when it is striped, or over several."""
        for chunk in self._fs._logical_fh.chunks:
            skip = address - chunk.offset
            if skip >= 0 and skip + size <= chunk.length:
                stripe = chunk.stripes[0]
                return None if chunk.type & _STRIPED or stripe.fh is None else stripe.offset + skip
        return None

    def read(self, number: int, offset: int, size: int) -> bytes:
        found = self._size(number)
        end = min(offset + size, found)
        parts = []
        for extent in self._extents(number, found):
            start, stop = max(offset, extent.at), min(end, extent.at + extent.size)
            if start < stop:
                parts.append(self._content(number, extent, start - extent.at, stop - start))
        return b"".join(parts)

    def _size(self, number: int) -> int:
        subvolume, ident = self._split(number)
        for key, data in _items(self._tree(subvolume), (ident, _INODE_ITEM, 0)):
            if key[:2] == (ident, _INODE_ITEM):
                return int(_INODE.unpack_from(data)[2])
            break
        raise BadFile(f"no inode {ident} in subvolume {subvolume}")

    def _content(self, number: int, extent: _Extent, offset: int, size: int) -> bytes:
        if extent.stored < 0:  # in the tree itself
            whole = self._inline(number)
        elif not extent.address:
            return bytes(size)
        elif extent.compression:
            whole = self._unpacked(
                extent.address, extent.stored, extent.compression, extent.unpacked
            )
        else:
            return self._logical(extent.address + extent.skip + offset, size)
        start = extent.skip + offset
        return whole[start : start + size].ljust(size, b"\0")

    def _logical(self, address: int, size: int) -> bytes:
        stream = self._fs._logical_fh
        stream.seek(address)
        data = bytes(stream.read(size))
        if len(data) != size:
            raise BadFile(f"{size} bytes at {address} are in no chunk")
        return data

    def _unpack(self, address: int, stored: int, compression: int, size: int) -> bytes:
        return _unpacked(self._logical(address, stored), compression, size, self._sector)

    def _inline(self, number: int) -> bytes:
        subvolume, ident = self._split(number)
        for key, data in _items(self._tree(subvolume), (ident, _EXTENT_DATA, 0)):
            if key[:2] != (ident, _EXTENT_DATA):
                break
            _, size, compression, _, _, _ = _EXTENT.unpack_from(data)
            raw = bytes(data[_EXTENT.size :])
            return _unpacked(raw, compression, size, self._sector) if compression else raw
        return b""

    def _extents(self, number: int, size: int) -> Iterator[_Extent]:
        """The pieces of a file in order, holes as pieces without an address."""
        subvolume, ident = self._split(number)
        position, items = 0, _items(self._tree(subvolume), (ident, _EXTENT_DATA, 0))
        for count, ((at, kind, offset), data) in enumerate(items):
            if at != ident or kind != _EXTENT_DATA or position >= size:
                break
            if offset < position or count > MAX_EXTENTS:
                raise BadFile("extents that overlap")
            if offset > position:
                yield _Extent(position, offset - position, 0, 0, 0, 0, 0)
            extent = _extent(offset, data)
            yield extent
            position = offset + extent.size
        if position < size:
            yield _Extent(position, size - position, 0, 0, 0, 0, 0)


def _extent(at: int, data: memoryview) -> _Extent:
    _, unpacked, compression, encryption, other, kind = _EXTENT.unpack_from(data)
    if compression > 3 or encryption or other or (compression and unpacked > MAX_EXTENT):
        raise BadFile(f"an extent of unknown encoding ({compression}, {encryption}, {other})")
    if kind == 0:
        return _Extent(at, unpacked, 0, -1, 0, compression, unpacked)
    address, stored, skip, size = _EXTENT_PLACE.unpack_from(data, _EXTENT.size)
    if stored > MAX_EXTENT and compression:
        raise BadFile(f"a compressed extent of {stored} bytes")
    if kind != 1:  # allocated in advance, never written
        address, compression = 0, 0
    return _Extent(at, size, address, stored, skip, compression, unpacked)


def _xattrs(data: memoryview) -> Iterator[tuple[bytes, bytes]]:
    """The attributes of one item: more than one when their names have the same hash."""
    at = 0
    while at + _DIR_ITEM.size <= len(data):
        _, _, _, _, size, length, _ = _DIR_ITEM.unpack_from(data, at)
        at += _DIR_ITEM.size
        name, value = bytes(data[at : at + length]), bytes(data[at + length : at + length + size])
        at += length + size
        if not name.startswith(b"btrfs."):
            yield name, value


def _items(tree: Any, key: Key) -> Iterator[tuple[Key, memoryview]]:  # noqa: ANN401 - dissect's
    """The items of a tree from `key` on, in order."""
    yield from _from_node(tree, tree.root_offset, key, None)


def _from_node(
    tree: Any,  # noqa: ANN401
    address: int,
    key: Key,
    level: int | None,
) -> Iterator[tuple[Key, memoryview]]:
    node, _ = tree._read_node(address)
    count, here = struct.unpack_from("<IB", node, 96)
    if here > 8 or (level is not None and here != level):
        raise BadFile("a tree whose levels are mixed up")
    item = _POINTER if here else _LEAF_ITEM
    if count > (len(node) - _HEADER) // item.size:
        raise BadFile(f"a tree node of {count} items")
    keys = _Keys(node, count, item.size)
    first = bisect_left(keys, key)
    if not here:
        for index in range(first, count):
            *found, offset, size = _LEAF_ITEM.unpack_from(node, _HEADER + index * item.size)
            yield (found[0], found[1], found[2]), node[_HEADER + offset :][:size]
        return
    for index in range(max(0, first - (first == count or keys[first] > key)), count):
        child = _POINTER.unpack_from(node, _HEADER + index * item.size)[3]
        yield from _from_node(tree, child, key, here - 1)


class _Keys:
    """The keys of a node, unpacked when they are looked at."""

    def __init__(self, node: memoryview, count: int, size: int) -> None:
        self._node, self._count, self._size = node, count, size

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Key:
        a, b, c = _KEY.unpack_from(self._node, _HEADER + index * self._size)
        return a, b, c


def _unpacked(data: bytes, compression: int, size: int, sector: int) -> bytes:
    """A compressed extent's content, never more than `size` bytes."""
    if compression == 1:
        return zlib.decompressobj().decompress(data, size)
    if compression == 3:
        return zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=False).read(size)
    found, at = bytearray(), 4
    end = min(len(data), int.from_bytes(data[:4], "little"))
    while at + 4 <= end and len(found) < size:
        if sector - at % sector < 4:  # a length is never cut by the end of a sector
            at += sector - at % sector
        length = int.from_bytes(data[at : at + 4], "little")
        found += lzo.decompress(data[at + 4 : at + 4 + length], False, sector)
        at += 4 + length
    return bytes(found[:size])
