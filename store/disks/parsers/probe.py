"""What is on a part, by its first bytes: kind, and label."""

import struct
from typing import NamedTuple

from store.disks.journals import ntfs_label
from store.disks.parsers.files import Blocks
from store.disks.parsers.lvm import is_physical

PARSED = ("ext2", "ext3", "ext4", "xfs", "btrfs", "ntfs", "fat", "exfat")
_EXT_JOURNAL = 0x4
_EXT4_ONLY = 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x8000 | 0x10000  # extents, 64bit, flex_bg…
_EXT4_RO_ONLY = 0x8 | 0x10 | 0x20 | 0x40 | 0x400  # huge_file, gdt_csum, dir_nlink, extra_isize…
# offset, bytes, kind: known by name alone; the machine's kernel may read some.
_OTHERS = (
    (0, b"hsqs", "squashfs"),
    (1024, b"\x10\x20\xf5\xf2", "f2fs"),
    (32769, b"CD001", "iso9660"),
    (4096, b"\xfc\x4e\x2b\xa9", "md-raid"),
    (0, b"\xfc\x4e\x2b\xa9", "md-raid"),
    (65588, b"ReIsEr", "reiserfs"),
    (32768, b"JFS1", "jfs"),
    (4086, b"SWAPSPACE2", "swap"),
    (0, b"LUKS\xba\xbe", "luks"),
    (3, b"-FVE-FS-", "bitlocker"),
)
_BITLOCKER = bytes.fromhex("3bd66749292ed84a8399f6a339e3d001")


class Found(NamedTuple):
    """Kind (see `Part`) and label; the label as it is on the disk, not yet a safe name."""

    kind: str | None
    label: bytes = b""


def probe(blocks: Blocks) -> Found:
    """Look at a part. Raises nothing but what reading it raises."""
    head = blocks.pread(0, 512)
    if head[3:11] == b"MSWIN4.1" and head[424:440] == _BITLOCKER:
        return Found("bitlocker")  # "to go": with a boot sector that looks like FAT
    if head[3:11] == b"NTFS    ":
        return Found("ntfs", ntfs_label(blocks.pread))
    if head[3:11] == b"EXFAT   ":
        return Found("exfat")
    if head[:4] == b"XFSB":
        return Found("xfs", head[108:120].split(b"\0")[0])
    found = _ext(blocks) or _btrfs(blocks) or _other(blocks)
    if found is None and is_physical(blocks):
        return Found("lvm2-pv")
    return found or _fat(head) or Found(None)


def _ext(blocks: Blocks) -> Found | None:
    raw = blocks.pread(1024, 1024)
    if len(raw) < 1024 or raw[56:58] != b"\x53\xef":
        return None
    compatible, incompatible, read_only = struct.unpack_from("<III", raw, 0x5C)
    if incompatible & _EXT4_ONLY or read_only & _EXT4_RO_ONLY:
        kind = "ext4"
    else:
        kind = "ext3" if compatible & _EXT_JOURNAL else "ext2"
    return Found(kind, raw[0x78:0x88].split(b"\0")[0])


def _btrfs(blocks: Blocks) -> Found | None:
    raw = blocks.pread(0x10000, 4096)
    if raw[0x40:0x48] != b"_BHRfS_M":
        return None
    return Found("btrfs", raw[0x12B : 0x12B + 256].split(b"\0")[0])


def _other(blocks: Blocks) -> Found | None:
    for offset, magic, kind in _OTHERS:
        if blocks.pread(offset, len(magic)) == magic:
            return Found(kind)
    return None


def _fat(head: bytes) -> Found | None:
    """FAT has no magic of its own: a boot sector whose numbers make sense."""
    if len(head) < 512 or head[510:] != b"\x55\xaa" or head[0] not in (0xEB, 0xE9):
        return None
    sector, cluster, reserved, copies = struct.unpack_from("<HBHB", head, 11)
    if sector not in (512, 1024, 2048, 4096) or cluster not in (1, 2, 4, 8, 16, 32, 64, 128):
        return None
    if not reserved or copies not in (1, 2) or head[21] < 0xF0:
        return None
    small = struct.unpack_from("<H", head, 22)[0]
    label = head[43:54] if small else head[71:82]
    label = label.split(b"\0")[0].rstrip()
    return Found("fat", b"" if label == b"NO NAME" else label)
