import contextlib
import struct

import pytest

from store.disks.parsers.blocks import CachedBlocks
from store.disks.parsers.clusters import Table, dos_time_ns
from store.disks.parsers.fat import short_name
from store.disks.parsers.files import BadFile, Run


@pytest.mark.parametrize(
    ("raw", "case", "name"),
    [
        (b"README  TXT", 0x00, "README.TXT"),
        (b"README  TXT", 0x18, "readme.txt"),
        (b"README  TXT", 0x08, "readme.TXT"),
        (b"README  TXT", 0x10, "README.txt"),
        (b"NOEXT      ", 0x18, "noext"),
        (b"\x05BC     TXT", 0x00, "\u03c3BC.TXT"),
        (b"\x81BER    TXT", 0x18, "über.txt"),
    ],
)
def test_short_names_as_vfat_shows_them(raw: bytes, case: int, name: str) -> None:
    assert short_name(raw, case) == name


def table(*entries: int, bits: int = 32) -> Table:
    raw = struct.pack(f"<{len(entries)}I", *entries)
    blocks = CachedBlocks(len(raw), lambda offset, size: raw[offset : offset + size])
    return Table(blocks, 0, bits, 10_000, 100, len(entries) - 2)


def test_a_chain_is_runs() -> None:
    found = table(0, 0, 3, 5, 0, 6, 0x0FFFFFFF).runs(2, 350)
    assert found == [Run(10_000, 200), Run(10_300, 150)]


@pytest.mark.parametrize("entries", [(0, 0, 3, 2), (0, 0, 0), (0, 0, 99), (0, 0, 0x0FFFFFFF)])
def test_broken_chains_end(entries: tuple[int, ...]) -> None:
    with pytest.raises(BadFile):
        table(*entries).runs(2, 1000)
    with contextlib.suppress(BadFile):
        table(*entries).directory(2)


def test_times() -> None:
    date, time = (2024 - 1980) << 9 | 2 << 5 | 29, 12 << 11 | 34 << 5 | 28
    assert dos_time_ns(date, time) == 1709210096 * 10**9
    assert dos_time_ns(date, time, 150, 60) == (1709210096 - 3600) * 10**9 + 1_500_000_000
    assert dos_time_ns(0, 0) == 315532800 * 10**9
    assert isinstance(dos_time_ns(0xFFFF, 0xFFFF), int)
