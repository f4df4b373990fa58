"""The bytes that a head has of one file or image, over what its base has.

Regions are loaded from their rows when they are needed. All of it is called under the head's lock;
reading the pieces it names is not.
"""

from collections.abc import Iterator
from typing import NamedTuple

from store.format.buffer import Buffer
from store.heads.database import Rows
from store.heads.extents import REGION, ZERO, Extent, Region, cut, put, since
from store.heads.segments import MAX_PAYLOAD, Segments

INLINE = 32
"""So many extents of the first region stand in the inode's row."""
KEPT_REGIONS, LOADED_REGIONS = 16, 64
CROWDED = 2048
"""Extents of one region, past which it is written anew in a few."""


class Piece(NamedTuple):
    """Bytes `start` to `end`, exclusive: of a record, zeros (record ZERO), the base (segment 0)."""

    start: int
    end: int
    segment: int
    record: int
    skip: int


class Content:
    """Extents by region.

    stored: the regions that have rows. live: where bytes are counted, by segment.
    """

    __slots__ = ("dirty", "live", "owner", "regions", "stored")

    def __init__(self, owner: int, live: dict[int, int], stored: set[int] | None = None) -> None:
        self.owner, self.live = owner, live
        self.regions: dict[int, Region] = {}
        self.stored = stored or set()
        self.dirty: set[int] = set()

    @property
    def is_empty(self) -> bool:
        return not self.stored and not any(self.regions.values())

    def region(self, number: int, rows: Rows, *, may_wait: bool = True) -> Region:
        region = self.regions.get(number)
        if region is not None:
            return region
        if number not in self.stored:
            return []  # not remembered: who reads a large image through would fill the memory
        region = rows.region(self.owner, number, may_wait=may_wait)
        if len(self.regions) > LOADED_REGIONS:
            self._forget_loaded()
        self.regions[number] = region
        return region

    def _forget_loaded(self) -> None:
        """Let go of regions that are as their rows are, but for the last few."""
        for number in list(self.regions)[:-KEPT_REGIONS]:
            if number in self.stored and number not in self.dirty:
                del self.regions[number]

    def load(self, start: int, end: int, rows: Rows, *, may_wait: bool = True) -> None:
        """Have the regions of a range at hand, so that what follows does not wait."""
        if self.stored:
            for number in range(start // REGION, -(-end // REGION)):
                if number not in self.regions and number in self.stored:
                    self.region(number, rows, may_wait=may_wait)

    def write(
        self, offset: int, data: Buffer, kind: int, archive: int, segments: Segments, rows: Rows
    ) -> None:
        """Append the bytes to the segments, and note where they are."""
        view, done, size = memoryview(data), 0, len(data)
        while done < size:
            number, start = divmod(offset + done, REGION)
            step = min(size - done, MAX_PAYLOAD, REGION - start)
            piece = view[done : done + step]
            segment, record = segments.append(kind, archive, offset + done, piece, step)
            self.note(number, (start, start + step, segment, record, 0), rows)
            done += step

    def begin(self, extent: Extent) -> None:
        """Lay the first extent of all."""
        self.regions[0] = []
        put(self.regions[0], extent, self.live)
        self.dirty.add(0)

    def note(self, number: int, extent: Extent, rows: Rows) -> None:
        """Lay one extent over a region."""
        region = self.regions[number] = self.region(number, rows)
        put(region, extent, self.live)
        self.dirty.add(number)

    def zero(self, start: int, end: int, segments: Segments, rows: Rows) -> None:
        """Let a range read as zeros."""
        self.zero_at(start, end, segments.stamp, rows)

    def zero_at(self, start: int, end: int, stamp: int, rows: Rows) -> None:
        """The same, as old as a segment."""
        while start < end:
            number, low = divmod(start, REGION)
            high = min(REGION, low + end - start)
            self.note(number, (low, high, stamp, ZERO, 0), rows)
            start += high - low

    def truncate(self, size: int, rows: Rows) -> None:
        """Forget what lies at `size` and behind."""
        first, low = divmod(size, REGION)
        for number in [n for n in self.stored | set(self.regions) if n >= first]:
            region = self.region(number, rows)
            if region and (number > first or region[-1][1] > low):
                start = low if number == first else 0
                self.regions[number] = cut(region, start, self.live)
                self.dirty.add(number)

    def keep_since(self, segment: int, rows: Rows) -> None:
        """Forget what is older than a segment: the new base has it."""
        for number in self.stored | set(self.regions):
            region = self.region(number, rows)
            kept = since(region, segment, self.live)
            if len(kept) != len(region):
                self.regions[number] = kept
                self.dirty.add(number)

    def pieces(self, start: int, end: int, rows: Rows, *, may_wait: bool = True) -> Iterator[Piece]:
        """What makes up a range, in order, without gaps."""
        while start < end:
            number, low = divmod(start, REGION)
            high, base = min(REGION, low + end - start), start - low
            for first, last, segment, record, skip in self.region(number, rows, may_wait=may_wait):
                if last <= low:
                    continue
                if first >= high:
                    break
                if first > low:
                    yield Piece(base + low, base + first, 0, 0, 0)
                    low = first
                stop = min(last, high)
                yield Piece(base + low, base + stop, segment, record, skip + low - first)
                low = stop
            if low < high:
                yield Piece(base + low, base + high, 0, 0, 0)
            start = base + high

    def crowded(self) -> list[int]:
        """Dirty regions of so many extents that they are better written anew."""
        return [number for number in self.dirty if len(self.regions[number]) > CROWDED]

    def data_bytes(self) -> int:
        """Bytes that the regions at hand have in the segments."""
        return sum(
            high - low
            for region in self.regions.values()
            for low, high, _, record, _ in region
            if record != ZERO
        )

    def flush(self, rows: Rows, *, inline: bool) -> None:
        """Write the dirty regions' rows; the first one's not if it stands in the inode's row."""
        changed: list[tuple[int, Region]] = []
        for number in self.dirty:
            region = self.regions[number]
            if number == 0 and inline and len(region) <= INLINE:
                if 0 in self.stored:
                    changed.append((0, []))
                    self.stored.discard(0)
                continue
            changed.append((number, region))
            (self.stored.add if region else self.stored.discard)(number)
        if changed:
            rows.write_regions(self.owner, changed)
        self.dirty.clear()
        if len(self.regions) > KEPT_REGIONS:
            self.regions = {
                number: region
                for number, region in self.regions.items()
                if number not in self.stored
            }


def write_anew(content: Content, kind: int, archive: int, segments: Segments, rows: Rows) -> None:
    """Give dirty regions of very many extents a few large ones, where they follow each other."""
    for number in content.crowded():
        runs = _runs(content.region(number, rows), number * REGION)
        if 2 * len(runs) < len(content.regions[number]):
            for run in runs:
                data = b"".join(read_pieces(run, segments))
                content.write(run[0].start, data, kind, archive, segments, rows)


def _runs(region: Region, base: int) -> list[list[Piece]]:
    """The data of a region, in runs of what follows each other."""
    runs: list[list[Piece]] = []
    for low, high, segment, record, skip in region:
        if record == ZERO:
            continue
        piece = Piece(base + low, base + high, segment, record, skip)
        if runs and runs[-1][-1].end == piece.start:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def read_pieces(pieces: list[Piece], segments: Segments) -> list[bytes]:
    """The bytes of pieces that are not the base's."""
    parts = []
    for start, end, segment, record, skip in pieces:
        if record == ZERO:
            parts.append(bytes(end - start))
        else:
            payload = segments.read(segment, record)
            size = end - start
            parts.append(payload if size == len(payload) else payload[skip : skip + size])
    return parts
