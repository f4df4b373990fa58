"""An open head: one group's archives, over a snapshot, with one journal."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Self

from store.backends.base import Lock
from store.datastore.archives import ChunkCache, ChunkReader, SnapshotReader
from store.datastore.datastore import Datastore
from store.datastore.snapshots import SyncLevel
from store.errors import AlreadyExists, InvalidName, Locked, NotFound, StoreError
from store.format.crypt import CryptConfig
from store.format.manifest import CryptMode
from store.heads.extents import CHUNK
from store.heads.image import HeadImage
from store.heads.journal import Journal
from store.heads.moved import MovedChunk
from store.heads.moving import Mover, Pins
from store.heads.place import Description
from store.heads.tree.below import ROOT, Base, Numbers
from store.heads.tree.inodes import Inode
from store.heads.tree.operations import HeadTree
from store.heads.tree.table import Table
from store.names import Snapshot, check_safe_id
from store.progress import SILENT, Progress

log = logging.getLogger(__name__)

TREE, IMAGE, BLOB = "tree", "image", "blob"
_SUFFIXES = {".pxar": TREE, ".img": IMAGE, ".conf": BLOB, ".log": BLOB, ".json": BLOB, ".txt": BLOB}
RESERVED = ("index.json", "client.log", "catalog.pcat1")


def kind_of(name: str) -> str:
    """What an archive is, by its ending. Raises InvalidName."""
    check_safe_id(name, "archive name")
    stem, dot, ending = name.rpartition(".")
    kind = _SUFFIXES.get(dot + ending)
    if not stem or kind is None or name in RESERVED:
        raise InvalidName(f"archive {name!r}: use NAME.pxar (tree), NAME.img (disk), NAME.conf")
    return kind


class OpenHead:
    """See `Head`. Made by `Heads`, which gives it the lock that it has alone."""

    def __init__(
        self,
        datastore: Datastore,
        description: Description,
        directory: str,
        lock: Lock,
        key: CryptConfig | None,
        crypt_mode: CryptMode,
        cache: ChunkCache,
        budget_bytes: int,
        *,
        seal_when_full: bool,
        sync_level: SyncLevel,
        create: bool,
    ) -> None:
        self.datastore, self.description = datastore, description
        self.namespace, self.group = description.namespace, description.group
        self.key, self.crypt_mode, self.cache = key, crypt_mode, cache
        self.directory, self.sync_level = directory, sync_level
        self._lock = lock
        self._held = ExitStack()
        self._trees: dict[str, HeadTree] = {}
        self._images: dict[str, HeadImage] = {}
        self._reader: SnapshotReader | None = None
        self._is_closed = False
        self._sealing = threading.Lock()
        self.changed_since_freeze = False
        protection = description.protection(key)
        chunks = ChunkReader(
            datastore.chunks, key, protection.is_encrypted, cache, name=f"head of {self.group}"
        )
        self.journal = Journal(
            directory, protection, lock.check, chunks, budget_bytes, create=create
        )
        self.pins = Pins(datastore, self.namespace, self.journal.rows)
        self._mover = Mover(self)
        if seal_when_full:
            self.journal.relieve = self._relieve
            if self.has_one_protection:
                self.journal.move_early = self._mover.begin

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The base

    @property
    def base(self) -> Snapshot | None:
        text = self.journal.rows.meta("base")
        return Snapshot.parse(text) if text else None

    def stand_on(self, snapshot: Snapshot | None) -> None:
        """Let the archives of a snapshot, all of them, be those of this head, which has none."""
        rows = self.journal.rows
        rows.execute("BEGIN IMMEDIATE")
        rows.execute("DELETE FROM archive")
        for table in ("alias", "orphan", "blob"):
            rows.execute(f"DELETE FROM {table}")  # noqa: S608
        rows.set_meta("base", str(snapshot) if snapshot else "")
        rows.set_meta("changed", time.time())
        rows.set_meta("archives_changed", 0)
        rows.set_meta("last_archive", 0)
        self.journal.log_start = self.journal.segments.stamp
        rows.set_meta("log_start", self.journal.log_start)
        if snapshot is not None:
            for name in self._open_reader(snapshot).archives:
                if name not in RESERVED and not name.endswith(".key"):
                    self._add_archive(name, on_base=True)
        rows.execute("COMMIT")

    def forget_numbers(self) -> None:
        """Let inodes have the numbers of the base as it is: nobody knows those of before."""
        rows = self.journal.rows
        if not rows.fetch("SELECT 1 FROM alias LIMIT 1") or rows.fetch(
            "SELECT 1 FROM inode LIMIT 1"
        ):
            return
        rows.execute("BEGIN IMMEDIATE")
        rows.execute("DELETE FROM alias")
        rows.execute("DELETE FROM meta WHERE key LIKE 'runs %'")
        rows.execute("UPDATE archive SET next = 0")
        rows.execute("COMMIT")

    def _open_reader(self, snapshot: Snapshot) -> SnapshotReader:
        """The snapshot below, which nobody removes while the head is open."""
        self._held.close()
        try:
            self._held.enter_context(self.datastore.lock_snapshot_shared(self.namespace, snapshot))
        except NotFound as error:
            raise NotFound(
                f"{snapshot}, which the head of {self.group} stands on, is gone; what was written"
                " can't be read without it: bring it back, or discard the head"
            ) from error
        self._reader = SnapshotReader(
            self.datastore, self.namespace, snapshot, self.key, self.cache
        )
        return self._reader

    def recover(self) -> None:
        """Open what stands on the base, and finish what a crash has left."""
        base = self.base
        if base is not None and self._reader is None:
            self._open_reader(base)
        self._recover_images()
        self._remove_orphans()
        self._check_pin()
        self.journal.start()

    def _recover_images(self) -> None:
        rows, journal = self.journal.rows, self.journal
        images = rows.fetch("SELECT id, name FROM archive WHERE kind = ?", IMAGE)
        if not images:
            return
        opened = {number: self.image(name) for number, name in images}
        with journal.lock:
            count = 0
            for record in journal.segments.records(max(journal.log_start, 1)):
                if record.archive in opened:
                    opened[record.archive].recover(record)
                    count += 1
        if count:
            log.info("%s: %d records of images were read again", self.group, count)
            journal.commit()

    def _remove_orphans(self) -> None:
        rows = self.journal.rows
        trees = rows.fetch("SELECT id, name FROM archive WHERE kind = ?", TREE)
        for number, name in trees:
            keys = [key for (key,) in rows.fetch("SELECT key FROM orphan") if key >> 48 == number]
            tree = self.tree(name) if keys else None
            for key in keys:
                if tree is not None:
                    tree.table.remove(tree.table.get(key & (1 << 48) - 1))

    # Archives

    @property
    def archives(self) -> list[str]:
        return [row[0] for row in self.journal.rows.fetch("SELECT name FROM archive ORDER BY id")]

    def _row(self, name: str, kind: str) -> tuple[int, bool, int, int]:
        """Number, whether it stands on the base, size, next inode. Raises NotFound."""
        found = self.journal.rows.fetch(
            "SELECT id, base, size, next FROM archive WHERE name = ? AND kind = ?", name, kind
        )
        if not found:
            there = ", ".join(self.archives) or "nothing"
            raise NotFound(f"the head of {self.group} has no {kind} {name!r}; it has {there}")
        number, on_base, size, following = found[0]
        return number, bool(on_base), size, following

    def tree(self, name: str) -> HeadTree:
        with self.journal.lock:
            tree = self._trees.get(name)
            if tree is None:
                number, on_base, _, following = self._row(name, TREE)
                base = self._base_tree(name) if on_base else None
                runs = self.journal.rows.meta(f"runs {number}")
                numbers = Numbers(_decode_runs(runs)) if runs else Numbers()
                table = Table(number, self.journal, base, numbers, following)
                tree = self._trees[name] = HeadTree(table)
                self.journal.members.append(table)
            return tree

    def _base_tree(self, name: str) -> Base:
        assert self._reader is not None
        return Base(*self._reader.open_streams(name), self.journal.hurry)

    def create_tree(self, name: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> HeadTree:
        with self.journal.lock:
            self._create(name, TREE, 0)
            tree = self.tree(name)
            root = Inode(ROOT, 0o040000 | mode, uid, gid, time.time_ns())
            root.nlink, root.parent = 2, ROOT
            tree.table.adopt(root)
        self.journal.sync()
        return tree

    def image(self, name: str) -> HeadImage:
        with self.journal.lock:
            image = self._images.get(name)
            if image is None:
                number, on_base, size, _ = self._row(name, IMAGE)
                base = None
                if on_base:
                    assert self._reader is not None
                    base = self._reader.open_image(name)
                    size = max(size, base.size)
                image = self._images[name] = HeadImage(number, self.journal, base, size)
                self.journal.members.append(image)
            return image

    def create_image(self, name: str, size: int) -> HeadImage:
        if size < 1:
            raise InvalidName(f"image {name}: give it a size of at least one byte")
        with self.journal.lock:
            self._create(name, IMAGE, size)
            image = self.image(name)
        self.journal.sync()
        return image

    def read_blob(self, name: str) -> bytes:
        number, on_base, _, _ = self._row(name, BLOB)
        found = self.journal.rows.fetch("SELECT value FROM blob WHERE name = ?", name)
        if found:
            return self.journal.protection.open(number, found[0][0])
        if not on_base or self._reader is None:
            raise NotFound(f"the head of {self.group} has no content for {name}")
        return self._reader.read_blob(name)

    def write_blob(self, name: str, content: bytes) -> None:
        journal = self.journal
        with journal.lock, journal.rows.lock:
            if name not in self.archives:
                self._create(name, BLOB, len(content))
            number = self._row(name, BLOB)[0]
            journal.begin()
            value = journal.protection.seal(number, content)
            journal.rows.execute("INSERT OR REPLACE INTO blob VALUES (?, ?)", name, value)
            self._note_change()
        journal.sync()

    def remove(self, name: str) -> None:
        journal = self.journal
        with journal.lock, journal.rows.lock:
            number = self._row(name, kind_of(name))[0]
            journal.flush_some()
            member = self._trees.pop(name, None) or self._images.pop(name, None)
            if isinstance(member, HeadTree):
                journal.members.remove(member.table)
            elif member is not None:
                journal.members.remove(member)
            self._delete_rows(number)
            journal.rows.execute("DELETE FROM archive WHERE id = ?", number)
            journal.rows.execute("DELETE FROM blob WHERE name = ?", name)
            self._note_change()
        journal.sync()

    def _delete_rows(self, archive: int) -> None:
        """Forget an archive's changes."""
        rows = self.journal.rows
        low, high = archive << 48, (archive + 1) << 48
        rows.execute("DELETE FROM inode WHERE key >= ? AND key < ?", low, high)
        rows.execute("DELETE FROM name WHERE parent >= ? AND parent < ?", low, high)
        rows.execute("DELETE FROM region WHERE owner >= ? AND owner < ?", low, high)
        rows.execute("DELETE FROM orphan WHERE key >= ? AND key < ?", low, high)
        rows.execute("DELETE FROM alias WHERE archive = ?", archive)

    def _create(self, name: str, kind: str, size: int) -> None:
        if kind_of(name) != kind:
            raise InvalidName(f"archive {name!r} is no name for a {kind}")
        if name in self.archives:
            raise AlreadyExists(f"the head of {self.group} has an archive {name}")
        with self.journal.rows.lock:
            self.journal.begin()
            self._add_archive(name, on_base=False, size=size)
            self._note_change()

    def _add_archive(self, name: str, *, on_base: bool, size: int = 0) -> None:
        rows = self.journal.rows
        number = (rows.meta("last_archive") or 0) + 1
        rows.set_meta("last_archive", number)
        _stem, dot, ending = name.rpartition(".")
        kind = _SUFFIXES.get(dot + ending, BLOB)
        rows.execute(
            "INSERT INTO archive VALUES (?, ?, ?, ?, ?, 0)", number, name, kind, on_base, size
        )

    def _note_change(self) -> None:
        self.journal.rows.set_meta("archives_changed", 1)
        self.changed_since_freeze = True
        self.journal.changes += 1

    # The whole

    @property
    def is_clean(self) -> bool:
        """Whether there is nothing to seal."""
        self.journal.sync()
        rows = self.journal.rows
        if rows.meta("archives_changed"):
            return False
        if rows.has_changes():
            return False
        return all(image.is_clean for image in self._images.values())

    @property
    def has_log(self) -> bool:
        """Whether images have records that no row has yet: before `recover`."""
        records = self.journal.segments.records(max(self.journal.log_start, 1))
        return next(records, None) is not None

    @property
    def dirty_bytes(self) -> int:
        if self.is_clean:
            return 0
        with self.journal.lock:
            segments = self.journal.segments
            return max(segments.total_bytes + segments.moved_bytes, 1)

    @property
    def reader(self) -> SnapshotReader | None:
        """The snapshot below."""
        return self._reader

    @property
    def trees(self) -> dict[str, HeadTree]:
        return self._trees

    @property
    def images(self) -> dict[str, HeadImage]:
        return self._images

    def sync(self) -> None:
        self.journal.sync()

    @contextmanager
    def sealing(self) -> Iterator[None]:
        """One seal at a time, and nothing is moved meanwhile. Raises Locked."""
        if not self._sealing.acquire(blocking=False):
            raise Locked(f"the head of {self.group} is being sealed")
        try:
            with self._mover.paused():
                yield
        finally:
            self._sealing.release()

    @property
    def last_sealed(self) -> Snapshot | None:
        """The snapshot that a seal was about to announce: it may be there or not."""
        text = self.journal.rows.meta("last_sealed")
        return Snapshot.parse(text) if text else None

    @last_sealed.setter
    def last_sealed(self, snapshot: Snapshot) -> None:
        with self.journal.lock, self.journal.rows.lock:
            self.journal.begin()
            self.journal.rows.set_meta("last_sealed", str(snapshot))

    def _relieve(self) -> bool:
        """The budget is used up: move or seal, unless another does; whether there is hope."""
        if self.has_one_protection and self._mover.begin():
            return True
        try:
            snapshot = self.seal()
        except Locked as error:
            log.debug("%s", error)
            return self._sealing.locked()
        except StoreError as error:
            log.warning("%s: its journal is full, and it can't be sealed: %s", self.group, error)
            return False
        log.info("%s: its journal was full; what it had is in %s", self.group, snapshot)
        return True

    # What is in the datastore early

    @property
    def has_one_protection(self) -> bool:
        """Whether its journal is encrypted if its snapshots are.

        Then a chunk that was moved is protected as both.
        """
        return (self.crypt_mode is CryptMode.ENCRYPT) == self.journal.protection.is_encrypted

    def moved_in_use(self) -> list[MovedChunk]:
        """The chunks that it has moved, and would lose with them what was written."""
        with self.journal.lock:
            segments = self.journal.segments
            counts = (*segments.live.items(), *segments.image_live.items())
        used = {record for record, count in counts if record >= CHUNK and count > 0}
        return [chunk for chunk in self.journal.moved.all() if chunk.record in used]

    def _check_pin(self) -> None:
        """What was moved must be pinned; pins that a crash has left go.

        If somebody has taken the pin away, what is still there gets a new one.
        """
        if self.pins.group is None:
            return
        used = self.moved_in_use()
        self._forget_moved(set(self.journal.moved.all()) - set(used))
        try:
            if used and not self.pins.is_there():
                from store.heads.moving.run import pin_again  # it stands on this module

                pin_again(self, used)
        except StoreError as error:
            log.warning("%s: what it has moved to the datastore: %s", self.group, error)
            return
        self.pins.keep_only(self.pins.current if used else None)

    def _forget_moved(self, unused: set[MovedChunk]) -> None:
        if unused:
            moved = self.journal.moved
            self.journal.change_places(lambda: moved.forget(chunk.record for chunk in unused))

    def let_go_of_moved(self) -> None:
        """After a seal: what the snapshot names needs no pin."""
        if self.pins.group is not None and not self.moved_in_use():
            self.pins.keep_only(None)

    def kinds(self) -> dict[str, str]:
        """What its archives are."""
        return dict(self.journal.rows.fetch("SELECT name, kind FROM archive"))

    def read_snapshot(self, snapshot: Snapshot) -> SnapshotReader:
        """Open a snapshot as its base is."""
        return SnapshotReader(self.datastore, self.namespace, snapshot, self.key, self.cache)

    def hold_snapshot(self, snapshot: Snapshot) -> ExitStack:
        """Keep a snapshot from being removed, until the stack is closed."""
        with ExitStack() as stack:
            stack.enter_context(self.datastore.lock_snapshot_shared(self.namespace, snapshot))
            return stack.pop_all()

    def adopt_reader(self, reader: SnapshotReader, held: ExitStack) -> None:
        """Stand on another snapshot, which is held instead of the one before."""
        self._held.close()
        self._reader, self._held = reader, held

    def seal(self, *, strict: bool = False, progress: Progress = SILENT) -> Snapshot:
        from store.heads.sealing import seal_head  # it stands on this module

        return seal_head(self, strict=strict, progress=progress)

    def close(self) -> None:
        if self._is_closed:
            return
        try:
            with self._mover.paused():
                self.journal.commit()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Give all back without a last commit: for who is fenced, or opens in vain."""
        self._is_closed = True
        try:
            self._mover.end()
            self.journal.close()
        finally:
            self._held.close()
            self._lock.release()


def _decode_runs(text: str) -> list[tuple[int, int, int]]:
    numbers = [int(number) for number in text.split()]
    return list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))


def encode_runs(numbers: Numbers) -> str:
    """How `meta` keeps them."""
    return " ".join(f"{first} {offset} {end}" for first, offset, end in numbers.runs)


__all__ = ["BLOB", "IMAGE", "TREE", "OpenHead", "StoreError", "encode_runs", "kind_of"]
