"""Where a file lies on its disk, as the guest's kernel tells: then its bytes need no guest.

Source: linux include/uapi/linux/fiemap.h.
"""

from collections.abc import Callable, Iterable

from store.disks.microvm.protocol import Extent
from store.disks.parsers.files import HOLE, Run
from store.errors import FormatError

LAST = 0x0001
UNWRITTEN = 0x0800
MERGED, SHARED = 0x1000, 0x2000
# Beside these: packed, encrypted, not yet placed, or unknown to us. Only the guest reads such.
_PLAIN = LAST | UNWRITTEN | MERGED | SHARED
MOST = 65536


def runs_of(extents: Iterable[Extent], size: int, disk_size: int) -> list[Run] | None:
    """The pieces of a file of `size` bytes, in order; None when only the guest can read it.

    Raises FormatError: a piece is not on the disk.
    """
    runs, end = [], 0
    for logical, physical, length, flags in extents:
        if flags & ~_PLAIN:
            return None
        if logical >= size:
            break
        length = min(length, size - logical)
        if logical > end:
            runs.append(Run(HOLE, logical - end))
        if physical + length > disk_size:
            raise FormatError(f"an extent of {length} bytes at {physical}, past {disk_size}")
        runs.append(Run(HOLE if flags & UNWRITTEN else physical, length))
        end = logical + length
    if end < size:
        runs.append(Run(HOLE, size - end))
    return runs


def all_extents(ask: Callable[[int], list[Extent]]) -> list[Extent] | None:
    """Those of a whole file, asked for piece by piece from an offset on; None: too many to keep."""
    found: list[Extent] = []
    while len(found) <= MOST:
        more = ask(found[-1].logical + found[-1].size if found else 0)
        found += more
        if not more or more[-1].flags & LAST:
            return found
    return None
