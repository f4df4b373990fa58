"""What `stat` and `getxattr` say about a node, be it a pxar entry or not."""

import os
import stat
from dataclasses import dataclass
from struct import Struct

from pyfuse3 import EntryAttributes, InodeT, ModeT

from store.format.pxar.acl import acl_to_xattrs
from store.format.pxar.entries import Entry, EntryKind
from store.format.pxar.items import ENTRY_SIZE, ENTRY_V1_SIZE, PXAR_ENTRY, PXAR_ENTRY_V1

# The mutable levels (namespaces, groups, the list of snapshots) are asked again after a second;
# below a snapshot nothing ever changes.
CHANGING_S = 1.0
IMMUTABLE_S = 6 * 3600.0

BLOCK = 512
# What the kernel takes; a hostile archive may say more.
MAX_SIZE = 2**63 - 1
MAX_DEVICE = 2**32 - 1
NANOSECONDS = 1_000_000_000
_STAT = Struct("<QQQQIIqI")
_STAT_V1 = Struct("<QQQQIIQ")
_TYPE_BITS = {
    EntryKind.DIRECTORY: stat.S_IFDIR,
    EntryKind.FILE: stat.S_IFREG,
    EntryKind.HARDLINK: stat.S_IFREG,
    EntryKind.SYMLINK: stat.S_IFLNK,
    EntryKind.CHAR_DEVICE: stat.S_IFCHR,
    EntryKind.BLOCK_DEVICE: stat.S_IFBLK,
    EntryKind.FIFO: stat.S_IFIFO,
    EntryKind.SOCKET: stat.S_IFSOCK,
}
_DEVICES = (EntryKind.CHAR_DEVICE, EntryKind.BLOCK_DEVICE)
# An enumeration's member costs a call each time.
FILE, SYMLINK = EntryKind.FILE, EntryKind.SYMLINK


@dataclass(frozen=True, slots=True)
class Facts:
    """The stat of a node that is not a pxar entry.

    `size` in bytes, `blocks` of 512 bytes (None: all of size).
    """

    mode: int
    size: int = 0
    blocks: int | None = None
    mtime_ns: int = 0
    timeout_s: float = IMMUTABLE_S


@dataclass(frozen=True, slots=True)
class Presentation:
    """Whose files they are and which mode bits show.

    own_uid, own_gid: of the nodes that have no owner of their own (images, blobs, groups).
    uid, gid: when set, of every file; umask: bits taken off every mode.
    """

    own_uid: int
    own_gid: int
    uid: int | None = None
    gid: int | None = None
    umask: int = 0

    def of_facts(self, ino: InodeT, facts: Facts) -> EntryAttributes:
        """Attributes of a namespace, group, snapshot, image or blob."""
        attributes = EntryAttributes()
        attributes.st_ino = ino
        attributes.st_mode = ModeT(facts.mode & ~self.umask)
        attributes.st_uid = self.own_uid if self.uid is None else self.uid
        attributes.st_gid = self.own_gid if self.gid is None else self.gid
        attributes.st_size = facts.size
        attributes.st_blocks = -(-facts.size // BLOCK) if facts.blocks is None else facts.blocks
        _set_times(attributes, facts.mtime_ns)
        attributes.entry_timeout = attributes.attr_timeout = facts.timeout_s
        return attributes

    def of_entry(self, ino: InodeT, entry: Entry, links: int) -> EntryAttributes:
        """Attributes of a pxar entry; `links` is how many names a regular file has.

        A directory's link count is 1, which tells programs that it says nothing about
        subdirectories.
        """
        return self.write_entry(immutable_attributes(), ino, entry, links)

    def write_entry(
        self, attributes: EntryAttributes, ino: InodeT, entry: Entry, links: int
    ) -> EntryAttributes:
        """The same over those of another entry: a listing needs them only until they are sent.

        `attributes` are as `immutable_attributes` made them, or this.
        """
        mode, uid, gid, mtime_ns = _stat_of(entry)
        kind, size = entry.kind, 0
        attributes.st_ino = ino
        # The kind is what the archive's structure says; hostile mode bits cannot contradict it.
        attributes.st_mode = ModeT(_TYPE_BITS[kind] | mode & 0o7777 & ~self.umask)
        attributes.st_uid = uid if self.uid is None else self.uid
        attributes.st_gid = gid if self.gid is None else self.gid
        if kind is FILE:
            size = min(entry.size, MAX_SIZE)
            attributes.st_blocks = -(-size // BLOCK)
            attributes.st_nlink = links
        else:
            attributes.st_blocks, attributes.st_nlink = 0, 1
            if kind is SYMLINK:
                size = len(entry.target)
        attributes.st_size = size
        attributes.st_rdev = _device_of(entry) if kind in _DEVICES else 0
        _set_times(attributes, mtime_ns)
        return attributes


def immutable_attributes() -> EntryAttributes:
    """Those of nothing yet, that stay valid."""
    attributes = EntryAttributes()
    attributes.entry_timeout = attributes.attr_timeout = IMMUTABLE_S
    return attributes


def _device_of(entry: Entry) -> int:
    major, minor = entry.device
    return os.makedev(major & MAX_DEVICE, minor & MAX_DEVICE)


def _set_times(attributes: EntryAttributes, mtime_ns: int) -> None:
    attributes.st_mtime_ns = attributes.st_ctime_ns = attributes.st_atime_ns = mtime_ns


def _stat_of(entry: Entry) -> tuple[int, int, int, int]:
    """Mode, uid, gid, mtime_ns; without a Metadata for each entry of a large directory."""
    raw = entry.raw_metadata
    htype = int.from_bytes(raw[:8], "little")
    if htype == PXAR_ENTRY and len(raw) >= ENTRY_SIZE:
        _, _, mode, _, uid, gid, mtime_s, mtime_ns = _STAT.unpack_from(raw)
        return mode, uid, gid, mtime_s * NANOSECONDS + mtime_ns
    if htype == PXAR_ENTRY_V1 and len(raw) >= ENTRY_V1_SIZE:
        _, _, mode, _, uid, gid, mtime_ns = _STAT_V1.unpack_from(raw)
        return mode, uid, gid, mtime_ns
    return 0, 0, 0, 0  # a hard link whose target cannot be read has no metadata


def xattrs_of(entry: Entry) -> dict[bytes, bytes]:
    """All extended attributes of an entry: stored ones, ACLs and capabilities.

    Raises FormatError.
    """
    if len(entry.raw_metadata) <= ENTRY_SIZE:
        return {}
    metadata = entry.metadata
    xattrs = dict(metadata.xattrs)
    if metadata.fcaps is not None:
        xattrs[b"security.capability"] = metadata.fcaps
    return xattrs | acl_to_xattrs(metadata.acl, metadata.mode)
