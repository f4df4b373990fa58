"""POSIX ACLs as file systems keep them, turned into the form of `system.posix_acl_*` xattrs."""

import struct

from store.disks.parsers.files import BadFile

_ENTRY = struct.Struct("<HHI")
_VERSION = struct.pack("<I", 2)
_NAMED = (0x02, 0x08)
_NO_ID = 0xFFFFFFFF
MAX_ENTRIES = 1024


def from_ext(value: bytes) -> bytes:
    """ext's: version 1, and an id only where there is one. Raises BadFile."""
    if value[:4] != b"\1\0\0\0" or len(value) > 8 * MAX_ENTRIES:
        raise BadFile("an ACL of unknown version")
    entries, at = [_VERSION], 4
    while at + 4 <= len(value):
        tag, permissions = struct.unpack_from("<HH", value, at)
        ident, at = _NO_ID, at + 4
        if tag in _NAMED:
            if at + 4 > len(value):
                raise BadFile("an ACL cut short")
            ident, at = struct.unpack_from("<I", value, at)[0], at + 4
        entries.append(_ENTRY.pack(tag, permissions, ident))
    return b"".join(entries)


def from_xfs(value: bytes) -> bytes:
    """XFS's: big-endian, a count before it. Raises BadFile."""
    count = struct.unpack_from(">I", value)[0] if len(value) >= 4 else MAX_ENTRIES + 1
    if count > MAX_ENTRIES or 4 + 12 * count > len(value):
        raise BadFile("an ACL that does not fit its size")
    entries = [_VERSION]
    for index in range(count):
        tag, ident, permissions = struct.unpack_from(">IIH", value, 4 + 12 * index)
        entries.append(_ENTRY.pack(tag, permissions, ident if tag in _NAMED else _NO_ID))
    return b"".join(entries)
