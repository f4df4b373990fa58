"""The facts of one inode of the source tree, as the archive records them (spec section 9.6).

Extended attributes, ACLs, capabilities, chattr flags and project ids are asked for directories and
regular files only: the others are recorded without, as the original client does.
"""

import errno
import fcntl
import os
import struct

from store.format.pxar.acl import acl_from_xattrs
from store.format.pxar.entries import Metadata, encode_metadata, encode_stat
from store.format.pxar.items import MAX_XATTR_NAME

FS_IOC_GETFLAGS = 0x80086601
FS_IOC_FSGETXATTR = 0x801C581F
FAT_IOCTL_GET_ATTRIBUTES = 0x80047210
ACCESS_ACL, DEFAULT_ACL = "system.posix_acl_access", "system.posix_acl_default"
CAPABILITY = "security.capability"

# (chattr bit of Linux, bit in the archive), spec section 9.9
CHATTR_FLAGS = (
    (0x20, 0x10000),  # append only
    (0x80, 0x20000),  # noatime
    (0x4, 0x40000),  # compress
    (0x800000, 0x80000),  # nocow
    (0x40, 0x100000),  # nodump
    (0x10000, 0x200000),  # dirsync
    (0x10, 0x400000),  # immutable
    (0x8, 0x800000),  # sync
    (0x400, 0x1000000),  # nocomp
    (0x20000000, 0x2000000),  # projinherit
)
CHATTR_MASK = sum(linux for linux, _ in CHATTR_FLAGS)
FAT_FLAGS = ((2, 0x2000), (4, 0x4000), (32, 0x8000))
PROJECT_ID_FILE_SYSTEMS = {"ext4", "xfs", "zfs", "fuse", "fuseblk"}
FAT_FILE_SYSTEMS = {"vfat", "msdos", "exfat"}
VIRTUAL_FILE_SYSTEMS = {
    "autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts",
    "efivarfs", "fusectl", "hugetlbfs", "mqueue", "nfsd", "proc", "pstore", "rpc_pipefs",
    "securityfs", "selinuxfs", "smackfs", "sysfs", "tracefs",
}  # fmt: skip
NANOSECONDS = 1_000_000_000
_REFUSED = frozenset((errno.EPERM, errno.EACCES))
_UNKNOWN = frozenset((errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL))


class FileSystem:
    """One file system of the source. Learns what it does not know, and does not ask it again."""

    __slots__ = ("_has_flags", "_has_project_ids", "_has_xattrs", "_is_fat", "is_virtual", "type")

    def __init__(self, kind: str) -> None:
        """`kind` is its name in the mount table; empty when that does not list it."""
        self.type = kind
        self.is_virtual = kind in VIRTUAL_FILE_SYSTEMS
        self._is_fat = kind in FAT_FILE_SYSTEMS
        self._has_project_ids = kind in PROJECT_ID_FILE_SYSTEMS
        self._has_flags = self._has_xattrs = True

    def encode(self, file: int, info: os.stat_result) -> bytes:
        """The metadata items of an open directory or regular file. Raises OSError, FormatError."""
        flags = self._flags(file)
        project = self._project_id(file) if self._has_project_ids else 0
        names = self._xattr_names(file) if self._has_xattrs else None
        if not names and not project:
            return encode_plain(info, flags)
        seconds, nanoseconds = divmod(info.st_mtime_ns, NANOSECONDS)
        metadata = Metadata(info.st_mode, flags, info.st_uid, info.st_gid, seconds, nanoseconds)
        _add_xattrs(metadata, file, names or ())
        metadata.quota_project_id = project or None
        return encode_metadata(metadata)

    def question(
        self, directory: int, device: int
    ) -> tuple[int, int, int, bool, bool, bool] | None:
        """What `unchanged_files` has to ask of a directory's files; None where that is not all."""
        if self._is_fat:
            return None
        has = self._has_flags, self._has_project_ids, self._has_xattrs
        return directory, device, CHATTR_MASK, *has

    def _flags(self, file: int) -> int:
        """The chattr and FAT bits, as the archive numbers them."""
        flags = 0
        if self._has_flags:
            answer = _ask(file, FS_IOC_GETFLAGS, 8)
            self._has_flags = answer is not None
            linux = int.from_bytes(answer[:4], "little") & CHATTR_MASK if answer else 0
            if linux:
                flags = sum(ours for bit, ours in CHATTR_FLAGS if linux & bit)
        if self._is_fat and (fat := _ask(file, FAT_IOCTL_GET_ATTRIBUTES, 4)):
            flags |= sum(ours for bit, ours in FAT_FLAGS if fat[0] & bit)
        return flags

    def _project_id(self, file: int) -> int:
        """The quota project id, 0 where there is none."""
        answer = _ask(file, FS_IOC_FSGETXATTR, 28)
        self._has_project_ids = answer is not None
        return int(struct.unpack_from("<I", answer, 12)[0]) if answer else 0

    def _xattr_names(self, file: int) -> list[str]:
        try:
            return os.listxattr(file)
        except OSError as error:
            if error.errno in _UNKNOWN:
                self._has_xattrs = False
            elif error.errno not in _REFUSED:
                raise
            return []


class FileSystems:
    """All file systems the walk meets, by st_dev."""

    def __init__(self) -> None:
        self._known: dict[int, FileSystem] = {}

    def of(self, device: int) -> FileSystem:
        """The one on a device; the mount table is read for each new one, for it may be new."""
        found = self._known.get(device)
        if found is None:
            found = self._known[device] = FileSystem(_mounted_types().get(device, ""))
        return found


def _ask(file: int, request: int, size: int) -> bytes | None:
    """The answer to an ioctl; empty where it is refused, None where nobody knows it."""
    try:
        return fcntl.ioctl(file, request, bytes(size))
    except OSError as error:
        if error.errno in _UNKNOWN:
            return None
        if error.errno in _REFUSED:
            return b""
        raise


def _mounted_types() -> dict[int, str]:
    types = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            before, _, after = line.partition(" - ")
            major, _, minor = before.split()[2].partition(":")
            types[os.makedev(int(major), int(minor))] = after.split()[0].partition(".")[0]
    return types


def encode_plain(info: os.stat_result, flags: int = 0) -> bytes:
    """The metadata of an inode without attributes: the stat item alone."""
    seconds, nanoseconds = divmod(info.st_mtime_ns, NANOSECONDS)
    return encode_stat(info.st_mode, flags, info.st_uid, info.st_gid, seconds, nanoseconds)


def _add_xattrs(metadata: Metadata, file: int, names: "list[str] | tuple[()]") -> None:
    """Record what the original client records.

    That is user.*, trusted.*, security.NTACL, ACLs and file capabilities.
    """
    metadata.xattrs = tuple(
        (os.fsencode(name), value)
        for name in names
        if _is_recorded(name) and (value := _xattr(file, name)) is not None
    )
    access = _xattr(file, ACCESS_ACL) if ACCESS_ACL in names else None
    default = _xattr(file, DEFAULT_ACL) if DEFAULT_ACL in names else None
    metadata.acl = acl_from_xattrs(access, default)
    metadata.fcaps = _xattr(file, CAPABILITY) if CAPABILITY in names else None


def _is_recorded(name: str) -> bool:
    return (name.startswith(("user.", "trusted.")) or name == "security.NTACL") and len(
        os.fsencode(name)
    ) <= MAX_XATTR_NAME


def _xattr(file: int, name: str) -> bytes | None:
    """The value of an attribute that was listed, None when it is gone or not for us."""
    try:
        return os.getxattr(file, name)
    except OSError as error:
        if error.errno != errno.ENODATA and error.errno not in _UNKNOWN | _REFUSED:
            raise
        return None
