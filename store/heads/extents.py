"""Where the bytes of one region (4 MiB of a file or image) are: in the segments, or moved.

A region is a sorted list of extents that do not overlap. What none of them covers is the base's.
"""

from bisect import bisect_left
from struct import Struct

REGION = 4 << 20
ZERO = 0xFFFF_FFFF
"""In place of a record's position: zeros, written nowhere."""
CHUNK = 1 << 31
"""A record from here on is no position: it says which chunk in the datastore, see `moved`."""

Extent = tuple[int, int, int, int, int]
"""Start and end in the region; segment and position of the record; bytes of it to pass over.

The segment of zeros is the one that was current, that of a chunk where its newest bytes were: it
says how old they are.
"""
Region = list[Extent]

_EXTENT = Struct("<IIIII")


def counted(segment: int, record: int) -> int:
    """Under what `live` counts the bytes of an extent: its segment, or its chunk."""
    return segment if record < CHUNK else record


def put(region: Region, new: Extent, live: dict[int, int]) -> None:
    """Lay an extent over what is there, and count bytes in `live`, by segment or chunk."""
    start, end, segment, record, _ = new
    if record != ZERO:
        place = segment if record < CHUNK else record  # not called: here every write comes by
        live[place] = live.get(place, 0) + end - start
    if not region or region[-1][1] <= start:
        region.append(new)
        return
    first = bisect_left(region, (start,))
    if first and region[first - 1][1] > start:
        first -= 1
    last, count = first, len(region)
    while last < count and region[last][0] < end:
        last += 1
    region[first:last] = _replaced(region[first:last], new, live)


def _replaced(covered: Region, new: Extent, live: dict[int, int]) -> Region:
    """The new extent, and what it leaves of those at its two ends."""
    start, end = new[:2]
    left: Region = []
    for low, high, segment, record, _ in covered:
        if record != ZERO:
            live[counted(segment, record)] -= min(high, end) - max(low, start)
    if covered and covered[0][0] < start:
        low, _, segment, record, skip = covered[0]
        left.append((low, start, segment, record, skip))
    left.append(new)
    if covered and covered[-1][1] > end:
        low, high, segment, record, skip = covered[-1]
        left.append((end, high, segment, record, skip + end - low))
    return left


def cut(region: Region, start: int, live: dict[int, int]) -> Region:
    """The region without what lies at `start` and behind it."""
    kept: Region = []
    for extent in region:
        low, high, segment, record, skip = extent
        if record != ZERO and high > start:
            live[counted(segment, record)] -= high - max(low, start)
        if high <= start:
            kept.append(extent)
        elif low < start:
            kept.append((low, start, segment, record, skip))
    return kept


def since(region: Region, segment: int, live: dict[int, int]) -> Region:
    """The region without what is older than a segment."""
    for low, high, number, record, _ in region:
        if number < segment and record != ZERO:
            live[counted(number, record)] -= high - low
    return [extent for extent in region if extent[2] >= segment]


def pack(region: Region) -> bytes:
    """20 bytes for each extent."""
    return b"".join([_EXTENT.pack(*extent) for extent in region])


def unpack(packed: bytes) -> Region:
    """The same again."""
    return list(_EXTENT.iter_unpack(packed))
