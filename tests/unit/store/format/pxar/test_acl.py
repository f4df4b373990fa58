import struct

import pytest
from hypothesis import given

from store.errors import FormatError
from store.format.pxar.acl import (
    ACCESS_XATTR,
    DEFAULT_XATTR,
    Acl,
    DefaultAcl,
    acl_from_xattrs,
    acl_to_xattrs,
)
from tests.unit.store.format.pxar.archives import ACLS

NOBODY = 0xFFFF_FFFF
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32


def xattr(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


FULL = xattr(
    (USER_OBJ, 6, NOBODY),
    (USER, 7, 1000),
    (USER, 4, 1001),
    (GROUP_OBJ, 5, NOBODY),
    (GROUP, 1, 50),
    (MASK, 7, NOBODY),
    (OTHER, 4, NOBODY),
)


def test_an_access_acl_with_a_mask() -> None:
    acl = acl_from_xattrs(FULL, None)
    assert acl == Acl(((1000, 7), (1001, 4)), ((50, 1),), 5)
    assert acl_to_xattrs(acl, 0o100674) == {ACCESS_XATTR: FULL}


def test_a_mask_alone_keeps_the_groups_permissions() -> None:
    raw = xattr(
        (USER_OBJ, 7, NOBODY), (GROUP_OBJ, 5, NOBODY), (MASK, 1, NOBODY), (OTHER, 0, NOBODY)
    )
    acl = acl_from_xattrs(raw, None)
    assert acl == Acl(group_obj=5)
    assert acl_to_xattrs(acl, 0o100710) == {ACCESS_XATTR: raw}


def test_what_the_mode_says_is_not_stored() -> None:
    raw = xattr((USER_OBJ, 6, NOBODY), (GROUP_OBJ, 4, NOBODY), (OTHER, 4, NOBODY))
    assert acl_from_xattrs(raw, None) is None
    assert acl_from_xattrs(None, None) is None
    assert acl_from_xattrs(xattr(), xattr()) is None
    assert acl_to_xattrs(None, 0o755) == {}


def test_named_entries_without_a_group_item_have_the_mode_for_a_mask() -> None:
    restored = acl_to_xattrs(Acl(((7, 6),)), 0o640)[ACCESS_XATTR]
    assert restored == xattr(
        (USER_OBJ, 6, NOBODY),
        (USER, 6, 7),
        (GROUP_OBJ, 4, NOBODY),
        (MASK, 4, NOBODY),
        (OTHER, 0, NOBODY),
    )


def test_a_default_acl_without_a_mask() -> None:
    raw = xattr((USER_OBJ, 7, NOBODY), (GROUP_OBJ, 5, NOBODY), (OTHER, 0, NOBODY))
    acl = acl_from_xattrs(None, raw)
    assert acl == Acl(default=DefaultAcl(7, 5, 0, None))
    assert acl_to_xattrs(acl, 0o755) == {DEFAULT_XATTR: raw}


def test_named_entries_are_sorted() -> None:
    raw = xattr((USER, 1, 9), (USER, 7, 3), (GROUP, 1, 9), (GROUP, 0, 9), (MASK, 7, NOBODY))
    acl = acl_from_xattrs(raw, raw)
    assert acl is not None
    assert acl.users == acl.default_users == ((3, 7), (9, 1))
    assert acl.groups == acl.default_groups == ((9, 0), (9, 1))


@pytest.mark.parametrize(
    "raw", [b"", b"\2\0\0", xattr()[:-1] + b"\1", xattr() + b"\0", xattr((64, 1, 1))]
)
def test_refuses_what_is_no_acl(raw: bytes) -> None:
    with pytest.raises(FormatError):
        acl_from_xattrs(raw, None)


@given(ACLS)
def test_every_acl_has_xattrs(acl: Acl) -> None:
    xattrs = acl_to_xattrs(acl, 0o777)
    assert bool(xattrs.get(ACCESS_XATTR)) == acl.has_access
    assert bool(xattrs.get(DEFAULT_XATTR)) == acl.has_default
