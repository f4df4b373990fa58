"""NTFS: records, attributes and compressed streams by dissect.ntfs; directories by ourselves.

Numbers are file record numbers. Owners and ACLs are Windows' and not shown.

Source: linux fs/ntfs3/ntfs.h; Microsoft [MS-FSCC] 2.1.2 (reparse points).
"""

import stat
import struct
from collections.abc import Iterator
from typing import Any

from dissect.ntfs import ntfs as dissect
from dissect.ntfs.c_ntfs import ATTRIBUTE_TYPE_CODE
from dissect.ntfs.util import apply_fixup

from store.disks.parsers.blocks import BlockFile, CachedBlocks
from store.disks.parsers.clusters import DIRECTORY_MODE, FILE_MODE, READ_ONLY_MODE
from store.disks.parsers.files import HOLE, BadFile, Inode, Run, joined, read_runs

ROOT = 5
# Records below are the file system's own files, $MFT and so on.
FIRST_USER = 16
MAX_NUMBER = 1 << 46
_DATA, _ROOT_INDEX = ATTRIBUTE_TYPE_CODE.DATA, ATTRIBUTE_TYPE_CODE.INDEX_ROOT
_INDEX, _BITMAP = ATTRIBUTE_TYPE_CODE.INDEX_ALLOCATION, ATTRIBUTE_TYPE_CODE.BITMAP
_NAME, _REPARSE = ATTRIBUTE_TYPE_CODE.FILE_NAME, ATTRIBUTE_TYPE_CODE.REPARSE_POINT
_IN_USE = 1
_COMPRESSED, _ENCRYPTED = 0x00FF, 0x4000
_DOS = 2
_ENTRY = struct.Struct("<QHHH2x")
_LAST = 2
_SYMLINK, _MOUNT_POINT = 0xA000000C, 0xA0000003
# Windows keeps the content elsewhere, and zeros here.
_ELSEWHERE = {0x80000017: "compressed by Windows (WOF)", 0x80000013: "deduplicated by Windows"}
_CLOUD = 0x9000001A
_BLOCKS = 1 << 20
_SINCE_1601_NS = 11_644_473_600 * 1_000_000_000


class Ntfs:
    """A FileSystem."""

    def __init__(self, blocks: CachedBlocks) -> None:
        self._fs = dissect.NTFS(BlockFile(blocks))
        self._blocks = blocks
        self._cluster = int(self._fs.cluster_size)
        if self._cluster <= 0 or self._fs.mft is None:
            raise BadFile("an NTFS volume without files")
        self._size = int(self._fs._record_size)
        if not 512 <= self._size <= 65536:
            raise BadFile(f"file records of {self._size} bytes")
        runs = self._fs.mft.fh.runlist
        self._mft = [Run(start * self._cluster, count * self._cluster) for start, count in runs]

    @property
    def label(self) -> bytes:
        """The volume's name."""
        return (self._fs.volume_name or "").encode("utf-8", "replace")

    def root(self) -> int:
        return ROOT

    def _record(self, number: int) -> Any:  # noqa: ANN401 - dissect's
        record = self._fs.mft.get(number)
        if not record.header.Flags & _IN_USE:
            raise BadFile(f"file record {number} is not in use")
        return record

    def inode(self, number: int) -> Inode:
        """Most records tell all in their first attributes, and are read without dissect."""
        return self._plain_inode(number) or self._any_inode(number)

    def _plain_inode(self, number: int) -> Inode | None:
        """None for what needs a closer look: reparse points, records with an attribute list."""
        raw = read_runs(self._blocks, self._mft, number * self._size, self._size)
        if len(raw) < self._size or raw[:4] != b"FILE":
            raise BadFile(f"file record {number} is none")
        record = apply_fixup(raw)
        at, flags = struct.unpack_from("<HH", record, 20)
        if not flags & _IN_USE:
            raise BadFile(f"file record {number} is not in use")
        inode, times, names = Inode(number, DIRECTORY_MODE if flags & 2 else FILE_MODE), b"", 0
        while at + 24 <= len(record):
            kind, length = struct.unpack_from("<II", record, at)
            if kind == 0xFFFFFFFF or length < 24:
                break
            value = at + struct.unpack_from("<H", record, at + 20)[0]
            if kind in (0x20, 0xC0):
                return None
            if kind == 0x10:
                times = record[value : value + 36]
            elif kind == 0x30:
                names += record[value + 65] != _DOS
            elif kind == 0x80 and not record[at + 9] and not flags & 2:
                inode.size = _size_of(record, at)
            at += length
        if len(times) == 36:
            modified, attributes = struct.unpack("<8xQ16xI", times)
            inode.mtime_ns = modified * 100 - _SINCE_1601_NS
            if attributes & 1 and not flags & 2:
                inode.mode = READ_ONLY_MODE
        inode.links = max(1, names)
        return inode

    def _any_inode(self, number: int) -> Inode:
        record = self._record(number)
        information = record.attributes.STANDARD_INFORMATION
        inode = Inode(number, FILE_MODE)
        inode.mtime_ns = int(information.last_modification_time_ns) if information else 0
        target = self._target(record)
        if target is not None:
            inode.mode, inode.target = stat.S_IFLNK | 0o777, target
        elif record.is_dir():
            inode.mode = DIRECTORY_MODE
        else:
            read_only = information and information.file_attributes & 1
            inode.mode = READ_ONLY_MODE if read_only else FILE_MODE
            inode.size = int(record.size()) if record.has_stream() else 0
            names = record.attributes[_NAME]
            inode.links = max(1, sum(int(name.attribute.flags) != _DOS for name in names))
        return inode

    def _reparse(self, record: Any) -> tuple[int, Any]:  # noqa: ANN401
        for attribute in record.attributes[_REPARSE]:
            return int(attribute.attribute.tag), attribute.attribute
        return 0, None

    def _target(self, record: Any) -> bytes | None:  # noqa: ANN401
        """Where a symlink or junction points, in slashes; None when it is none."""
        tag, point = self._reparse(record)
        if tag not in (_SYMLINK, _MOUNT_POINT):
            return None
        name = point.print_name or point.substitute_name or ""
        target = name.removeprefix("\\??\\").replace("\\", "/").split("\0")[0]
        return target.encode("utf-8", "replace") or b"?"

    # ----- content

    def _content(self, number: int) -> Any:  # noqa: ANN401
        """The attributes of a file's unnamed stream; none for an empty file without it."""
        record = self._record(number)
        tag, _ = self._reparse(record)
        elsewhere = _ELSEWHERE.get(tag)
        if elsewhere is None and tag & 0xFFFF0FFF == _CLOUD:
            elsewhere = "in the cloud"
        if elsewhere is not None:
            raise BadFile(f"file record {number}: its content is {elsewhere}")
        found = record.attributes.find("", _DATA)
        if found and found[0].header.flags & _ENCRYPTED:
            raise BadFile(f"file record {number} is encrypted by Windows (EFS)")
        return found

    def runs(self, number: int) -> list[Run] | None:
        found = self._content(number)
        if not found:
            return []
        if found[0].header.resident or found[0].header.flags & _COMPRESSED:
            return None
        first = min(found, key=lambda part: int(part.header.lowest_vcn))
        size = int(found.size())
        valid = min(size, int(first.header.header.Form.Nonresident.ValidDataLength))
        written = [
            Run(HOLE if start is None else start * self._cluster, count * self._cluster)
            for start, count in found.dataruns()
        ]
        if any(run.size < 0 or run.start < HOLE for run in written):
            raise BadFile(f"file record {number}: runs of negative length")
        return joined([*joined(written, valid), Run(HOLE, size - valid)], size)

    def read(self, number: int, offset: int, size: int) -> bytes:
        found = self._content(number)
        if not found:
            return b""
        stream = found.open()
        stream.seek(offset)
        return bytes(stream.read(max(0, min(size, int(found.size()) - offset))))

    # ----- directories

    def names(self, number: int) -> Iterator[tuple[bytes, int]]:
        record = self._record(number)
        if not record.is_dir():
            raise BadFile(f"file record {number} is no directory")
        root = bytes(record.open("$I30", _ROOT_INDEX).read())
        yield from self._visible(number, root, 16)
        if record.has_stream("$I30", _INDEX):
            size = struct.unpack_from("<I", root, 8)[0]
            if not 512 <= size <= 65536 or size % 512:
                raise BadFile(f"index blocks of {size} bytes")
            for block in self._index_blocks(record, size):
                yield from self._visible(number, block, 24)

    def _index_blocks(self, record: Any, size: int) -> Iterator[bytes]:  # noqa: ANN401
        """The index blocks that are in use; the others hold names that were deleted."""
        used = bytes(record.open("$I30", _BITMAP).read(_BLOCKS // 8))
        stream = record.open("$I30", _INDEX)
        for index in range(min(int(record.size("$I30", _INDEX)) // size, len(used) * 8)):
            if not used[index // 8] >> index % 8 & 1:
                continue
            stream.seek(index * size)
            block = bytes(stream.read(size))
            if block[:4] != b"INDX":
                raise BadFile(f"file record {record.segment}: a broken index block")
            yield apply_fixup(block)

    def _visible(self, directory: int, node: bytes, header: int) -> Iterator[tuple[bytes, int]]:
        """The names in an index node, without DOS doubles and the file system's own files."""
        first, size = struct.unpack_from("<II", node, header)
        at, end = header + first, min(header + size, len(node))
        while at + _ENTRY.size <= end:
            reference, length, key, flags = _ENTRY.unpack_from(node, at)
            if flags & _LAST or length < _ENTRY.size:
                return
            number = reference & (1 << 48) - 1
            if key >= 66 and at + 16 + key <= len(node):
                count, space = node[at + 80], node[at + 81]
                raw = node[at + 82 : at + 82 + 2 * count]
                if space != _DOS and number != directory and number >= FIRST_USER:
                    name = raw.decode("utf-16-le", "surrogatepass")
                    yield name.encode("utf-8", "surrogatepass"), number
            at += length


def _size_of(record: bytes, at: int) -> int:
    """The size of an attribute's value, be it in the record (u32) or outside (u64)."""
    if record[at + 8]:
        return int(struct.unpack_from("<Q", record, at + 48)[0])
    return int(struct.unpack_from("<I", record, at + 16)[0])
