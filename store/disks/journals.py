"""Whether a file system was in use when it was copied, so that its journal has to be replayed.

Each function reads a few blocks of one file system and answers with one line for people, "" when
it is clean. What it cannot make out it calls not clean.

Source: linux fs/ext4/ext4.h, fs/xfs/xfs_log_recover.c, fs/xfs/libxfs/xfs_{log_,}format.h,
fs/btrfs (struct btrfs_super_block), fs/ntfs3/ntfs.h and fslog.c.
"""

import struct
from collections.abc import Callable
from typing import Protocol

PReadable = Callable[[int, int], bytes]

_EXT_RECOVER = 0x4
_BTRFS_SUPER = 0x10000
_BTRFS_LOG_ROOT = 0x60
_XLOG_MAGIC = 0xFEEDBABE
_XLOG_UNMOUNT = 0x20
_BASIC = 512
# The largest log record is 256 KiB, and its headers.
_RECORD_BLOCKS = 1024
_MFT_LOGFILE, _MFT_VOLUME = 2, 3
_ATTR_VOLUME_NAME, _ATTR_DATA = 0x60, 0x80
_NTFS_PAGE = 4096
_LARGEST_CLUSTER = 2 << 20
_MIRRORED = 4  # file records that are there twice, or as many as a cluster has
_RESTART_CLEAN = 2
_NO_CLIENT = 0xFFFF


class _Pread(Protocol):
    """Up to `size` bytes at `offset`."""

    def __call__(self, offset: int, size: int, /) -> bytes: ...


def unclean(kind: str, pread: _Pread) -> str:
    """Why a file system of this kind has to be recovered first; "" when it need not."""
    reader = _READERS.get(kind)
    try:
        return "" if reader is None else reader(pread)
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        return f"the journal cannot be made out ({error})"


def _ext(pread: _Pread) -> str:
    incompatible = struct.unpack_from("<I", pread(1024, 1024), 0x60)[0]
    return "the journal holds writes (needs_recovery)" if incompatible & _EXT_RECOVER else ""


def _btrfs(pread: _Pread) -> str:
    log_root = struct.unpack_from("<Q", pread(_BTRFS_SUPER, 4096), _BTRFS_LOG_ROOT)[0]
    return "the log tree holds writes (log_root)" if log_root else ""


def _xfs(pread: _Pread) -> str:
    super_block = pread(0, 512)
    block_size = struct.unpack_from(">I", super_block, 4)[0]
    start, blocks = (
        struct.unpack_from(">Q", super_block, 48)[0],
        struct.unpack_from(">I", super_block, 96)[0],
    )
    ag_blocks, ag_shift = struct.unpack_from(">I", super_block, 84)[0], super_block[124]
    if not start:
        return "its log is on another disk"
    block = (start >> ag_shift) * ag_blocks + (start & (1 << ag_shift) - 1)
    offset, count = block * block_size, blocks * block_size // _BASIC
    if not 0 < count < 1 << 26:
        raise ValueError(f"log of {count} blocks")
    return xfs_log_unclean(lambda first, many: pread(offset + first * _BASIC, many * _BASIC), count)


def xfs_log_unclean(read: PReadable, count: int) -> str:
    """The same for an XFS log by itself: clean when an unmount record is the last thing in it.

    Args:
        read: (first, many) blocks of 512 bytes.
        count: how many there are.
    """
    first = _cycle(read(0, 1))
    if not first:
        return ""  # never written
    head = _first_other_cycle(read, count, first)
    record = _last_record(read, count, head)
    if record is None:
        return "the log has no end"
    place, header = record
    length, size, operations = (
        struct.unpack_from(">I", header, 12)[0],
        struct.unpack_from(">I", header, 320)[0],
        struct.unpack_from(">I", header, 40)[0],
    )
    headers = max(1, -(-size // 32768)) if struct.unpack_from(">I", header, 8)[0] & 2 else 1
    after = place + headers + -(-length // _BASIC)
    if operations != 1 or after % count != head % count:
        return "the log holds writes"
    operation = read((place + headers) % count, 1)
    return "" if operation[9] & _XLOG_UNMOUNT else "the log holds writes"


def _cycle(block: bytes) -> int:
    """How many times the log had gone round when this block was written."""
    magic, cycle = struct.unpack_from(">II", block)
    return int(cycle if magic == _XLOG_MAGIC else magic)


def _first_other_cycle(read: PReadable, count: int, first: int) -> int:
    """Where the newest writes end: blocks before are of the first one's cycle, those after not."""
    if _cycle(read(count - 1, 1)) == first:
        return count
    low, high = 0, count - 1
    while high - low > 1:
        middle = (low + high) // 2
        if _cycle(read(middle, 1)) == first:
            low = middle
        else:
            high = middle
    return high


def _last_record(read: PReadable, count: int, head: int) -> tuple[int, bytes] | None:
    """Place and header of the last log record before `head`, round the ring's end if need be."""
    many = min(_RECORD_BLOCKS, count)
    start = head - many
    blocks = read(start, many) if start >= 0 else read(count + start, -start) + read(0, head)
    for index in range(many - 1, -1, -1):
        block = blocks[index * _BASIC : (index + 1) * _BASIC]
        if struct.unpack_from(">I", block)[0] == _XLOG_MAGIC:
            return (start + index) % count, block
    return None


def _ntfs_records(pread: _Pread) -> tuple[int, int, int]:
    """Where the file records are, how large one is, and how large a cluster."""
    boot = pread(0, 512)
    sector, per_cluster = struct.unpack_from("<H", boot, 11)[0], boot[13]
    cluster = sector * (per_cluster if per_cluster <= 0x80 else 1 << 256 - per_cluster)
    mft = struct.unpack_from("<Q", boot, 48)[0] * cluster
    size = struct.unpack_from("<b", boot, 64)[0]
    size = 1 << -size if size < 0 else size * cluster
    if not 256 <= size <= 65536:
        raise ValueError(f"file records of {size} bytes")
    return mft, size, cluster


def ntfs_first_records(pread: _Pread) -> tuple[int, int, int]:
    """Where the first file records are, where their copy ($MFTMirr) is, and how many bytes have it.

    Raises ValueError, IndexError, struct.error: this is no NTFS.
    """
    mft, size, cluster = _ntfs_records(pread)
    if cluster > _LARGEST_CLUSTER:
        raise ValueError(f"clusters of {cluster} bytes")
    mirror = struct.unpack_from("<Q", pread(0, 512), 56)[0] * cluster
    return mft, mirror, max(_MIRRORED * size, cluster)


def ntfs_label(pread: _Pread) -> bytes:
    """The name of an NTFS volume, in UTF-8; b"" when there is none."""
    try:
        mft, size, _ = _ntfs_records(pread)
        name = _attribute(pread(mft + _MFT_VOLUME * size, size), _ATTR_VOLUME_NAME)
        length, start = struct.unpack_from("<I", name, 16)[0], struct.unpack_from("<H", name, 20)[0]
    except (struct.error, IndexError, ValueError, OverflowError):
        return b""
    return name[start : start + length].decode("utf-16-le", "replace").encode()


def _ntfs(pread: _Pread) -> str:
    """By its journal alone.

    What only says that it is dirty has nothing to be replayed: Windows wants it checked, or a
    system that writes no journal (ntfs-3g, ntfs3) had it mounted.
    """
    mft, size, cluster = _ntfs_records(pread)
    log = _attribute(pread(mft + _MFT_LOGFILE * size, size), _ATTR_DATA)
    return ntfs_log_unclean(pread(_first_run(log) * cluster, 2 * _NTFS_PAGE))


def _attribute(record: bytes, kind: int) -> bytes:
    """The first attribute of a kind in a file record (fix-ups lie behind what is looked at)."""
    if record[:4] != b"FILE":
        raise ValueError("no file record")
    position = struct.unpack_from("<H", record, 20)[0]
    while True:
        found, length = struct.unpack_from("<II", record, position)
        if found == kind:
            return record[position : position + length]
        if found == 0xFFFFFFFF or length < 16:
            raise ValueError(f"no attribute {kind:#x}")
        position += length


def _first_run(attribute: bytes) -> int:
    """The first cluster of an attribute that is not in its record."""
    if not attribute[8]:
        raise ValueError("the journal lies in its record")
    pairs = struct.unpack_from("<H", attribute, 32)[0]
    sizes = attribute[pairs]
    start = pairs + 1 + (sizes & 15)
    return int.from_bytes(attribute[start : start + (sizes >> 4)], "little", signed=True)


def ntfs_log_unclean(pages: bytes) -> str:
    """The same for the two restart pages of an NTFS journal, of which the newer one counts."""
    if pages[:4] == b"\xff\xff\xff\xff":
        return ""  # emptied: by mkntfs, or by ntfs-3g, which does not use it
    if pages[:4] == b"CHKD":
        return ""  # chkdsk was there, and is the last to know what the volume should be
    told = [
        _restart_page(pages[at : at + _NTFS_PAGE])
        for at in (0, _NTFS_PAGE)
        if pages[at : at + 4] == b"RSTR"
    ]
    if not told:
        return "the journal has no restart page"
    newest = max(lsn for lsn, _ in told)
    return "" if all(clean for lsn, clean in told if lsn == newest) else "the journal holds writes"


def _restart_page(page: bytes) -> tuple[int, bool]:
    """How new it is, and whether it says that the volume was shut down."""
    area = struct.unpack_from("<H", page, 24)[0]
    lsn, in_use, flags = struct.unpack_from("<Q4xHH", page, area)
    return lsn, bool(in_use == _NO_CLIENT or flags & _RESTART_CLEAN)


_READERS: dict[str, Callable[[_Pread], str]] = {
    "ext3": _ext, "ext4": _ext, "xfs": _xfs, "btrfs": _btrfs, "ntfs": _ntfs,
}  # fmt: skip
