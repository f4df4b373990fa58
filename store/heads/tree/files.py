"""The content of a tree's regular files. Called under the lock, but for `fetch`."""

import errno
import os
import time
from typing import NoReturn

from store.format.buffer import Buffer
from store.format.pxar.entries import Entry
from store.heads.base import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    FileSystemStatus,
)
from store.heads.content import Content, Piece
from store.heads.database import ARCHIVE_SHIFT
from store.heads.extents import ZERO
from store.heads.journal import Journal
from store.heads.segments import FILE_DATA
from store.heads.tree.below import OWN, Base
from store.heads.tree.inodes import Inode
from store.heads.tree.table import Table

MAX_SIZE = 1 << 62


def _fail(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))


def _content(table: Table, inode: Inode) -> Content:
    if inode.content is None:
        key = table.archive << ARCHIVE_SHIFT | inode.number
        inode.content = Content(key, table.journal.segments.live)
    return inode.content


def prepare(table: Table, inode: Inode, start: int, end: int) -> None:
    """Have at hand what a change of a range needs, so that it is done at once."""
    if end > MAX_SIZE:
        _fail(errno.EFBIG)
    if start < 0 or end < start:
        _fail(errno.EINVAL)
    if inode.content is not None and inode.content.stored:
        hurried = table.journal.hurry.now
        inode.content.load(start, end + 1, table.journal.rows, may_wait=not hurried)


def write(table: Table, inode: Inode, offset: int, data: Buffer) -> int:
    """Write all of `data`; returns its length."""
    size = len(data)
    if not size:
        return 0
    end = offset + size
    prepare(table, inode, offset, end)
    table.change(inode)
    journal = table.journal
    content = inode.content or _content(table, inode)
    content.write(offset, data, FILE_DATA, table.archive, journal.segments, journal.rows)
    inode.size = max(inode.size, end)
    inode.mtime_ns = inode.ctime_ns = time.time_ns()
    return size


def begin(table: Table, inode: Inode, data: Buffer) -> None:
    """The same as the first bytes of a new file, at most a record of them; times are the caller's.

    Raises StoreError; nothing is written then.
    """
    size, segments = len(data), table.journal.segments
    segment, record = segments.append(FILE_DATA, table.archive, 0, data, size)
    _content(table, inode).begin((0, size, segment, record, 0))
    inode.size = size


def truncate(table: Table, inode: Inode, size: int) -> None:
    """Give a file another size; times are the caller's, but for mtime. Raises EISDIR, EINVAL."""
    if not inode.is_file:
        _fail(errno.EISDIR if inode.is_directory else errno.EINVAL)
    if size < inode.size and inode.content is not None:
        inode.content.truncate(size, table.journal.rows)
    inode.kept = min(inode.kept, size)
    inode.floor = min(inode.floor, size)
    inode.size = size
    inode.mtime_ns = time.time_ns()


def fallocate(table: Table, inode: Inode, offset: int, length: int, mode: int) -> None:
    """As Linux has it, but that nothing is reserved."""
    if offset < 0 or length <= 0:
        _fail(errno.EINVAL)
    if mode & ~(FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE):
        _fail(errno.EOPNOTSUPP)
    if mode & FALLOC_PUNCH_HOLE and not mode & FALLOC_KEEP_SIZE:
        _fail(errno.EOPNOTSUPP)
    end = offset + length
    prepare(table, inode, offset, end)
    table.change(inode)
    if mode & (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE):
        last = min(end, inode.size)
        if offset < last:
            journal = table.journal
            _content(table, inode).zero(offset, last, journal.segments, journal.rows)
    if not mode & FALLOC_KEEP_SIZE:
        inode.size = max(inode.size, end)
    inode.mtime_ns = inode.ctime_ns = time.time_ns()


def plan(
    table: Table, inode: Inode, offset: int, size: int
) -> tuple[list[Piece], Entry | None, Base | None]:
    """What makes up a range of a file, within its size, and the base's entry if that is in it."""
    if offset < 0 or size < 0:
        _fail(errno.EINVAL)
    end = min(offset + size, inode.size)
    if end <= offset:
        return [], None, None
    if inode.content is None:
        whole = [Piece(offset, end, 0, 0, 0)]
    else:
        may_wait = not table.journal.hurry.now
        whole = list(inode.content.pieces(offset, end, table.journal.rows, may_wait=may_wait))
    pieces, entry = [], None
    for piece in whole:
        if piece.segment or piece.record == ZERO:
            pieces.append(piece)
            continue
        kept = min(piece.end, inode.kept)
        if piece.start < kept:
            entry = inode.entry or _entry(table, inode)
            pieces.append(piece._replace(end=kept))
        if kept < piece.end:
            start = max(piece.start, kept)
            pieces.append(Piece(start, piece.end, 0, ZERO, 0))
    return pieces, entry, table.base


def _entry(table: Table, inode: Inode) -> Entry:
    assert table.base is not None
    inode.entry = table.base.entry(inode.base)
    return inode.entry


def fetch(journal: Journal, pieces: list[Piece], entry: Entry | None, base: Base | None) -> bytes:
    """The bytes of a plan. Waits for the datastore, unless hurried; needs no lock."""
    parts = []
    for piece in pieces:
        start, end, segment, record, skip = piece
        if record == ZERO:
            parts.append(bytes(end - start))
        elif segment:
            payload = journal.segments.read(segment, record)
            size = end - start
            parts.append(payload if size == len(payload) else payload[skip : skip + size])
        else:
            assert base is not None
            assert entry is not None
            parts.append(base.accessor.read(entry, start, end - start))
    return parts[0] if len(parts) == 1 else b"".join(parts)


def seek(table: Table, inode: Inode, offset: int, whence: int) -> int:
    """SEEK_DATA, SEEK_HOLE. The base's files have no holes that are known."""
    if offset < 0 or offset >= inode.size:
        _fail(errno.ENXIO)
    if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        _fail(errno.EINVAL)
    pieces, _, _ = plan(table, inode, offset, inode.size - offset)
    for piece in pieces:
        if (piece.record == ZERO) == (whence == os.SEEK_HOLE):
            return piece.start
    if whence == os.SEEK_DATA:
        _fail(errno.ENXIO)
    return inode.size


def status(table: Table) -> FileSystemStatus:
    """Room in the journal."""
    journal = table.journal
    space = os.statvfs(journal.path)
    used = journal.segments.total_bytes
    free = max(0, min(journal.budget_bytes - used, space.f_bavail * space.f_frsize))
    return FileSystemStatus(used + free, free, table.next - OWN)
