"""POSIX ACLs: as pxar items hold them, and as Linux's `system.posix_acl_*` xattrs do.

The archive splits an access ACL: permissions of owner and others live in the mode; so does a mask
if there is one, in the place of the group's permissions, and only then ACL_GROUP_OBJ has those.

Source: pxar src/format/acl.rs, pbs-client src/pxar/{create,metadata}.rs (spec 9.6); linux
include/uapi/linux/posix_acl_xattr.h.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from struct import Struct

from store.errors import FormatError
from store.format.pxar.items import (
    ONE_U64,
    PXAR_ACL_DEFAULT,
    PXAR_ACL_DEFAULT_GROUP,
    PXAR_ACL_DEFAULT_USER,
    PXAR_ACL_GROUP,
    PXAR_ACL_GROUP_OBJ,
    PXAR_ACL_USER,
    TWO_U64,
)

ACCESS_XATTR = b"system.posix_acl_access"
DEFAULT_XATTR = b"system.posix_acl_default"
NOT_SET = 0xFFFF_FFFF_FFFF_FFFF
MAX_PERMISSIONS = 7

_XATTR_VERSION = 2
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_UNDEFINED_ID = 0xFFFF_FFFF
_XATTR_HEADER = Struct("<I")
_XATTR_ENTRY = Struct("<HHI")
_DEFAULT_ITEM = Struct("<QQQQQQ")

Named = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class DefaultAcl:
    """The unnamed entries of a default ACL; permission bits r=4 w=2 x=1, None where not set."""

    user_obj: int | None = None
    group_obj: int | None = None
    other: int | None = None
    mask: int | None = None


@dataclass(frozen=True, slots=True)
class Acl:
    """The ACL items of one entry. Named entries are (uid or gid, permissions), sorted."""

    users: Named = ()
    groups: Named = ()
    group_obj: int | None = None
    default: DefaultAcl | None = None
    default_users: Named = ()
    default_groups: Named = ()

    @property
    def has_access(self) -> bool:
        """Whether there is more than the mode says about access."""
        return bool(self.users or self.groups or self.group_obj is not None)

    @property
    def has_default(self) -> bool:
        """Whether new files below inherit an ACL."""
        return bool(self.default_users or self.default_groups or self.default is not None)


def encode_acl(acl: Acl) -> bytes:
    """The ACL items of one entry, in archive order."""
    items = [TWO_U64.pack(PXAR_ACL_USER, 32, *named) for named in acl.users]
    items += [TWO_U64.pack(PXAR_ACL_GROUP, 32, *named) for named in acl.groups]
    if acl.group_obj is not None:
        items.append(ONE_U64.pack(PXAR_ACL_GROUP_OBJ, 24, acl.group_obj))
    if acl.default is not None:
        unnamed = (acl.default.user_obj, acl.default.group_obj, acl.default.other, acl.default.mask)
        permissions = [NOT_SET if value is None else value for value in unnamed]
        items.append(_DEFAULT_ITEM.pack(PXAR_ACL_DEFAULT, 48, *permissions))
    items += [TWO_U64.pack(PXAR_ACL_DEFAULT_USER, 32, *named) for named in acl.default_users]
    items += [TWO_U64.pack(PXAR_ACL_DEFAULT_GROUP, 32, *named) for named in acl.default_groups]
    return b"".join(items)


def acl_from_xattrs(access: bytes | None, default: bytes | None) -> Acl | None:
    """The ACL items for a file's two ACL xattrs.

    Args:
        access: raw value of `system.posix_acl_access`, None when absent.
        default: the same of `system.posix_acl_default`.
    Returns:
        None when nothing is left to store beside the mode.
    Raises:
        FormatError: not an ACL xattr of version 2, or an unknown tag.
    """
    plain, users, groups = _parse_xattr(access)
    default_plain, default_users, default_groups = _parse_xattr(default)
    unnamed = DefaultAcl(
        *(default_plain.get(tag) for tag in (_USER_OBJ, _GROUP_OBJ, _OTHER, _MASK))
    )
    acl = Acl(
        users,
        groups,
        plain.get(_GROUP_OBJ) if _MASK in plain else None,
        unnamed if default_plain else None,
        default_users,
        default_groups,
    )
    return acl if acl.has_access or acl.has_default else None


def _parse_xattr(raw: bytes | None) -> tuple[dict[int, int], Named, Named]:
    if raw is None:
        return {}, (), ()
    if (
        len(raw) < 4
        or (len(raw) - 4) % _XATTR_ENTRY.size
        or _XATTR_HEADER.unpack_from(raw)[0] != _XATTR_VERSION
    ):
        raise FormatError(f"not a POSIX ACL xattr of version 2: {raw[:16].hex()}, {len(raw)} bytes")
    plain: dict[int, int] = {}
    named: dict[int, list[tuple[int, int]]] = {_USER: [], _GROUP: []}
    for tag, permissions, qualifier in _XATTR_ENTRY.iter_unpack(raw[4:]):
        if tag in named:
            named[tag].append((qualifier, permissions))
        elif tag in (_USER_OBJ, _GROUP_OBJ, _MASK, _OTHER):
            plain[tag] = permissions
        else:
            raise FormatError(f"POSIX ACL xattr: unknown tag {tag:#x}")
    return plain, tuple(sorted(named[_USER])), tuple(sorted(named[_GROUP]))


def acl_to_xattrs(acl: Acl | None, mode: int) -> dict[bytes, bytes]:
    """The ACL xattrs that give a restored file its ACLs; empty when the mode says it all.

    Args:
        acl: what the archive holds.
        mode: st_mode of the entry; its group bits are the mask if the ACL has one.
    """
    if acl is None:
        return {}
    xattrs = {}
    if acl.has_access:
        xattrs[ACCESS_XATTR] = _access_xattr(acl, mode)
    if acl.has_default:
        plain = acl.default or DefaultAcl()
        xattrs[DEFAULT_XATTR] = _encode_xattr(
            plain.user_obj,
            acl.default_users,
            plain.group_obj,
            acl.default_groups,
            plain.mask,
            plain.other,
        )
    return xattrs


def _access_xattr(acl: Acl, mode: int) -> bytes:
    """Owner and other from the mode.

    A mask exists if ACL_GROUP_OBJ or a named entry does, and is the group bits.
    """
    group_bits = mode >> 3 & 7
    group = group_bits if acl.group_obj is None else acl.group_obj
    return _encode_xattr(mode >> 6 & 7, acl.users, group, acl.groups, group_bits, mode & 7)


def _encode_xattr(
    user: int | None,
    users: Named,
    group: int | None,
    groups: Named,
    mask: int | None,
    other: int | None,
) -> bytes:
    """Entries in the order the kernel insists on: owner, users, group, groups, mask, other."""
    entries = [
        *_plain(_USER_OBJ, user),
        *_named(_USER, users),
        *_plain(_GROUP_OBJ, group),
        *_named(_GROUP, groups),
        *_plain(_MASK, mask),
        *_plain(_OTHER, other),
    ]
    return _XATTR_HEADER.pack(_XATTR_VERSION) + b"".join(entries)


def _plain(tag: int, permissions: int | None) -> Iterable[bytes]:
    return () if permissions is None else (_XATTR_ENTRY.pack(tag, permissions, _UNDEFINED_ID),)


def _named(tag: int, named: Named) -> Iterable[bytes]:
    return (_XATTR_ENTRY.pack(tag, permissions, qualifier) for qualifier, permissions in named)
