"""After a seal: the head's rows less what the new snapshot has, and its trees and images over it.

What changed while the seal was under way has the generation after the frozen one, and segments from
`boundary` on. Everything older is what the snapshot says. All of it is one transaction.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field

from store.datastore.archives import IndexedStream, SnapshotReader
from store.format.pxar.hardlinks import Links
from store.heads.content import Content
from store.heads.database import ARCHIVE_SHIFT, Rows
from store.heads.extents import CHUNK, ZERO, counted
from store.heads.head import IMAGE, TREE, OpenHead, encode_runs
from store.heads.sealing.walk import Places
from store.heads.segments import FILE_DATA
from store.heads.tree.below import OWN, ROOT, Base, Numbers
from store.heads.tree.inodes import NO_BASE, Inode
from store.heads.tree.operations import HeadTree
from store.heads.tree.table import Table
from store.names import Snapshot

PAGE = 1000
COPY_SIZE = 1 << 20


@dataclass
class Sealed:
    """What a seal froze and made. `places`: of each tree that was walked, by archive number."""

    snapshot: Snapshot
    generation: int
    boundary: int
    archives: set[int]
    places: dict[int, Places] = field(default_factory=dict)


def rebase(head: OpenHead, sealed: Sealed, reader: SnapshotReader) -> None:
    """Let the head stand on the snapshot; durable with the next commit.

    An error leaves the head of no use until it is opened again, as it was before the seal.
    """
    below = _open(head, sealed, reader)  # without a lock: it may wait for the datastore
    try:
        _rebase(head, sealed, below)
    except BaseException as error:
        head.journal.give_up(error)
        raise


@dataclass
class _Below:
    """What the snapshot has, opened, by archive number."""

    reader: SnapshotReader
    held: ExitStack
    trees: dict[int, Base] = field(default_factory=dict)
    images: dict[int, IndexedStream] = field(default_factory=dict)


def _open(head: OpenHead, sealed: Sealed, reader: SnapshotReader) -> _Below:
    below = _Below(reader, head.hold_snapshot(sealed.snapshot))
    try:
        for number, name, kind in head.journal.rows.fetch("SELECT id, name, kind FROM archive"):
            places = sealed.places.get(number)
            if kind == TREE and places is not None:
                links = Links(places.link_targets)
                streams = reader.open_streams(name)
                below.trees[number] = Base(*streams, head.journal.hurry, links)
            elif kind == IMAGE and number in sealed.archives:
                below.images[number] = reader.open_image(name)
    except BaseException:
        below.held.close()
        raise
    return below


def _rebase(head: OpenHead, sealed: Sealed, below: _Below) -> None:
    journal = head.journal
    with journal.lock, journal.rows.lock:
        journal.begin()
        for member in list(journal.members):
            member.flush_rows()
        rows = journal.rows
        for number, name, kind in rows.fetch("SELECT id, name, kind FROM archive ORDER BY id"):
            if number not in sealed.archives:
                continue
            if kind == TREE and number in below.trees:
                _rebase_tree(head.tree(name), sealed, below.trees[number])
            elif kind == IMAGE and number in below.images:
                image = head.image(name)
                image.base = below.images[number]
                image.content.keep_since(sealed.boundary, rows)
                image.flush_rows()
            rows.execute("UPDATE archive SET base = 1 WHERE id = ?", number)
        _recount(rows, journal.segments.live, sealed.boundary)
        if not head.changed_since_freeze:
            rows.set_meta("archives_changed", 0)
        rows.set_meta("base", str(sealed.snapshot))
        head.adopt_reader(below.reader, below.held)
        journal.thaw()
        journal.changes += 1


def _rebase_tree(tree: HeadTree, sealed: Sealed, base: Base) -> None:
    """One that was walked; one of which nothing had changed is where it was."""
    table = tree.table
    places = sealed.places[table.archive]
    runs = Numbers(places.runs())
    rows, low = table.journal.rows, table.archive << ARCHIVE_SHIFT
    _save_orphans(table)
    _write_places(rows, table.archive, places, runs)
    high = low + (1 << ARCHIVE_SHIFT)
    old = sealed.generation
    rows.execute(
        "DELETE FROM name WHERE parent >= ? AND parent < ? AND generation <= ?", low, high, old
    )
    rows.execute(
        "DELETE FROM inode WHERE key >= ? AND key < ? AND generation <= ?"
        " AND key NOT IN (SELECT key FROM orphan)",
        low,
        high,
        old,
    )
    rows.execute(
        "DELETE FROM region WHERE owner >= ? AND owner < ?"
        " AND owner NOT IN (SELECT key FROM inode)",
        low,
        high,
    )
    table.base, table.numbers = base, runs
    table.has_aliases = bool(places.numbers)
    table.forget()
    _rebase_inodes(table, sealed)


def _write_places(rows: Rows, archive: int, places: Places, runs: Numbers) -> None:
    rows.execute("DELETE FROM alias WHERE archive = ?", archive)
    rows.execute_many(
        "INSERT INTO alias VALUES (?, ?, ?)",
        (
            (archive, offset, number)
            for number, offset in zip(places.numbers, places.offsets, strict=True)
        ),
    )
    rows.set_meta(f"runs {archive}", encode_runs(runs))


def _save_orphans(table: Table) -> None:
    """Give inodes without a name what they have of the old base: the new one has nothing of it."""
    journal = table.journal
    for (key,) in journal.rows.fetch("SELECT key FROM orphan"):
        number = key - (table.archive << ARCHIVE_SHIFT)
        if not 0 < number < 1 << ARCHIVE_SHIFT:
            continue
        inode = table.get(number)
        if inode.is_file and inode.base != NO_BASE and inode.kept:
            _copy_base(table, inode)
        table.change(inode)
        inode.base, inode.kept = NO_BASE, 0
    table.flush_rows()


def _copy_base(table: Table, inode: Inode) -> None:
    journal, base = table.journal, table.base
    assert base is not None
    entry = base.entry(inode.base)
    if inode.content is None:
        key = table.archive << ARCHIVE_SHIFT | inode.number
        inode.content = Content(key, journal.segments.live)
    pieces = list(inode.content.pieces(0, inode.kept, journal.rows))
    for piece in pieces:
        if piece.segment or piece.record == ZERO:
            continue
        for start in range(piece.start, piece.end, COPY_SIZE):
            data = base.accessor.read(entry, start, min(COPY_SIZE, piece.end - start))
            inode.content.write(
                start, data, FILE_DATA, table.archive, journal.segments, journal.rows
            )


def _rebase_inodes(table: Table, sealed: Sealed) -> None:
    """What changed meanwhile: old bytes are the new base's, where it has the inode."""
    rows, low = table.journal.rows, table.archive << ARCHIVE_SHIFT
    last = low
    while True:
        found = rows.fetch(
            "SELECT key FROM inode WHERE key > ? AND key < ? AND generation > ?"
            " ORDER BY key LIMIT ?",
            last,
            low + (1 << ARCHIVE_SHIFT),
            sealed.generation,
            PAGE,
        )
        if not found:
            break
        for (key,) in found:
            _rebase_inode(table, table.get(key - low), sealed)
        last = found[-1][0]
        table.flush_rows()


def _rebase_inode(table: Table, inode: Inode, sealed: Sealed) -> None:
    if inode.was_orphan or (not inode.nlink and inode.base == NO_BASE):
        return
    assert table.base is not None
    offset = table.offset_of(inode.number)
    if inode.number != ROOT and inode.number >= OWN and offset is None:
        return  # made since the freeze
    if offset is None:
        return
    table.change(inode)
    inode.base, inode.entry = offset, None
    if inode.is_file:
        inode.kept = inode.floor
        if inode.content is not None:
            inode.content.keep_since(sealed.boundary, table.journal.rows)


def _recount(rows: Rows, live: dict[int, int], boundary: int) -> None:
    """Bytes that old segments and moved chunks still have: of inodes without a name alone."""
    for number in list(live):
        if number < boundary or number >= CHUNK:
            live[number] = 0
    for (key,) in rows.fetch("SELECT key FROM orphan"):
        found = rows.inode(key)
        if found is None:
            continue
        inode, far, inline = Inode.decode(0, *found)
        inode.add_content(key, {}, rows.region_numbers(key) if far else set(), inline)
        content = inode.content
        if content is None:
            continue
        for number in content.stored | set(content.regions):
            for low, high, segment, record, _ in content.region(number, rows):
                if record != ZERO and segment < boundary:
                    place = counted(segment, record)
                    live[place] = live.get(place, 0) + high - low
