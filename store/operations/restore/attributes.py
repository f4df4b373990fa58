"""Giving a restored inode its owner, attributes, mode, times and flags, through a descriptor.

The order matters: a change of owner clears setuid bits and file capabilities; an access ACL must be
there before the mode, whose group bits are then its mask; anything after the times may change them;
an immutable file takes nothing.

Source: pbs-client src/pxar/metadata.rs; flags: spec 9.9.
"""

import errno
import fcntl
import os
import stat
import struct
from enum import IntEnum

from store.format.pxar.acl import ACCESS_XATTR, acl_to_xattrs
from store.format.pxar.metadata import Metadata
from store.operations.restore.problems import Warnings, show

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
FAT_IOCTL_SET_ATTRIBUTES = 0x40047211
CAPABILITY = "security.capability"
PROJECT_ID_OFFSET = 12  # in Linux's struct fsxattr

# (bit in the archive, chattr bit of Linux): those that change how content is stored come first.
FLAGS_BEFORE_CONTENT = (
    (0x20000, 0x80),  # noatime
    (0x40000, 0x4),  # compress
    (0x80000, 0x800000),  # nocow
    (0x1000000, 0x400),  # nocomp
    (0x2000000, 0x20000000),  # projinherit
)
FLAGS_AFTER_CONTENT = (
    (0x10000, 0x20),  # append only
    (0x100000, 0x40),  # nodump
    (0x200000, 0x10000),  # dirsync
    (0x400000, 0x10),  # immutable
    (0x800000, 0x8),  # sync
)
FAT_FLAGS = ((0x2000, 2), (0x4000, 4), (0x8000, 32))
_BEFORE_MASK = sum(ours for ours, _ in FLAGS_BEFORE_CONTENT)
_AFTER_MASK = sum(ours for ours, _ in FLAGS_AFTER_CONTENT)
_FAT_MASK = sum(ours for ours, _ in FAT_FLAGS)


class ForeignOwners(IntEnum):
    """What becomes of an inode whose recorded owner is not the user who restores.

    As `small_files` in _inode.c wants it.
    """

    WARN = 0  # that it is left to the user, from now on
    LEAVE = 1
    GIVE = 2


class Attributes:
    """Applies metadata.

    What the user or the file system cannot keep is a warning, once for each kind of thing.

    ignore_ownership: leave every inode to the user who restores. Without it that happens, with a
    warning, for users who may not give files away. Setuid and setgid bits are dropped wherever the
    owner is not the recorded one.

    ids: the user's. foreign_owners: what other owners' files get now.
    """

    def __init__(self, warnings: Warnings, *, ignore_ownership: bool = False) -> None:
        self._warnings = warnings
        self.ids = (os.geteuid(), os.getegid())
        if ignore_ownership:
            self.foreign_owners = ForeignOwners.LEAVE
        else:
            self.foreign_owners = ForeignOwners.WARN if self.ids[0] else ForeignOwners.GIVE

    def before_content(self, file: int, metadata: Metadata, path: bytes) -> None:
        """Set the flags that must be there before the first byte is written."""
        if metadata.flags & _BEFORE_MASK:
            self._add_flags(file, metadata.flags, FLAGS_BEFORE_CONTENT, path)

    def apply(self, file: int, metadata: Metadata, path: bytes) -> None:
        """Apply everything to an open regular file or directory.

        Raises SourceError or OutOfSpace.
        """
        owned = self._chown(file, metadata, path)
        if metadata.xattrs:
            for name, value in metadata.xattrs:
                self._set_xattr(file, os.fsdecode(name), value, "extended attributes", path)
        if metadata.fcaps is not None and owned:
            self._set_xattr(file, CAPABILITY, metadata.fcaps, "file capabilities", path)
        if metadata.acl is not None:
            for name, value in acl_to_xattrs(metadata.acl, metadata.mode).items():
                self._set_xattr(file, os.fsdecode(name), value, "access control lists", path)
        if metadata.quota_project_id is not None:
            self._set_project_id(file, metadata.quota_project_id, path)
        self._chmod_and_stamp(file, metadata, path, owned=owned)
        if metadata.flags & (_AFTER_MASK | _FAT_MASK):
            self._add_flags(file, metadata.flags, FLAGS_AFTER_CONTENT, path)
            self._set_fat_flags(file, metadata.flags, path)

    def apply_to_node(self, node: str, metadata: Metadata, path: bytes) -> None:
        """Apply owner, mode and times to a symlink, device, fifo or socket.

        node: a path that leads to the inode itself, never through it.
        """
        owned = self._chown(node, metadata, path)
        self._chmod_and_stamp(node, metadata, path, owned=owned)

    def drop_inherited_acl(self, file: int, path: bytes) -> None:
        """Remove the access ACL that a default ACL of the directory around has given a new file."""
        try:
            os.removexattr(file, os.fsdecode(ACCESS_XATTR))
        except OSError as error:
            if error.errno != errno.ENODATA:
                self._warnings.tolerate(error, "access control lists", path)

    def _chown(self, inode: int | str, metadata: Metadata, path: bytes) -> bool:
        """Return whether the inode belongs to its recorded owner now."""
        owner = (metadata.uid, metadata.gid)
        if owner != self.ids and self.foreign_owners is not ForeignOwners.GIVE:
            if self.foreign_owners is ForeignOwners.WARN:
                self._warnings.once(
                    "owners", f"{show(path)}: owners not restored (not root), here and below"
                )
                self.foreign_owners = ForeignOwners.LEAVE
            return False
        try:
            if isinstance(inode, str) or _owner(inode) != owner:  # looking costs less than setting
                os.chown(inode, *owner)
        except OSError as error:
            self._warnings.tolerate(error, "owners", path)
            return False
        return True

    def _chmod_and_stamp(
        self, inode: int | str, metadata: Metadata, path: bytes, *, owned: bool
    ) -> None:
        mode = metadata.mode & 0o7777
        time = metadata.mtime_s * 1_000_000_000 + metadata.mtime_ns
        try:
            if not stat.S_ISLNK(metadata.mode):
                os.chmod(inode, mode if owned else mode & 0o1777)
            os.utime(inode, ns=(time, time))
        except OverflowError:
            self._warnings.say(
                f"{show(path)}: modification time {metadata.mtime_s} out of range, not restored"
            )
        except OSError as error:
            self._warnings.tolerate(error, "modes and times", path)

    def _set_xattr(self, file: int, name: str, value: bytes, feature: str, path: bytes) -> None:
        try:
            os.setxattr(file, name, value)
        except OSError as error:
            self._warnings.tolerate_xattr(error, feature, path)

    def _set_project_id(self, file: int, project_id: int, path: bytes) -> None:
        try:
            attributes = bytearray(fcntl.ioctl(file, FS_IOC_FSGETXATTR, bytes(28)))
            struct.pack_into("<I", attributes, PROJECT_ID_OFFSET, project_id & 0xFFFFFFFF)
            fcntl.ioctl(file, FS_IOC_FSSETXATTR, bytes(attributes))
        except OSError as error:
            self._warnings.tolerate(error, "project ids", path)

    def _add_flags(
        self, file: int, flags: int, table: tuple[tuple[int, int], ...], path: bytes
    ) -> None:
        wanted = sum(linux for ours, linux in table if flags & ours)
        if not wanted:
            return
        try:
            current = int.from_bytes(fcntl.ioctl(file, FS_IOC_GETFLAGS, bytes(8))[:4], "little")
            fcntl.ioctl(file, FS_IOC_SETFLAGS, (current | wanted).to_bytes(8, "little"))
        except OSError as error:
            self._warnings.tolerate(error, "file flags (chattr)", path)

    def _set_fat_flags(self, file: int, flags: int, path: bytes) -> None:
        wanted = sum(fat for ours, fat in FAT_FLAGS if flags & ours)
        if not wanted:
            return
        try:
            fcntl.ioctl(file, FAT_IOCTL_SET_ATTRIBUTES, wanted.to_bytes(4, "little"))
        except OSError as error:
            self._warnings.tolerate(error, "FAT attributes", path)


def _owner(file: int) -> tuple[int, int]:
    found = os.fstat(file)
    return found.st_uid, found.st_gid
