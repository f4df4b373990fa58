"""Moving content of a head to the datastore: chunks, then the pin, then the journal says where.

A crash before the journal is committed leaves chunks, and perhaps a pin, that nobody needs; the
next opening removes that. The journal's own copy goes only with the commit.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import NamedTuple

from store.errors import ChunkMissing
from store.heads.content import Content
from store.heads.database import ARCHIVE_SHIFT
from store.heads.head import IMAGE, TREE, OpenHead
from store.heads.moved import MovedChunk
from store.heads.moving.choice import Choice, Pack, Part, oldest_segments, read_pack
from store.heads.moving.pins import GROUP, PIN, new_group_name
from store.names import BackupGroup, Digest
from store.operations.backup.chunks import ChunkPool
from store.operations.backup.session import SnapshotSession

log = logging.getLogger(__name__)

MOST_BYTES = 1 << 30
MOST_PARTS = 1 << 16
"""At once, for they are kept in memory meanwhile."""


class Stopped(Exception):
    """Somebody wants to seal the head, or to close it: the rest can wait."""


class _Moved(NamedTuple):
    pack: Pack
    chunk: MovedChunk


def move_early(head: OpenHead, check: Callable[[], None]) -> int:
    """Bring the journal below half of its budget, in steps; how many bytes it was of use for.

    `check` raises to end it early. Only one at a time, and none during a seal.
    Raises StoreError; the head is as it was.
    """
    journal = head.journal
    before = journal.segments.total_bytes
    journal.commit()  # which removes segments of no use
    freed = before - journal.segments.total_bytes
    return max(freed, 0) + _move_oldest(head, check)


def _move_oldest(head: OpenHead, check: Callable[[], None]) -> int:
    """Move what the oldest segments have; how many bytes."""
    journal = head.journal
    journal.is_kept = True
    try:
        surplus = journal.segments.total_bytes - journal.budget_bytes // 2
        chosen = oldest_segments(
            journal.segments.sizes, journal.segments.stamp, min(surplus, MOST_BYTES)
        )
        packs = _choice(head, chosen).packs()
        first = next(packs, None)
        if first is None:
            return 0
        return _move(head, _few(first, packs, check))
    finally:
        journal.is_kept = False


def _choice(head: OpenHead, segments: set[int]) -> Choice:
    images, trees = {}, []
    for number, name, kind in head.journal.rows.fetch("SELECT id, name, kind FROM archive"):
        if kind == IMAGE:
            image = head.image(name)
            images[number] = image.size, image.base.size if image.base is not None else 0
        elif kind == TREE:
            trees.append(head.tree(name).table.archive)
    return Choice(head.journal.rows, segments, images, trees)


def _few(first: Pack, packs: Iterator[Pack], check: Callable[[], None]) -> Iterator[Pack]:
    """As many as are kept in memory."""
    parts = len(first)
    yield first
    for pack in packs:
        check()
        parts += len(pack)
        if parts > MOST_PARTS:
            return
        yield pack


def _move(head: OpenHead, packs: Iterator[Pack]) -> int:
    pins = head.pins
    with pins.begin(_pin_group(head), head.sync_level) as writer:
        session = SnapshotSession(head.datastore, writer, head.key, head.crypt_mode)
        moved = _store(head, session, packs)
        chunks = head.moved_in_use() + [item.chunk for item in moved]
        new = pins.finish(session, chunks, str(head.group))
    count = 0

    def change() -> None:
        nonlocal count
        rows = head.journal.rows
        head.journal.moved.add(item.chunk for item in moved)
        rows.set_meta(PIN, str(new))
        count = sum(_take(head, item) for item in moved)

    head.journal.change_places(change)
    pins.keep_only(new)
    log.info("%s: %d bytes of its journal were moved to %s", head.group, count, new)
    return count


def pin_again(head: OpenHead, chunks: list[MovedChunk]) -> None:
    """Make another pin of what was moved; what of it is gone is told. Raises StoreError."""
    with head.pins.begin(_pin_group(head), head.sync_level) as writer:
        session = SnapshotSession(head.datastore, writer, head.key, head.crypt_mode)
        gone = [chunk for chunk in chunks if not session.chunks.touch(chunk.digest)]
        for _, digest, size in gone:
            log.error("%s: %d bytes of it are lost: chunk %s is gone", head.group, size, digest)
        new = head.pins.finish(session, set(chunks) - set(gone), str(head.group))
    head.journal.change_places(lambda: head.journal.rows.set_meta(PIN, str(new)))
    log.warning("%s: the snapshot that kept what it has moved was gone; %s is new", head.group, new)


def _pin_group(head: OpenHead) -> BackupGroup:
    """Durable before the first pin is: who opens the head after a crash finds it."""
    group = head.pins.group
    if group is None:
        head.journal.change_places(lambda: head.journal.rows.set_meta(GROUP, new_group_name()))
        group = head.pins.group
        assert group is not None
    return group


def _store(head: OpenHead, session: SnapshotSession, packs: Iterator[Pack]) -> list[_Moved]:
    """Make the chunks; each is there afterwards."""
    journal, coming = head.journal, list[tuple[Pack, int, Future[Digest]]]()
    with ChunkPool(session.chunks) as pool:
        for pack in packs:
            plain = read_pack(pack, journal.payload)
            coming.append((pack, len(plain), pool.store(plain)))
        record = journal.moved.next_record()
        moved = [
            _Moved(pack, MovedChunk(record + number, future.result(), size))
            for number, (pack, size, future) in enumerate(coming)
        ]
    for digest in session.chunks.new:
        if head.datastore.chunks.stat(digest) is None:
            raise ChunkMissing(f"chunk {digest}, just stored for the head of {head.group}, is gone")
    return moved


def _take(head: OpenHead, item: _Moved) -> int:
    """Let the head's maps say that a pack is in its chunk, where nothing was written meanwhile."""
    skip = count = 0
    for part in item.pack:
        found = _content(head, part)
        rows = head.journal.rows
        if found is not None and part.is_there(found.region(part.region, rows)):
            found.note(part.region, part.moved(item.chunk.record, skip), rows)
            count += part.size
        skip += part.size
    return count


def _content(head: OpenHead, part: Part) -> Content | None:
    """The content of a file or image, which is about to change; None when it is gone."""
    archive, number = part.owner >> ARCHIVE_SHIFT, part.owner & (1 << ARCHIVE_SHIFT) - 1
    for image in head.images.values():
        if image.archive == archive:
            return image.content
    for tree in head.trees.values():
        if tree.table.archive == archive:
            return tree.table.content_to_move(number)
    return None
