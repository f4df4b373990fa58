"""The inodes and names of a tree that are at hand, and their way to and from the rows.

What changed waits in memory, at most a few thousand rows, and is written in one go. What did not
may be dropped at any time: it comes from its row again, or from the base. All of it is called under
the journal's lock.
"""

import errno
import os

from store.errors import StoreError
from store.format.pxar.entries import Entry, EntryKind
from store.heads.content import write_anew
from store.heads.database import ARCHIVE_SHIFT
from store.heads.journal import Journal
from store.heads.segments import FILE_DATA
from store.heads.tree.below import OWN, ROOT, Base, Numbers
from store.heads.tree.inodes import NO_BASE, Inode

DIRTY_ROWS = 2048
KEPT_INODES = 32768
KEPT_NAMES = 131072
_STALE = (errno.ESTALE, os.strerror(errno.ESTALE))


class Directory:
    """Names at hand of one directory: numbers, 0 for what is not there.

    With `complete` there are no others.
    """

    __slots__ = ("complete", "names")

    def __init__(self, *, complete: bool = False) -> None:
        self.names: dict[bytes, int] = {}
        self.complete = complete


class Table:
    """Inodes and names of one tree archive.

    Attributes:
        base: what the tree stands on, None for nothing.
        next: the next own inode's number.
    """

    def __init__(
        self, archive: int, journal: Journal, base: Base | None, numbers: Numbers, following: int
    ) -> None:
        self.archive, self.journal = archive, journal
        self.base, self.numbers = base, numbers
        self.next = max(following, OWN)
        self._key = archive << ARCHIVE_SHIFT
        self._inodes: dict[int, Inode] = {}
        self._directories: dict[int, Directory] = {}
        self._name_count = 0
        self.dirty: dict[int, Inode | None] = {}
        self.dirty_names: dict[tuple[int, bytes], int | None] = {}
        self.held: dict[int, int] = {}
        self.has_aliases = bool(
            journal.rows.fetch("SELECT 1 FROM alias WHERE archive = ? LIMIT 1", archive)
        )

    # Inodes

    def at_hand(self, number: int) -> Inode | None:
        """An inode if it is in memory. Needs no lock."""
        return self._inodes.get(number)

    def get(self, number: int) -> Inode:
        """The inode of a number. Raises OSError ESTALE."""
        inode = self._inodes.get(number)
        if inode is None:
            inode = self._load(number)
            self._keep(inode)
        return inode

    def _load(self, number: int) -> Inode:
        if number in self.dirty:  # removed
            raise OSError(*_STALE)
        may_wait = not self.journal.hurry.now
        key = self._key | number
        found = self.journal.rows.inode(key, may_wait=may_wait)
        if found is None:
            return self._load_base(number)
        inode, far, inline = Inode.decode(number, *found)
        if far or inline:
            stored = self.journal.rows.region_numbers(key) if far else set()
            inode.add_content(key, self.journal.segments.live, stored, inline)
        return inode

    def _load_base(self, number: int) -> Inode:
        if self.base is None:
            raise OSError(*_STALE)
        offset = self.offset_of(number)
        if offset is None:
            raise OSError(*_STALE)
        try:
            entry = self.base.entry(offset)
        except StoreError as error:
            raise OSError(*_STALE) from error
        return self._of_entry(number, entry)

    def _of_entry(self, number: int, entry: Entry) -> Inode:
        assert self.base is not None
        is_file = entry.kind is EntryKind.FILE
        links = self.base.count_links(entry.offset) if is_file else 1
        return Inode.of_entry(number, entry, links)

    def of_entry(self, entry: Entry) -> Inode:
        """The inode of an entry of the base, with what changed since."""
        number = self.number_of(entry.offset)
        inode = self._inodes.get(number)
        if inode is None:
            if self.journal.rows.inode(self._key | number, may_wait=not self.journal.hurry.now):
                inode = self._load(number)
            else:
                inode = self._of_entry(number, entry)
            self._keep(inode)
        return inode

    def number_of(self, offset: int) -> int:
        """The inode number of the base's entry at an offset."""
        assert self.base is not None
        if offset == self.base.root.offset:
            return ROOT
        if self.has_aliases:
            number = self.journal.rows.alias_number(
                self.archive, offset, may_wait=not self.journal.hurry.now
            )
            if number is not None:
                return number
        number = self.numbers.number(offset)
        return offset if number is None else number

    def offset_of(self, number: int) -> int | None:
        """Where the base's entry of an inode number is."""
        assert self.base is not None
        if number == ROOT:
            return self.base.root.offset
        if self.has_aliases:
            offset = self.journal.rows.alias_base(
                self.archive, number, may_wait=not self.journal.hurry.now
            )
            if offset is not None:
                return offset
        return None if number >= OWN else self.numbers.offset(number)

    def _keep(self, inode: Inode) -> None:
        self._inodes[inode.number] = inode
        if len(self._inodes) > KEPT_INODES:
            self._drop_inodes()

    def _drop_inodes(self) -> None:
        """Forget the older half of what is clean."""
        surplus = KEPT_INODES // 2
        for number in list(self._inodes):
            if number not in self.dirty:
                del self._inodes[number]
                surplus -= 1
                if not surplus:
                    return

    def adopt(self, inode: Inode) -> None:
        """Take in an inode that was made elsewhere: an empty tree's root."""
        self.change(inode)
        self._keep(inode)
        self.fill(inode)

    def fresh(self) -> int:
        """A number that no inode has."""
        with self.journal.lock:
            self.next += 1
            return self.next - 1

    def new(self, mode: int, uid: int, gid: int, now: int) -> Inode:
        """A new inode, without a name yet."""
        inode = Inode(self.fresh(), mode, uid, gid, now)
        self.change(inode)
        self._keep(inode)
        return inode

    def change(self, inode: Inode) -> None:
        """Say that an inode is about to change: it gets a row."""
        if inode.generation != self.journal.generation:
            inode.generation = self.journal.generation
            inode.floor = inode.size
        if inode.number not in self.dirty:
            self.dirty[inode.number] = inode
        self.journal.changes += 1

    def remove(self, inode: Inode) -> None:
        """An inode that nobody has any more."""
        if inode.content is not None:
            inode.content.truncate(0, self.journal.rows)
            inode.content = None
        self._inodes.pop(inode.number, None)
        self._directories.pop(inode.number, None)
        self.dirty[inode.number] = None
        self.journal.changes += 1

    def make_room(self) -> None:
        """Write rows when many wait. Called at an operation's beginning; raises WouldWait."""
        if len(self.dirty) + len(self.dirty_names) >= DIRTY_ROWS:
            self.journal.flush_some()
        if self._name_count > KEPT_NAMES:
            self._drop_names()

    # Names

    def directory(self, inode: Inode) -> Directory:
        """What is at hand of a directory's names."""
        directory = self._directories.get(inode.number)
        if directory is None:
            directory = self._directories[inode.number] = Directory()
        return directory

    def fill(self, inode: Inode) -> None:
        """A directory that was just made has no names but those that come."""
        self._directories[inode.number] = Directory(complete=True)

    def find(self, parent: Inode, name: bytes) -> int:
        """The number behind a name, 0 when there is none."""
        directory = self._directories.get(parent.number) or self.directory(parent)
        number = directory.names.get(name)
        if number is not None:
            return number
        if directory.complete:
            return 0
        number = self._find_stored(parent, name)
        directory.names[name] = number
        self._name_count += 1
        return number

    def _find_stored(self, parent: Inode, name: bytes) -> int:
        may_wait = not self.journal.hurry.now
        if parent.stored or parent.number in self.dirty:
            number = self.journal.rows.name(self._key | parent.number, name, may_wait=may_wait)
            if number is not None:
                return number
        if parent.base == NO_BASE:
            return 0
        entry = self.find_below(parent, name)
        return 0 if entry is None else entry.number

    def find_below(self, parent: Inode, name: bytes) -> Inode | None:
        """The base's inode of a name."""
        if parent.base == NO_BASE or self.base is None:
            return None
        entry = self.base.lookup(self.base.directory(parent.base), name)
        return None if entry is None else self.of_entry(entry)

    def set_name(self, parent: Inode, name: bytes, number: int) -> None:
        """Let a name mean an inode; 0 takes it away."""
        directory = self.directory(parent)
        if name not in directory.names:
            self._name_count += 1
        directory.names[name] = number
        value: int | None = number
        if not number and parent.base == NO_BASE:
            # While a seal is under way the name may be in the base to come.
            value = 0 if self.journal.is_frozen else None
            if directory.complete:
                del directory.names[name]
                self._name_count -= 1
        self.dirty_names[parent.number, name] = value

    def _drop_names(self) -> None:
        """Forget names, those of the directories first that were met first."""
        self.journal.flush_some()
        for number in list(self._directories):
            self._name_count -= len(self._directories.pop(number).names)
            if self._name_count <= KEPT_NAMES // 2:
                return

    # Rows

    def flush_if_due(self) -> None:
        self.flush_rows()

    def flush_rows(self) -> None:
        """Bring what changed into the rows. Called under both locks, in a transaction."""
        rows, key, seal = self.journal.rows, self._key, self.journal.protection.seal
        journal = self.journal
        changed, removed, orphans = [], [], []
        for number, inode in self.dirty.items():
            row = key | number
            if inode is None:
                removed.append((row,))
                continue
            if not inode.nlink:
                orphans.append((row,))
            elif inode.was_orphan:
                rows.execute("DELETE FROM orphan WHERE key = ?", row)
            inode.was_orphan = not inode.nlink
            content = inode.content
            if content is not None and content.dirty:
                write_anew(content, FILE_DATA, self.archive, journal.segments, rows)
                content.flush(rows, inline=True)
            changed.append((row, inode.generation, seal(row, inode.encode())))
            inode.stored = True
        if changed:
            rows.execute_many("INSERT OR REPLACE INTO inode VALUES (?, ?, ?)", changed)
        if orphans:
            rows.execute_many("INSERT OR REPLACE INTO orphan VALUES (?)", orphans)
        self.dirty.clear()
        self._flush_names()
        if removed:
            rows.execute_many("DELETE FROM inode WHERE key = ?", removed)
            rows.execute_many("DELETE FROM region WHERE owner = ?", removed)
            rows.execute_many("DELETE FROM orphan WHERE key = ?", removed)
            rows.execute_many("DELETE FROM name WHERE parent = ?", removed)
        rows.execute("UPDATE archive SET next = ? WHERE id = ?", self.next, self.archive)

    def _flush_names(self) -> None:
        rows, key, generation = self.journal.rows, self._key, self.journal.generation
        hash_name, seal_name = self.journal.protection.hash_name, rows.seal_name
        changed, removed = [], []
        for (parent, name), number in self.dirty_names.items():
            owner = key | parent
            if number is None:
                removed.append((owner, hash_name(owner, name)))
            else:
                value = seal_name(owner, number, name)
                changed.append((owner, hash_name(owner, name), generation, value))
        if changed:
            rows.execute_many("INSERT OR REPLACE INTO name VALUES (?, ?, ?, ?)", changed)
        if removed:
            rows.execute_many("DELETE FROM name WHERE parent = ? AND hash = ?", removed)
        self.dirty_names.clear()

    def is_logged(self) -> bool:
        return False

    def forget(self) -> None:
        """Drop all that is at hand, after a flush: the base has changed."""
        self._inodes.clear()
        self._directories.clear()
        self._name_count = 0
