import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.disks.journals import ntfs_log_unclean, unclean, xfs_log_unclean

BLOCK = 512
MAGIC = 0xFEEDBABE
COUNT = 64


def pread_of(data: bytes | bytearray) -> Callable[[int, int], bytes]:
    return lambda offset, size: bytes(data[offset : offset + size])


class XfsLog:
    """A ring of 64 blocks, written as the kernel does: each block has its round's number."""

    def __init__(self) -> None:
        self.blocks = [bytes(BLOCK)] * COUNT
        self.head, self.cycle = 0, 1

    def write(self, blocks: int, *, unmount: bool = False) -> None:
        operations = 1 if unmount else 3
        header = struct.pack(
            ">IIIIQQIII", MAGIC, self.cycle, 2, blocks * BLOCK, 0, 0, 0, 0, operations
        )
        self._put(header.ljust(320, b"\0") + struct.pack(">I", 32768))
        for index in range(blocks):
            flags = 0x20 if unmount and not index else 0
            self._put(struct.pack(">IIBB", self.cycle, 8, 0xAA, flags))

    def _put(self, block: bytes) -> None:
        self.blocks[self.head] = block.ljust(BLOCK, b"\0")
        self.head += 1
        if self.head == COUNT:
            self.head, self.cycle = 0, self.cycle + 1

    def verdict(self) -> str:
        return xfs_log_unclean(
            lambda first, many: b"".join(self.blocks[first : first + many]), COUNT
        )


class TestXfs:
    @given(st.lists(st.integers(1, 5), max_size=60))
    def test_clean_only_right_after_an_unmount(self, records: list[int]) -> None:
        log = XfsLog()
        assert log.verdict() == ""
        for blocks in records:
            log.write(blocks)
            assert "holds writes" in log.verdict()
            log.write(1, unmount=True)
            assert log.verdict() == ""

    @given(st.binary(min_size=BLOCK * 4, max_size=BLOCK * 4))
    def test_noise_is_an_answer(self, noise: bytes) -> None:
        def read(first: int, many: int) -> bytes:
            return noise[first * BLOCK : (first + many) * BLOCK]

        assert isinstance(xfs_log_unclean(read, 4), str)

    def test_a_log_elsewhere(self) -> None:
        super_block = b"XFSB" + struct.pack(">I", 4096) + bytes(504)
        assert "another disk" in unclean("xfs", pread_of(super_block))


def test_ext_and_btrfs() -> None:
    disk = bytearray(0x11000)
    assert unclean("ext4", pread_of(disk)) == unclean("btrfs", pread_of(disk)) == ""
    disk[1024 + 0x60] = 0x46
    disk[0x10060] = 1
    assert "needs_recovery" in unclean("ext3", pread_of(disk))
    assert "log_root" in unclean("btrfs", pread_of(disk))
    assert unclean("fat", pread_of(disk)) == ""


def _restart(start: bytes = b"RSTR", lsn: int = 9, in_use: int = 0, flags: int = 0) -> bytes:
    page = bytearray(4096)
    page[:4] = start
    struct.pack_into("<H", page, 24, 48)
    struct.pack_into("<Q4xHH", page, 48, lsn, in_use, flags)
    return bytes(page)


@pytest.mark.parametrize(
    ("pages", "clean"),
    [
        ((_restart(b"\xff" * 4),) * 2, True),
        ((_restart(in_use=0xFFFF),) * 2, True),
        ((_restart(flags=2),) * 2, True),
        ((_restart(),) * 2, False),
        ((_restart(b"CHKD"), _restart()), True),
        ((_restart(b"\0" * 4), _restart(b"BAAD", flags=2)), False),
        # The newer of two, or the one there is.
        ((_restart(flags=2), _restart(lsn=10)), False),
        ((_restart(), _restart(lsn=10, flags=2)), True),
        ((_restart(lsn=11), _restart(lsn=10, flags=2)), False),
        ((_restart(flags=2), _restart()), False),
        ((_restart(b"BAAD"), _restart(flags=2)), True),
        ((_restart(flags=2), b""), True),
    ],
)
def test_ntfs(pages: tuple[bytes, bytes], *, clean: bool) -> None:
    assert (ntfs_log_unclean(b"".join(pages)) == "") is clean


@given(
    st.sampled_from(["ext4", "xfs", "btrfs", "ntfs"]),
    st.binary(max_size=3000),
    st.integers(0, 70_000),
)
def test_anything_is_an_answer(kind: str, noise: bytes, zeros: int) -> None:
    """A journal that cannot be made out is not clean."""
    found = unclean(kind, pread_of(noise + bytes(zeros)))
    assert isinstance(found, str)
    if kind == "ntfs" and len(noise) < 100:
        assert found
