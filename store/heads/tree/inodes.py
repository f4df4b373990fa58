"""One inode: as it is in memory, in its row of the database, and as an entry of an archive."""

import os
import stat
from struct import Struct

from store.errors import FormatError
from store.format.pxar.acl import acl_from_xattrs, acl_to_xattrs
from store.format.pxar.entries import Entry, EntryKind, Metadata, encode_metadata, encode_stat
from store.heads.content import INLINE, Content
from store.heads.extents import pack, unpack

NO_BASE = -1
SECOND = 1_000_000_000
CAPABILITY = b"security.capability"
ACCESS_ACL, DEFAULT_ACL = b"system.posix_acl_access", b"system.posix_acl_default"
_PLAIN_METADATA = 56
_STAT = Struct("<QQIIqI")
_ROW = Struct("<IIIIQQqqqqQQQQIHHH")
_XATTR = Struct("<HI")


class Inode:
    """An inode, also what the gateways see as Attributes. Changed under the head's lock only.

    base: where the base has its entry, NO_BASE without one. Of a file: its bytes before `kept` are
        the base's where `content` says nothing else.
    floor: the smallest size since the generation began that changed it last.
    parent: of a directory, the number of the one it is in; 0: not known, the base's.
    flags, project: what the archive's format has besides.
    stored: whether it has a row. entry: the base's, for who reads its content.
    """

    __slots__ = (
        "atime_ns",
        "base",
        "content",
        "ctime_ns",
        "entry",
        "flags",
        "floor",
        "generation",
        "gid",
        "kept",
        "mode",
        "mtime_ns",
        "nlink",
        "number",
        "parent",
        "project",
        "rdev",
        "size",
        "stored",
        "target",
        "uid",
        "was_orphan",
        "xattrs",
    )

    def __init__(self, number: int, mode: int, uid: int, gid: int, now: int) -> None:
        self.number, self.mode, self.uid, self.gid = number, mode, uid, gid
        self.atime_ns = self.mtime_ns = self.ctime_ns = now
        self.nlink = 1
        self.rdev = self.size = self.kept = self.floor = self.flags = self.project = 0
        self.base = NO_BASE
        self.parent = 0
        self.generation = 0
        self.target = b""
        self.xattrs: dict[bytes, bytes] = {}
        self.content: Content | None = None
        self.entry: Entry | None = None
        self.stored = self.was_orphan = False

    def __repr__(self) -> str:
        return f"Inode({self.number}, {self.mode:#o})"

    @property
    def is_directory(self) -> bool:
        return self.mode & 0o170000 == 0o040000

    @property
    def is_file(self) -> bool:
        return self.mode & 0o170000 == 0o100000

    @property
    def blocks(self) -> int:
        """Of 512 bytes. Of what is in rows that are not at hand nothing is known."""
        if not self.size or not self.is_file:
            return 0
        data = self.content.data_bytes() if self.content is not None else 0
        return -(-min(self.size, self.kept + data) // 512)

    def encode(self) -> bytes:
        """The row's value."""
        inline, far, content = b"", False, self.content
        if content is not None:
            far = bool(content.stored)
            region = content.regions.get(0)
            if region and len(region) <= INLINE and 0 not in content.stored:
                inline = pack(region)
        row = _ROW.pack(
            self.mode, self.nlink, self.uid, self.gid, self.rdev, self.size,
            self.atime_ns, self.mtime_ns, self.ctime_ns, self.base, self.kept, self.floor,
            self.parent, self.flags, self.project, far, len(inline), len(self.target),
        )  # fmt: skip
        xattrs = b""
        if self.xattrs:
            items = self.xattrs.items()
            xattrs = b"".join(_XATTR.pack(len(n), len(v)) + n + v for n, v in items)
        return row + inline + self.target + xattrs

    @classmethod
    def decode(cls, number: int, generation: int, raw: bytes) -> tuple["Inode", bool, bytes]:
        """The inode of a row, whether it has regions' rows, and its inline extents, packed."""
        inode = cls(number, 0, 0, 0, 0)
        (
            inode.mode, inode.nlink, inode.uid, inode.gid, inode.rdev, inode.size,
            inode.atime_ns, inode.mtime_ns, inode.ctime_ns, inode.base, inode.kept, inode.floor,
            inode.parent, inode.flags, inode.project, far, inline_size, target_size,
        ) = _ROW.unpack_from(raw)  # fmt: skip
        inode.generation, inode.stored = generation, True
        position = _ROW.size
        inline = raw[position : position + inline_size]
        position += inline_size
        inode.target = raw[position : position + target_size]
        position += target_size
        while position < len(raw):
            name_size, value_size = _XATTR.unpack_from(raw, position)
            position += _XATTR.size
            middle = position + name_size
            inode.xattrs[raw[position:middle]] = raw[middle : middle + value_size]
            position = middle + value_size
        return inode, bool(far), inline

    @classmethod
    def of_entry(cls, number: int, entry: Entry, links: int) -> "Inode":
        """The inode that an entry of the base is. Raises FormatError."""
        raw = entry.raw_metadata
        if len(raw) == _PLAIN_METADATA:
            mode, flags, uid, gid, seconds, nanoseconds = _STAT.unpack_from(raw, 16)
            inode = cls(number, mode, uid, gid, seconds * SECOND + nanoseconds)
            inode.flags = flags
        else:
            inode = _of_metadata(number, entry.metadata)
        inode.base, inode.nlink, inode.entry = entry.offset, links, entry
        if entry.kind is EntryKind.FILE:
            inode.size = inode.kept = inode.floor = entry.size
        elif entry.kind is EntryKind.SYMLINK:
            inode.target, inode.size = entry.target, len(entry.target)
        elif entry.kind in (EntryKind.CHAR_DEVICE, EntryKind.BLOCK_DEVICE):
            inode.rdev = os.makedev(*entry.device)
        return inode

    def add_content(
        self, owner: int, live: dict[int, int], stored: set[int], inline: bytes
    ) -> None:
        """Give a file the content that its rows say."""
        if stored or inline:
            self.content = Content(owner, live, stored)
            if inline:
                self.content.regions[0] = unpack(inline)

    def metadata(self) -> bytes:
        """The items of an archive. Raises FormatError: its format has no room for something."""
        seconds, nanoseconds = divmod(self.mtime_ns, SECOND)
        if not self.xattrs and not self.project:
            return encode_stat(self.mode, self.flags, self.uid, self.gid, seconds, nanoseconds)
        xattrs = self.xattrs
        recorded = Metadata(self.mode, self.flags, self.uid, self.gid, seconds, nanoseconds)
        recorded.xattrs = tuple(
            (name, value)
            for name, value in sorted(xattrs.items())
            if name.startswith((b"user.", b"trusted.")) or name == b"security.NTACL"
        )
        recorded.acl = acl_from_xattrs(xattrs.get(ACCESS_ACL), xattrs.get(DEFAULT_ACL))
        recorded.fcaps = xattrs.get(CAPABILITY)
        recorded.quota_project_id = self.project or None
        return encode_metadata(recorded)


def _of_metadata(number: int, metadata: Metadata) -> Inode:
    time = metadata.mtime_s * SECOND + metadata.mtime_ns
    inode = Inode(number, metadata.mode, metadata.uid, metadata.gid, time)
    inode.flags, inode.project = metadata.flags, metadata.quota_project_id or 0
    inode.xattrs = dict(metadata.xattrs)
    inode.xattrs.update(acl_to_xattrs(metadata.acl, metadata.mode))
    if metadata.fcaps is not None:
        inode.xattrs[CAPABILITY] = metadata.fcaps
    if stat.S_IFMT(metadata.mode) == 0:
        raise FormatError(f"pxar archive: mode {metadata.mode:#o} is of no type")
    return inode
