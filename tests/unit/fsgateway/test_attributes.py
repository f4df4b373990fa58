"""What stat says, for every kind of entry and for hostile ones."""

import os
import stat as st_module
import struct

import pytest
from pyfuse3 import InodeT

from fsgateway.attributes import Facts, Presentation, xattrs_of
from store.format.pxar.acl import Acl
from store.format.pxar.entries import Entry, EntryKind, Metadata, encode_metadata
from store.format.pxar.items import PXAR_ENTRY_V1
from tests.fakes.archives import stat

OURS = Presentation(1000, 1001)
INODE = InodeT(7)


def entry(kind: EntryKind, mode: int, **options: object) -> Entry:
    return Entry(b"x", kind, 100, 200, stat(mode, uid=5, gid=6), **options)  # type: ignore[arg-type]


def test_a_file() -> None:
    found = OURS.of_entry(INODE, entry(EntryKind.FILE, 0o104755, size=1025), 3)
    assert (found.st_ino, found.st_mode, found.st_nlink) == (7, 0o104755, 3)
    assert (found.st_uid, found.st_gid, found.st_size, found.st_blocks) == (5, 6, 1025, 3)
    assert found.st_mtime_ns == found.st_ctime_ns == found.st_atime_ns == 1_700_000_000 * 10**9


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        (EntryKind.DIRECTORY, 0o040755), (EntryKind.SYMLINK, 0o120777), (EntryKind.FIFO, 0o010600),
        (EntryKind.SOCKET, 0o140600), (EntryKind.CHAR_DEVICE, 0o020600),
        (EntryKind.BLOCK_DEVICE, 0o060600),
    ],
)  # fmt: skip
def test_other_kinds(kind: EntryKind, mode: int) -> None:
    found = OURS.of_entry(INODE, entry(kind, mode, target=b"there", device=(8, 300)), 9)
    assert found.st_mode == mode
    assert found.st_nlink == 1
    is_device = kind in (EntryKind.CHAR_DEVICE, EntryKind.BLOCK_DEVICE)
    assert found.st_rdev == (os.makedev(8, 300) if is_device else 0)
    assert found.st_size == (5 if kind is EntryKind.SYMLINK else 0)


def test_times_before_1970() -> None:
    raw = stat(0o100644, mtime_s=-2)[:48] + struct.pack("<I", 500_000_000) + bytes(4)
    found = OURS.of_entry(INODE, Entry(b"x", EntryKind.FILE, 1, 2, raw), 1)
    assert found.st_mtime_ns == -1_500_000_000


def test_hostile_values_are_cut_to_what_the_kernel_takes() -> None:
    huge = Entry(b"x", EntryKind.FILE, 1, 2, stat(0o100644), size=2**64 - 1)
    assert OURS.of_entry(INODE, huge, 1).st_size == 2**63 - 1
    device = Entry(b"x", EntryKind.CHAR_DEVICE, 1, 2, stat(0o20644), device=(2**60, 2**60))
    OURS.of_entry(INODE, device, 1)
    contradiction = Entry(b"x", EntryKind.FILE, 1, 2, stat(0o40644))
    assert OURS.of_entry(INODE, contradiction, 1).st_mode == 0o100644


def test_a_broken_hard_link_and_an_old_entry() -> None:
    found = OURS.of_entry(INODE, Entry(b"x", EntryKind.HARDLINK, 1, 2, b""), 1)
    assert found.st_mode == st_module.S_IFREG
    raw = struct.pack("<QQQQIIQ", PXAR_ENTRY_V1, 48, 0o100600, 0, 1, 2, 1_000_000_001)
    found = OURS.of_entry(INODE, Entry(b"x", EntryKind.FILE, 1, 2, raw), 1)
    assert (found.st_mode, found.st_uid, found.st_mtime_ns) == (0o100600, 1, 1_000_000_001)


def test_facts() -> None:
    found = OURS.of_facts(INODE, Facts(0o100440, 5000, 2, 77, 1.0))
    assert (found.st_uid, found.st_gid, found.st_blocks, found.st_size) == (1000, 1001, 2, 5000)
    assert (found.st_mtime_ns, found.attr_timeout, found.entry_timeout) == (77, 1.0, 1.0)
    assert OURS.of_facts(INODE, Facts(0o100440, 513)).st_blocks == 2


def test_presentation_overrides() -> None:
    theirs = Presentation(0, 0, 42, 43, 0o077)
    for found in (
        theirs.of_entry(INODE, entry(EntryKind.FILE, 0o100755), 1),
        theirs.of_facts(INODE, Facts(0o100755)),
    ):
        assert (found.st_uid, found.st_gid, found.st_mode) == (42, 43, 0o100700)


def test_xattrs() -> None:
    metadata = Metadata(
        0o100640,
        xattrs=((b"user.a", b"1"),),
        fcaps=b"caps",
        acl=Acl(users=((1000, 6),), group_obj=4),
    )
    raw = encode_metadata(metadata)
    found = xattrs_of(Entry(b"x", EntryKind.FILE, 1, 2, raw))
    assert set(found) == {b"user.a", b"security.capability", b"system.posix_acl_access"}
    assert found[b"user.a"] == b"1"
    assert xattrs_of(entry(EntryKind.FILE, 0o100644)) == {}
