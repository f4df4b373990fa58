"""A merged directory is no more open than each of those it is made of."""

import pytest

from store.format.pxar.acl import Acl
from store.format.pxar.entries import Metadata, decode_metadata, encode_metadata
from store.trees.closed import closed


def raw(mode: int, uid: int = 1, gid: int = 1, mtime: int = 0, acl: Acl | None = None) -> bytes:
    return encode_metadata(Metadata(0o40000 | mode, 0, uid, gid, mtime, acl=acl))


ACL = Acl(users=((7, 7),), group_obj=0)


def test_alike_ones_keep_all_they_have() -> None:
    newest = raw(0o755, mtime=5, acl=ACL)
    assert closed([newest, raw(0o755, mtime=3, acl=ACL)]) == newest


@pytest.mark.parametrize(
    ("older", "mode"),
    [
        (raw(0o750), 0o750),
        (raw(0o711), 0o711),
        (raw(0o755, uid=2), 0o055),
        (raw(0o755, gid=2), 0o705),
        (raw(0o755, acl=ACL), 0o700),
    ],
)
def test_what_not_all_give_nobody_gets(older: bytes, mode: int) -> None:
    for raws in ([raw(0o755, mtime=9), older], [raw(0o755, mtime=9), raw(0o755), older, older]):
        found = decode_metadata(closed(raws))
        assert (found.mode, found.uid, found.gid, found.mtime_s) == (0o40000 | mode, 1, 1, 9)
        assert found.acl is None


def test_metadata_that_is_broken_is_closed() -> None:
    assert decode_metadata(closed([raw(0o755), raw(0o755)[:-8] + bytes(30)])).mode == 0o40000
