"""An image archive of a head: a disk, its changes in the segments over the base's stream.

A write is one record and an entry in a map; FLUSH is one fdatasync. The map's rows are written now
and then, and recovery reads the records since.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import NoReturn

from store.datastore.streams import IndexedStream
from store.format.buffer import Buffer
from store.format.fixed_index import CHUNK_SIZE
from store.heads.base import WouldWait
from store.heads.content import Content, Piece, write_anew
from store.heads.database import ARCHIVE_SHIFT
from store.heads.extents import CHUNK, REGION, ZERO, counted
from store.heads.journal import Journal
from store.heads.segments import IMAGE_DATA, IMAGE_SIZE, IMAGE_ZERO, Record

DIRTY_REGIONS = 512
LOGGED_BYTES = 64 << 20
MAX_SIZE = 1 << 54


def _fail(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))


class HeadImage:
    """An Image over a Content. Its maps are under the journal's lock, its data is not."""

    def __init__(
        self, archive: int, journal: Journal, base: IndexedStream | None, size: int
    ) -> None:
        self.archive, self.journal, self.base, self.size = archive, journal, base, size
        key = archive << ARCHIVE_SHIFT
        stored = journal.rows.region_numbers(key)
        self.content = Content(key, journal.segments.image_live, stored)
        self._logged = 0
        self._count_live()

    def _count_live(self) -> None:
        """What the rows refer to: the counts in the database are of trees alone."""
        live = self.content.live
        for number in self.content.stored:
            for low, high, segment, record, _ in self.journal.rows.region(
                self.content.owner, number
            ):
                if record != ZERO:
                    place = counted(segment, record)
                    live[place] = live.get(place, 0) + high - low

    @property
    def is_clean(self) -> bool:
        """Whether it is what the base has."""
        return self.content.is_empty and self.base is not None and self.size == self.base.size

    # Reading

    def read(self, offset: int, size: int) -> bytes:
        self._check(offset, size)
        return b"".join(self._part(piece) for piece in self._pieces(offset, size))

    def peek(self, offset: int, size: int) -> Buffer | None:
        self._check(offset, size)
        if not self.journal.lock.acquire(blocking=False):
            return None
        try:
            rows = self.journal.rows
            pieces = list(self.content.pieces(offset, offset + size, rows, may_wait=False))
        except WouldWait:
            return None
        finally:
            self.journal.lock.release()
        parts = [self._part_at_hand(piece) for piece in pieces]
        if len(parts) == 1:
            return parts[0]
        return None if None in parts else b"".join(part for part in parts if part is not None)

    def _pieces(self, offset: int, size: int) -> list[Piece]:
        with self.journal.lock:
            return list(self.content.pieces(offset, offset + size, self.journal.rows))

    def _part(self, piece: Piece) -> bytes:
        start, end, segment, record, skip = piece
        if record == ZERO:
            return bytes(end - start)
        if segment:
            payload = self.journal.payload(segment, record)
            return bytes(payload[skip : skip + end - start])
        base = self.base
        last = min(end, base.size) if base is not None else 0
        if base is None or last <= start:
            return bytes(end - start)
        return base.read(start, last - start) + bytes(end - last)

    def _part_at_hand(self, piece: Piece) -> Buffer | None:
        base = self.base
        if CHUNK <= piece.record < ZERO:
            payload = self.journal.moved.peek(piece.record)
            last = piece.skip + piece.end - piece.start
            return None if payload is None else memoryview(payload)[piece.skip : last]
        if piece.segment or piece.record == ZERO or base is None or piece.start >= base.size:
            return self._part(piece)
        if piece.end > base.size:
            return None  # across the base's end
        return base.peek(piece.start, piece.end - piece.start)

    def prefetch(self, offset: int) -> None:
        if self.base is not None:
            self.base.prefetch(offset)

    def is_zero(self, position: int) -> bool:
        start = position * CHUNK_SIZE
        end = min(start + CHUNK_SIZE, self.size)
        return all(zero for _, _, zero in self.extents(start, end - start))

    def extents(self, offset: int, size: int) -> Iterator[tuple[int, int, bool]]:
        self._check(offset, size)
        begun, kind = offset, False
        position = offset
        for start, length, zero in self._kinds(offset, size):
            if zero != kind and start > begun:
                yield begun, start - begun, kind
                begun = start
            kind, position = zero, start + length
        if position > begun:
            yield begun, position - begun, kind

    def _kinds(self, offset: int, size: int) -> Iterator[tuple[int, int, bool]]:
        end = offset + size
        while offset < end:  # region by region: an image may be large
            step = min(end - offset, REGION - offset % REGION)
            for piece in self._pieces(offset, step):
                yield from self._kinds_of(piece)
            offset += step

    def _kinds_of(self, piece: Piece) -> Iterator[tuple[int, int, bool]]:
        start, end, segment, record, _ = piece
        if segment or record == ZERO:
            yield start, end - start, record == ZERO
            return
        last = min(end, self.base.size) if self.base is not None else 0
        if self.base is not None and start < last:
            yield from self.base.extents(start, last - start)
        if max(start, last) < end:
            yield max(start, last), end - max(start, last), True

    # Writing

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        size, journal = len(data), self.journal
        self._check_write(offset, size)
        journal.admit(size)
        with journal.lock:
            self.content.write(
                offset, data, IMAGE_DATA, self.archive, journal.segments, journal.rows
            )
            self._note(size)
        if fua:
            self.flush()

    def write_at_once(self, offset: int, data: Buffer) -> None:
        size, journal = len(data), self.journal
        if offset < 0 or offset + size > MAX_SIZE:
            _fail(errno.EFBIG)
        if not journal.lock.acquire(blocking=False):
            raise WouldWait
        journal.hurry.now = True
        try:
            journal.admit(size)
            self.content.load(offset, offset + size, journal.rows, may_wait=False)
            if offset + size > self.size:
                self._resize(offset + size)
            self.content.write(
                offset, data, IMAGE_DATA, self.archive, journal.segments, journal.rows
            )
            with suppress(WouldWait):  # the next one does it
                self._note(size)
        finally:
            journal.hurry.now = False
            journal.lock.release()

    def zero(self, offset: int, size: int, *, fua: bool = False) -> None:
        self._check_write(offset, size)
        journal = self.journal
        journal.admit(0)
        with journal.lock:
            journal.segments.append(IMAGE_ZERO, self.archive, offset, b"", size)
            self.content.zero(offset, offset + size, journal.segments, journal.rows)
            self._note(0)
        if fua:
            self.flush()

    def trim(self, offset: int, size: int, *, fua: bool = False) -> None:
        self.zero(offset, size, fua=fua)

    def flush(self) -> None:
        self.journal.check()
        self.journal.segments.sync()
        self.journal.fence()

    def grow(self, size: int) -> None:
        journal = self.journal
        if size < self.size or size > MAX_SIZE:
            _fail(errno.EINVAL)
        journal.admit(0)
        with journal.lock:
            self._resize(size)
            self._note(0)
        self.flush()

    def _resize(self, size: int) -> None:
        self.journal.segments.append(IMAGE_SIZE, self.archive, size, b"", 0)
        self.size = size

    def _note(self, size: int) -> None:
        self._logged += size + 64
        self.journal.changes += 1
        if len(self.content.dirty) > DIRTY_REGIONS:
            self.journal.flush_some()

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            _fail(errno.EINVAL)

    def _check_write(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0:
            _fail(errno.EINVAL)
        if offset + size > self.size:
            _fail(errno.ENOSPC)

    # Rows and recovery

    def flush_rows(self) -> None:
        """Write the map's rows. Called under both locks, in a transaction."""
        journal = self.journal
        write_anew(self.content, IMAGE_DATA, self.archive, journal.segments, journal.rows)
        self.content.flush(journal.rows, inline=False)
        journal.rows.execute("UPDATE archive SET size = ? WHERE id = ?", self.size, self.archive)
        self._logged = 0

    def flush_if_due(self) -> None:
        """The same when recovery would have much to read, or the map much memory."""
        if self._logged > LOGGED_BYTES or len(self.content.dirty) > DIRTY_REGIONS:
            self.flush_rows()

    def is_logged(self) -> bool:
        return self._logged > 0

    def recover(self, record: Record) -> None:
        """Do again what a record says, in order. Called under the lock."""
        if record.kind == IMAGE_DATA:
            start, size = record.offset, record.size
            number, low = divmod(start, REGION)
            extent = (low, low + size, record.segment, record.position, 0)
            self.content.note(number, extent, self.journal.rows)
        elif record.kind == IMAGE_ZERO:
            self.content.zero_at(
                record.offset, record.offset + record.size, record.segment, self.journal.rows
            )
        elif record.kind == IMAGE_SIZE:
            self.size = max(self.size, record.offset)
        self._logged += record.size + 64
