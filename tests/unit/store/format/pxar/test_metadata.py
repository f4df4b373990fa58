import struct

import pytest

from store.errors import FormatError
from store.format.pxar.acl import Acl, DefaultAcl
from store.format.pxar.items import (
    PXAR_ACL_DEFAULT,
    PXAR_ACL_GROUP_OBJ,
    PXAR_ACL_USER,
    PXAR_ENTRY_V1,
    PXAR_FCAPS,
    PXAR_QUOTA_PROJID,
    PXAR_SYMLINK,
    PXAR_XATTR,
    encode_item,
)
from store.format.pxar.metadata import Metadata, decode_metadata, encode_metadata, encode_stat

STAT = encode_stat(0o100644, 0, 0, 0, 0, 0)
ALL = Metadata(
    mode=0o100640,
    flags=0x20000,
    uid=1000,
    gid=100,
    mtime_s=-1,
    mtime_ns=999_999_999,
    xattrs=((b"user.z", b"\0binary\0"), (b"user.a", b"")),
    acl=Acl(
        ((1, 7), (2, 0)), ((3, 4),), 5, DefaultAcl(7, 5, 0, None), ((9, 1),), ((4294967295, 2),)
    ),
    fcaps=b"\1\0\0\2",
    quota_project_id=2**64 - 1,
)


def test_the_order_of_items() -> None:
    raw, types = encode_metadata(ALL), []
    while raw:
        htype, size = struct.unpack_from("<QQ", raw)
        types.append(htype)
        raw = raw[size:]
    assert [f"{htype:016x}" for htype in types] == [
        "d5956474e588acef",
        "0dab0229b57dcd03",
        "0dab0229b57dcd03",
        "2ce8540a457d55b8",
        "2ce8540a457d55b8",
        "136e3eceb04c03ab",
        "10868031e9582876",
        "bbbb13415a6896f5",
        "c89357b40532cd1f",
        "f90a8a5816038ffe",
        "2da9dd9db5f7fb67",
        "e07540e82f7d1cbb",
    ]


def test_everything_comes_back() -> None:
    assert decode_metadata(encode_metadata(ALL)) == ALL


def test_items_in_any_order() -> None:
    quota = encode_item(PXAR_QUOTA_PROJID, (7).to_bytes(8, "little"))
    xattr = encode_item(PXAR_XATTR, b"user.a\0b")
    expected = Metadata(0o100644, xattrs=((b"user.a", b"b"),), quota_project_id=7)
    assert decode_metadata(STAT + quota + xattr) == expected


def test_the_old_stat_struct() -> None:
    content = struct.pack("<QQIIQ", 0o40755, 3, 1, 2, 1_500_000_000_123_456_789)
    quota = encode_item(PXAR_QUOTA_PROJID, (7).to_bytes(8, "little"))
    metadata = decode_metadata(encode_item(PXAR_ENTRY_V1, content) + quota)
    assert metadata == Metadata(0o40755, 3, 1, 2, 1_500_000_000, 123_456_789, quota_project_id=7)


@pytest.mark.parametrize(
    "attributes",
    [
        encode_item(PXAR_FCAPS, b"x") * 2,
        encode_item(PXAR_QUOTA_PROJID, bytes(8)) * 2,
        encode_item(PXAR_ACL_GROUP_OBJ, bytes(8)) * 2,
        encode_item(PXAR_ACL_DEFAULT, bytes(32)) * 2,
        encode_item(PXAR_QUOTA_PROJID, bytes(7)),
        encode_item(PXAR_QUOTA_PROJID, bytes(9)),
        encode_item(PXAR_SYMLINK, b"a\0"),
        encode_item(PXAR_XATTR, b"no terminator"),
        encode_item(PXAR_XATTR, b"\0value"),
        encode_item(PXAR_XATTR, b"x" * 256 + b"\0"),
        encode_item(PXAR_XATTR, b"a\0" + bytes(2**17)),
        encode_item(PXAR_ACL_USER, struct.pack("<QQ", 2**32, 7)),
        encode_item(PXAR_ACL_USER, struct.pack("<QQ", 0, 8)),
        encode_item(PXAR_ACL_GROUP_OBJ, struct.pack("<Q", 8)),
        encode_item(PXAR_ACL_GROUP_OBJ, struct.pack("<Q", 2**64 - 1)),
        encode_item(PXAR_ACL_DEFAULT, struct.pack("<QQQQ", 7, 7, 8, 7)),
        encode_item(PXAR_FCAPS, b"x")[:-1],
        STAT,
        b"\0",
        bytes(16),
        struct.pack("<QQ", PXAR_XATTR, 2**64 - 1),
        struct.pack("<QQ", PXAR_XATTR, 0),
    ],
)
def test_refuses_damaged_attributes(attributes: bytes) -> None:
    with pytest.raises(FormatError):
        decode_metadata(STAT + attributes)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        STAT[:55],
        STAT[:47],
        encode_stat(0, 0, 0, 0, 0, 1_000_000_000),
        encode_item(PXAR_ENTRY_V1, bytes(40)),
        encode_item(PXAR_XATTR, bytes(40)),
    ],
)
def test_refuses_a_damaged_stat_struct(raw: bytes) -> None:
    with pytest.raises(FormatError):
        decode_metadata(raw)


@pytest.mark.parametrize(
    "metadata",
    [
        Metadata(0, uid=2**32),
        Metadata(0, mtime_s=2**63),
        Metadata(0, mtime_ns=1_000_000_000),
        Metadata(0, mtime_ns=-1),
        Metadata(0, xattrs=((b"", b""),)),
        Metadata(0, xattrs=((b"a\0", b""),)),
        Metadata(0, xattrs=((b"a" * 256, b""),)),
        Metadata(0, xattrs=((b"a", bytes(65537)),)),
        Metadata(0, quota_project_id=-1),
    ],
)
def test_refuses_to_write_what_does_not_fit(metadata: Metadata) -> None:
    with pytest.raises(FormatError):
        encode_metadata(metadata)


def test_the_largest_xattr() -> None:
    metadata = Metadata(0o100644, xattrs=((b"a" * 255, bytes(65536)),))
    assert decode_metadata(encode_metadata(metadata)) == metadata
