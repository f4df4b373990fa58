"""What an archive knows about an inode beside name and content: stat struct and attribute items.

    ENTRY content := mode u64 | flags u64 | uid u32 | gid u32 | mtime_s i64 | mtime_ns u32 | 0 u32
    metadata := ENTRY XATTR* ACL_USER* ACL_GROUP* [ACL_GROUP_OBJ] [ACL_DEFAULT]
                ACL_DEFAULT_USER* ACL_DEFAULT_GROUP* [FCAPS] [QUOTA_PROJID]

Source: pxar src/format/mod.rs (spec 9.3, 9.4).
"""

import struct
from dataclasses import dataclass
from struct import Struct

from store.errors import FormatError
from store.format.pxar.acl import MAX_PERMISSIONS, NOT_SET, Acl, DefaultAcl, Named, encode_acl
from store.format.pxar.items import (
    ENTRY_SIZE,
    ENTRY_V1_SIZE,
    HEADER,
    HEADER_SIZE,
    MAX_XATTR_NAME,
    MAX_XATTR_SIZE,
    ONE_U64,
    PXAR_ACL_DEFAULT,
    PXAR_ACL_DEFAULT_GROUP,
    PXAR_ACL_DEFAULT_USER,
    PXAR_ACL_GROUP,
    PXAR_ACL_GROUP_OBJ,
    PXAR_ACL_USER,
    PXAR_ENTRY,
    PXAR_ENTRY_V1,
    PXAR_FCAPS,
    PXAR_QUOTA_PROJID,
    PXAR_XATTR,
    encode_item,
    item_error,
)

_ENTRY = Struct("<QQQQIIqII")
_STAT = Struct("<QQIIqI")
_STAT_V1 = Struct("<QQIIQ")
_U64 = Struct("<Q")
_PAIR = Struct("<QQ")
_FOUR = Struct("<QQQQ")
_NANOSECONDS = 1_000_000_000
_MAX_ID = 0xFFFF_FFFF

_LARGEST_XATTR_ITEM = HEADER_SIZE + MAX_XATTR_NAME + 1 + MAX_XATTR_SIZE

# Attribute item -> smallest and largest full_size.
ATTRIBUTE_SIZES = {
    PXAR_XATTR: (HEADER_SIZE + 2, _LARGEST_XATTR_ITEM),
    PXAR_ACL_USER: (32, 32),
    PXAR_ACL_GROUP: (32, 32),
    PXAR_ACL_GROUP_OBJ: (24, 24),
    PXAR_ACL_DEFAULT: (48, 48),
    PXAR_ACL_DEFAULT_USER: (32, 32),
    PXAR_ACL_DEFAULT_GROUP: (32, 32),
    PXAR_FCAPS: (HEADER_SIZE, _LARGEST_XATTR_ITEM),
    PXAR_QUOTA_PROJID: (24, 24),
}
_NAMED = (PXAR_ACL_USER, PXAR_ACL_GROUP, PXAR_ACL_DEFAULT_USER, PXAR_ACL_DEFAULT_GROUP)


@dataclass(slots=True)
class Metadata:
    """One inode. `mode` is st_mode with its file type; mtime_ns, 0 to 999999999, counts forward.

    `flags` are pxar's (spec 9.9), not the file system's. `fcaps` is the raw `security.capability`.
    """

    mode: int
    flags: int = 0
    uid: int = 0
    gid: int = 0
    mtime_s: int = 0
    mtime_ns: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    acl: Acl | None = None
    fcaps: bytes | None = None
    quota_project_id: int | None = None


def encode_stat(mode: int, flags: int, uid: int, gid: int, mtime_s: int, mtime_ns: int) -> bytes:
    """The whole metadata (one ENTRY item, 56 bytes) of an inode without attributes.

    Fast: arguments are trusted.
    """
    return _ENTRY.pack(PXAR_ENTRY, ENTRY_SIZE, mode, flags, uid, gid, mtime_s, mtime_ns, 0)


def encode_metadata(metadata: Metadata) -> bytes:
    """ENTRY and the attribute items, in archive order.

    Raises:
        FormatError: a value the format has no room for.
    """
    if not 0 <= metadata.mtime_ns < _NANOSECONDS:
        raise FormatError(f"mtime of {metadata.mtime_ns} ns: outside 0 to 999999999")
    try:
        stat = encode_stat(
            metadata.mode,
            metadata.flags,
            metadata.uid,
            metadata.gid,
            metadata.mtime_s,
            metadata.mtime_ns,
        )
        return stat + _encode_attributes(metadata)
    except struct.error as error:
        raise FormatError(f"metadata does not fit the pxar format: {error}") from error


def _encode_attributes(metadata: Metadata) -> bytes:
    items = [_encode_xattr(name, value) for name, value in metadata.xattrs]
    if metadata.acl is not None:
        items.append(encode_acl(metadata.acl))
    if metadata.fcaps is not None:
        items.append(encode_item(PXAR_FCAPS, metadata.fcaps))
    if metadata.quota_project_id is not None:
        items.append(ONE_U64.pack(PXAR_QUOTA_PROJID, 24, metadata.quota_project_id))
    return b"".join(items)


def _encode_xattr(name: bytes, value: bytes) -> bytes:
    if not 1 <= len(name) <= MAX_XATTR_NAME or b"\0" in name or len(value) > MAX_XATTR_SIZE:
        raise FormatError(f"xattr {name!r} of {len(value)} bytes does not fit the pxar format")
    return encode_item(PXAR_XATTR, b"%b\0%b" % (name, value))


def decode_metadata(raw: bytes) -> Metadata:
    """Read ENTRY (or old archives' ENTRY_V1) and the attribute items after it, in any order.

    Raises:
        FormatError: anything but exactly these items, one of a kind twice, or a value out of its
            range.
    """
    metadata = _decode_stat(raw)
    position = ENTRY_V1_SIZE if raw[:8] == _U64.pack(PXAR_ENTRY_V1) else ENTRY_SIZE
    if position < len(raw):
        _Attributes(raw, position).store_in(metadata)
    return metadata


def _decode_stat(raw: bytes) -> Metadata:
    if len(raw) < ENTRY_V1_SIZE:
        raise FormatError(f"pxar metadata of {len(raw)} bytes: too short for a stat struct")
    htype, size = HEADER.unpack_from(raw)
    if (htype, size) == (PXAR_ENTRY, ENTRY_SIZE) and len(raw) >= ENTRY_SIZE:
        metadata = Metadata(*_STAT.unpack_from(raw, HEADER_SIZE))
    elif (htype, size) == (PXAR_ENTRY_V1, ENTRY_V1_SIZE):
        mode, flags, uid, gid, mtime = _STAT_V1.unpack_from(raw, HEADER_SIZE)
        metadata = Metadata(mode, flags, uid, gid, mtime // _NANOSECONDS, mtime % _NANOSECONDS)
    else:
        raise FormatError(f"pxar metadata: item {htype:#018x} of {size} bytes, expected ENTRY")
    if metadata.mtime_ns >= _NANOSECONDS:
        raise FormatError(
            f"pxar metadata: mtime of {metadata.mtime_ns} ns, expected less than a second"
        )
    return metadata


class _Attributes:
    """Collects the attribute items of one entry; the constructor reads them all."""

    def __init__(self, raw: bytes, position: int) -> None:
        self._xattrs: list[tuple[bytes, bytes]] = []
        self._named: dict[int, list[tuple[int, int]]] = {htype: [] for htype in _NAMED}
        self._single: dict[int, bytes] = {}
        while position < len(raw):
            content, htype = _attribute_at(raw, position)
            self._add(htype, content, position)
            position += HEADER_SIZE + len(content)

    def _add(self, htype: int, content: bytes, position: int) -> None:
        if htype == PXAR_XATTR:
            name, terminator, value = content.partition(b"\0")
            if not name or not terminator or len(name) > MAX_XATTR_NAME:
                raise FormatError(f"pxar metadata: no valid xattr name in {content[:32]!r}")
            self._xattrs.append((name, value))
        elif htype in self._named:
            qualifier, permissions = _PAIR.unpack(content)
            if qualifier > _MAX_ID or permissions > MAX_PERMISSIONS:
                raise FormatError(
                    f"pxar metadata: ACL entry of id {qualifier} with permissions {permissions:#x}"
                )
            self._named[htype].append((qualifier, permissions))
        elif htype in self._single:
            raise item_error(position, htype, HEADER_SIZE + len(content), "one of it")
        else:
            self._single[htype] = content

    def store_in(self, metadata: Metadata) -> None:
        metadata.xattrs = tuple(self._xattrs)
        metadata.acl = self._acl()
        metadata.fcaps = self._single.get(PXAR_FCAPS)
        metadata.quota_project_id = self._number(PXAR_QUOTA_PROJID)

    def _acl(self) -> Acl | None:
        group_obj = self._number(PXAR_ACL_GROUP_OBJ)
        if group_obj is not None and group_obj > MAX_PERMISSIONS:
            raise FormatError(f"pxar metadata: ACL group permissions {group_obj:#x}")
        users, groups, default_users, default_groups = (self._named_of(htype) for htype in _NAMED)
        acl = Acl(users, groups, group_obj, self._default(), default_users, default_groups)
        return acl if acl.has_access or acl.has_default else None

    def _default(self) -> DefaultAcl | None:
        content = self._single.get(PXAR_ACL_DEFAULT)
        if content is None:
            return None
        permissions = _FOUR.unpack(content)
        if any(MAX_PERMISSIONS < value < NOT_SET for value in permissions):
            raise FormatError(f"pxar metadata: default ACL permissions {content.hex()}")
        return DefaultAcl(*(None if value == NOT_SET else value for value in permissions))

    def _named_of(self, htype: int) -> Named:
        return tuple(self._named[htype])

    def _number(self, htype: int) -> int | None:
        content = self._single.get(htype)
        return None if content is None else int(_U64.unpack(content)[0])


def _attribute_at(raw: bytes, position: int) -> tuple[bytes, int]:
    """Content and type of the attribute item at `position`."""
    if position + HEADER_SIZE > len(raw):
        raise FormatError(f"pxar metadata: cut inside an item header at {position} of {len(raw)}")
    htype, size = HEADER.unpack_from(raw, position)
    smallest, largest = ATTRIBUTE_SIZES.get(htype, (0, -1))
    if not smallest <= size <= largest:
        raise item_error(position, htype, size, "an attribute of a valid size")
    if position + size > len(raw):
        raise FormatError(
            f"pxar metadata: item at {position} of {size} bytes reaches past the end ({len(raw)})"
        )
    return raw[position + HEADER_SIZE : position + size], htype
