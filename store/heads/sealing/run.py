"""One seal from beginning to end: freeze, write, verify, announce, stand on it. Or nothing."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from store.datastore.archives import SnapshotReader
from store.datastore.snapshots import SnapshotWriter
from store.errors import AlreadyExists, ChunkMissing, IntegrityError, NotFound
from store.format.dynamic_index import DynamicIndex
from store.format.manifest import CryptMode
from store.heads.content import Content
from store.heads.database import ARCHIVE_SHIFT, Rows
from store.heads.head import BLOB, IMAGE, TREE, OpenHead
from store.heads.sealing.frozen import FrozenTree
from store.heads.sealing.image import ImageSealer
from store.heads.sealing.rebase import Sealed, rebase
from store.heads.sealing.walk import TreeSealer
from store.heads.tree.below import Base
from store.names import ENCRYPTED_KEY_BLOB_NAME, Digest, Snapshot
from store.operations.backup.archive import SplitArchive
from store.operations.backup.chunks import ChunkPool
from store.operations.backup.request import DEFAULT_CHUNK_SIZE, DEFAULT_PAYLOAD_GROWTH
from store.operations.backup.session import SnapshotSession
from store.progress import SILENT, Progress

if TYPE_CHECKING:
    from store.heads.tree.operations import HeadTree

log = logging.getLogger(__name__)


def seal_head(head: OpenHead, *, strict: bool = False, progress: Progress = SILENT) -> Snapshot:
    """Make the head's state of this moment the group's next snapshot; see `Head.seal`.

    Raises:
        NotFound: the head is empty. AlreadyExists: see `strict`.
        Locked: another backup of the group is running, or this head is being sealed.
        StoreError: the storage failed. The head is as it was then, and can be sealed again.
    """
    with head.sealing():
        if head.is_clean:
            if head.base is None:
                raise NotFound(f"the head of {head.group} is empty: there is nothing to seal")
            return head.base
        for name, kind in head.kinds().items():  # opened before the freeze, under their locks
            if kind == TREE:
                head.tree(name)
            elif kind == IMAGE:
                head.image(name)
        snapshot = _next_snapshot(head, strict=strict)
        begin = head.datastore.begin_snapshot(head.namespace, snapshot, sync_level=head.sync_level)
        with begin as writer:
            return _Seal(head, writer, progress).run()


def _next_snapshot(head: OpenHead, *, strict: bool) -> Snapshot:
    """Its name: of now, or later than the newest. A foreign newest one is told of."""
    found = head.datastore.list_snapshots(head.namespace, head.group)
    newest = found[-1] if found else None
    known = (head.base, head.last_sealed)
    if newest is not None and newest not in known:
        text = (
            f"{newest} was made while the head of {head.group} stood on {head.base or 'nothing'}:"
            " what it changed is not in the head"
        )
        if strict:
            raise AlreadyExists(text)
        log.warning("%s", text)
    now = int(time.time())
    return Snapshot(head.group, max(now, newest.time + 1 if newest else 1))


class _Seal:
    """The state of one running seal."""

    def __init__(self, head: OpenHead, writer: SnapshotWriter, progress: Progress) -> None:
        self._head, self._writer, self._progress = head, writer, progress
        self._session = SnapshotSession(head.datastore, writer, head.key, head.crypt_mode)
        self._stored: set[Digest] = set()
        self._trees: dict[str, tuple[Base | None, HeadTree]] = {}

    def run(self) -> Snapshot:
        head, snapshot = self._head, self._writer.snapshot
        with self._frozen() as (rows, generation, boundary):
            archives = rows.fetch("SELECT id, name, kind, base, size FROM archive ORDER BY id")
            sealed = Sealed(snapshot, generation, boundary, {row[0] for row in archives})
            self._progress.start(None, "B")
            try:
                with ChunkPool(self._session.chunks) as pool:
                    for number, name, kind, on_base, size in archives:
                        if kind == TREE:
                            self._tree(number, name, bool(on_base), rows, sealed, pool)
                        elif kind == IMAGE:
                            self._image(number, name, size, rows)
                        elif kind == BLOB:
                            self._blob(number, name, rows)
            finally:
                self._progress.done()
            self._wrapped_key()
            self._verify()
            head.last_sealed = snapshot
            head.journal.commit()
            self._session.finish()
            reader = head.read_snapshot(snapshot)
            rebase(head, sealed, reader)
        head.journal.commit()
        head.let_go_of_moved()
        return snapshot

    @contextmanager
    def _frozen(self) -> Iterator[tuple[Rows, int, int]]:
        head = self._head
        head.changed_since_freeze = False
        rows, generation, boundary = head.journal.freeze()
        try:
            yield rows, generation, boundary
        finally:
            head.journal.thaw()
            rows.close()

    def _tree(
        self, number: int, name: str, on_base: bool, rows: Rows, sealed: Sealed, pool: ChunkPool
    ) -> None:
        table = self._head.tree(name).table
        reader = self._head.reader if on_base else None
        base, previous = None, None
        if reader is not None:
            streams = reader.open_streams(name)
            base = Base(*streams, table.journal.hurry)
            if streams[1] is not None and self._may_name(reader, name):
                assert isinstance(streams[1].index, DynamicIndex)
                previous = streams[1].index
        if previous is not None and not _has_changes(rows, number):
            assert reader is not None
            self._copy_index(reader, f"{name.removesuffix('.pxar')}.ppxar.didx")
            self._copy_index(reader, f"{name.removesuffix('.pxar')}.mpxar.didx")
            return
        tree = FrozenTree(number, rows, table.journal, base, table.numbers)

        def fill(archive: SplitArchive) -> None:
            touch = self._session.chunks.touch
            moved = table.journal.moved if self._head.has_one_protection else None
            sealer = TreeSealer(
                tree, archive, self._progress, previous, touch, table.fresh, moved=moved
            )
            sealer.walk()
            sealed.places[number] = sealer.places

        self._session.add_split_tree(
            name.removesuffix(".pxar"),
            pool,
            fill,
            chunk_size=DEFAULT_CHUNK_SIZE,
            previous=previous,
            payload_growth=DEFAULT_PAYLOAD_GROWTH,
            any_order=True,
        )

    def _may_name(self, reader: SnapshotReader, name: str) -> bool:
        """Whether chunks of the base may stand in the new snapshot: of the same protection.

        With a key also signed by it: what is named is not read, so nobody else may have written it.
        """
        head, manifest = self._head, reader.manifest
        names = {f"{name.removesuffix('.pxar')}.ppxar.didx", f"{name}.fidx"}
        same = all(
            info.crypt_mode == head.crypt_mode for info in manifest.files if info.filename in names
        )
        if head.crypt_mode is CryptMode.NONE:
            return same
        return same and manifest.signature is not None and manifest.snapshot == reader.snapshot

    def _copy_index(self, reader: SnapshotReader, filename: str) -> None:
        """Name the same chunks again."""
        index = reader.open_stream(filename).index
        assert isinstance(index, DynamicIndex)
        file, seen = self._session.index(filename), set()
        for position in range(len(index)):
            digest = index.digest(position)
            if digest not in seen and not self._session.chunks.touch(digest):
                raise ChunkMissing(f"chunk {digest} of {reader.snapshot}/{filename} is gone")
            seen.add(digest)
            file.add(index.range(position)[1], digest)
        self._session.add(filename, file.close(), index.size)

    def _image(self, number: int, name: str, size: int, rows: Rows) -> None:
        head = self._head
        image, reader = head.image(name), head.reader
        base = image.base
        key = number << ARCHIVE_SHIFT
        content = Content(key, {}, rows.region_numbers(key))
        size = max(size, base.size if base is not None else 0)
        sealer = ImageSealer(
            content,
            rows,
            head.journal,
            base,
            size,
            self._session.chunks,
            same_key=base is not None and reader is not None and self._may_name(reader, name),
            may_name_moved=head.has_one_protection,
        )
        filename = f"{name}.fidx"
        index = self._writer.create_fixed_index(filename, size)
        sealer.store(index, self._progress)
        self._stored |= sealer.stored
        self._session.add(filename, index.close(), size)

    def _blob(self, number: int, name: str, rows: Rows) -> None:
        head = self._head
        found = rows.fetch("SELECT value FROM blob WHERE name = ?", name)
        if found:
            content = head.journal.protection.open(number, found[0][0])
        else:
            assert head.reader is not None
            content = head.reader.read_blob(name)
        encrypted = head.crypt_mode is CryptMode.ENCRYPT
        self._session.add_blob(f"{name}.blob", content, encrypted=encrypted)

    def _wrapped_key(self) -> None:
        """The key that only a master key opens goes along, if the snapshot below has it."""
        head, reader = self._head, self._head.reader
        if head.crypt_mode is not CryptMode.ENCRYPT or reader is None or head.key is None:
            return
        names = [info.filename for info in reader.manifest.files]
        if ENCRYPTED_KEY_BLOB_NAME not in names:
            return
        if reader.manifest.key_fingerprint == head.key.fingerprint:
            content = reader.read_blob(ENCRYPTED_KEY_BLOB_NAME.removesuffix(".blob"))
            self._session.add_blob(
                ENCRYPTED_KEY_BLOB_NAME, content, encrypted=False, compress=False
            )

    def _verify(self) -> None:
        """Read the indexes again as they are on the storage; what they name must be there."""
        head, snapshot = self._head, self._writer.snapshot
        seen: set[Digest] = set()
        for info in self._session.files:
            if info.filename.endswith(".blob"):
                continue
            opens = (
                head.datastore.fixed_index
                if info.filename.endswith(".fidx")
                else head.datastore.dynamic_index
            )
            index = opens(head.namespace, snapshot, info.filename)
            if index.csum() != info.csum or index.size != info.size:
                raise IntegrityError(f"{snapshot}/{info.filename}: was not written as it should be")
            for digest in self._session.chunks.new & set(index.digests()) - seen:
                if head.datastore.chunks.stat(digest) is None:
                    raise ChunkMissing(f"chunk {digest}, just stored for {snapshot}, is gone")
                seen.add(digest)


def _has_changes(rows: Rows, archive: int) -> bool:
    low, high = archive << ARCHIVE_SHIFT, (archive + 1) << ARCHIVE_SHIFT
    found = rows.fetch(
        "SELECT 1 FROM inode WHERE key >= ? AND key < ?"
        " UNION ALL SELECT 1 FROM name WHERE parent >= ? AND parent < ? LIMIT 1",
        low,
        high,
        low,
        high,
    )
    return bool(found)
