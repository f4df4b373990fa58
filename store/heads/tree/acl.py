"""What POSIX ACLs do to modes, and to what is made in a directory with a default ACL.

    xattr := version u32 = 2 | (tag u16 | permissions u16 | id u32)*

Source: linux fs/posix_acl.c, include/uapi/linux/posix_acl_xattr.h.
"""

import errno
import os
from struct import Struct

_VERSION = Struct("<I")
_ENTRY = Struct("<HHI")
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_TAGS = {USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER}

AclEntry = tuple[int, int, int]


def parse(raw: bytes) -> list[AclEntry]:
    """Tag, permissions and id of each entry. Raises OSError: EOPNOTSUPP, EINVAL."""
    if len(raw) < 4 or (len(raw) - 4) % _ENTRY.size:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if _VERSION.unpack_from(raw)[0] != 2:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    entries = list(_ENTRY.iter_unpack(raw[4:]))
    tags = [tag for tag, _, _ in entries]
    single = all(tags.count(tag) == 1 for tag in (USER_OBJ, GROUP_OBJ, OTHER))
    named = USER in tags or GROUP in tags
    if (
        not single
        or not _TAGS.issuperset(tags)
        or tags.count(MASK) > 1
        or (named and MASK not in tags)
        or any(permissions > 7 for _, permissions, _ in entries)
    ):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return entries


def encode(entries: list[AclEntry]) -> bytes:
    """The xattr's value."""
    return _VERSION.pack(2) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def mode_of(entries: list[AclEntry], mode: int) -> int:
    """The mode with the permissions of an access ACL."""
    found = {tag: permissions for tag, permissions, _ in entries if tag not in (USER, GROUP)}
    group = found.get(MASK, found[GROUP_OBJ])
    return mode & ~0o777 | found[USER_OBJ] << 6 | group << 3 | found[OTHER]


def is_minimal(entries: list[AclEntry]) -> bool:
    """Whether the mode says all of it."""
    return len(entries) == 3


def with_mode(entries: list[AclEntry], mode: int) -> list[AclEntry]:
    """An access ACL after chmod."""
    has_mask = any(tag == MASK for tag, _, _ in entries)
    given = {
        USER_OBJ: mode >> 6 & 7,
        MASK if has_mask else GROUP_OBJ: mode >> 3 & 7,
        OTHER: mode & 7,
    }
    return [(tag, given.get(tag, permissions), who) for tag, permissions, who in entries]


def inherited(default: bytes, mode: int) -> tuple[bytes | None, int]:
    """The access ACL (None: the mode is all) and the mode of what is made below a default ACL."""
    entries = parse(default)
    has_mask = any(tag == MASK for tag, _, _ in entries)
    allowed = {
        USER_OBJ: mode >> 6 & 7,
        MASK if has_mask else GROUP_OBJ: mode >> 3 & 7,
        OTHER: mode & 7,
    }
    narrowed = [(tag, permissions & allowed.get(tag, 7), who) for tag, permissions, who in entries]
    mode = mode_of(narrowed, mode)
    return (None if is_minimal(narrowed) else encode(narrowed)), mode
