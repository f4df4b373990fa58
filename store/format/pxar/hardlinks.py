"""How many names each regular file of an archive has: st_nlink, which the format does not store.

A hard link names its target's offset, so a target's count needs all links of the archive. In a
metadata stream (v2) the links are found by their item type, at the speed of a byte search.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from heapq import merge
from itertools import islice
from struct import Struct

from store.format.buffer import Buffer
from store.format.pxar.items import HEADER_SIZE, MAX_NAME_LENGTH, PXAR_FILENAME, PXAR_HARDLINK

MAX_LINKS = 4 << 20
"""Of 8 bytes each: what one archive may remember."""
# So many are sorted at once, as Python's integers.
RUN = 64 << 10
_ITEM = Struct("<QQ")
_DISTANCE = Struct("<Q")
_HARDLINK = _DISTANCE.pack(PXAR_HARDLINK)
_FILENAME = _DISTANCE.pack(PXAR_FILENAME)
_MAX_FILENAME = HEADER_SIZE + MAX_NAME_LENGTH + 1
_LINK_START = HEADER_SIZE + _DISTANCE.size


class Links:
    """How many hard links point to each file of an archive: their `targets` (u64), sorted."""

    __slots__ = ("targets",)

    def __init__(self, targets: Iterable[int] = ()) -> None:
        """`targets`: for each link the offset of its target's FILENAME item.

        Those past MAX_LINKS are not counted.
        """
        rest, runs = islice(targets, MAX_LINKS), []
        while run := array("Q", sorted(islice(rest, RUN))):
            runs.append(run)
        self.targets = array("Q", merge(*runs)) if len(runs) > 1 else (runs or [array("Q")])[0]

    def __len__(self) -> int:
        return len(self.targets)

    def count(self, offset: int) -> int:
        """How many links point to the file whose FILENAME item is at `offset`."""
        first = bisect_left(self.targets, offset)
        return bisect_right(self.targets, offset, first) - first


def links_in_stream(chunks: Iterable[Buffer]) -> Iterator[int]:
    """The targets of all hard links of a metadata stream, given whole, in pieces of any size.

    An xattr's value that looks like FILENAME and HARDLINK items counts as well: that is one wrong
    st_nlink in an archive made to deceive, and nothing else.
    """
    base, window, start = 0, b"", 0
    for chunk in chunks:
        window += bytes(chunk)
        yield from _targets(window, base, start)
        start = max(start, len(window) - _LINK_START + 1)
        keep = max(0, start - _MAX_FILENAME)
        base, window, start = base + keep, window[keep:], start - keep


def _targets(window: bytes, base: int, start: int) -> Iterator[int]:
    """Targets of the links that begin at window[start] or later and are there whole."""
    last = len(window) - _LINK_START
    position = window.find(_HARDLINK, start)
    while 0 <= position <= last:
        name = _name_before(window, position)
        distance = _DISTANCE.unpack_from(window, position + HEADER_SIZE)[0]
        if name is not None and 0 < distance <= base + name:
            yield base + name - distance
        position = window.find(_HARDLINK, position + 1)


def _name_before(window: bytes, position: int) -> int | None:
    """Where the FILENAME item starts that ends at `position`."""
    name = window.rfind(_FILENAME, max(0, position - _MAX_FILENAME), position)
    while name >= 0:
        if name + _ITEM.unpack_from(window, name)[1] == position:
            return name
        name = window.rfind(_FILENAME, max(0, position - _MAX_FILENAME), name)
    return None
