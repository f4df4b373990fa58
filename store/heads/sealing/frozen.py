"""A tree as it was when the seal began: rows of a read transaction over the base."""

from collections.abc import Iterator

from store.format.pxar.entries import Entry, EntryKind
from store.heads.content import Piece
from store.heads.database import ARCHIVE_SHIFT, Rows
from store.heads.extents import ZERO
from store.heads.journal import Journal
from store.heads.tree.below import OWN, ROOT, Base, Numbers
from store.heads.tree.inodes import NO_BASE, Inode

FEW = 200_000
"""So many numbers of changed inodes are kept in memory; of more each is asked for."""
PAGE = 1000


class FrozenTree:
    """One thread's view of it. Its memory grows with the changes of one directory."""

    def __init__(
        self, archive: int, rows: Rows, journal: Journal, base: Base | None, numbers: Numbers
    ) -> None:
        self.rows, self.journal, self.base, self.numbers = rows, journal, base, numbers
        self.archive = archive
        self._key = archive << ARCHIVE_SHIFT
        high = (archive + 1) << ARCHIVE_SHIFT
        found = rows.fetch(
            "SELECT key FROM inode WHERE key >= ? AND key < ? LIMIT ?", self._key, high, FEW + 1
        )
        few = len(found) <= FEW
        self._changed = {key - self._key for (key,) in found} if few else None
        aliases = rows.fetch(
            "SELECT base, number FROM alias WHERE archive = ? LIMIT ?", archive, FEW + 1
        )
        self._has_aliases = bool(aliases)
        self._aliases = dict(aliases) if len(aliases) <= FEW else None

    def root(self) -> Inode:
        inode = self._changed_inode(ROOT)
        if inode is None:
            assert self.base is not None
            inode = Inode.of_entry(ROOT, self.base.root, 1)
        return inode

    def children(self, directory: Inode) -> Iterator[tuple[bytes, Inode]]:
        """Names in ascending order, and what they mean."""
        own = self._own(directory.number)
        at = 0
        for name, entry in self._below(directory):
            while at < len(own) and own[at][0] < name:
                yield from self._mean(own[at])
                at += 1
            if at < len(own) and own[at][0] == name:
                yield from self._mean(own[at])
                at += 1
            else:
                yield name, self._of_entry(entry)
        for item in own[at:]:
            yield from self._mean(item)

    def _own(self, directory: int) -> list[tuple[bytes, int]]:
        found: list[tuple[bytes, int]] = []
        last = b""
        while page := self.rows.names(self._key | directory, last, PAGE):
            found += [(name, number) for _, number, name in page]
            last = page[-1][0]
        found.sort()
        return found

    def _mean(self, item: tuple[bytes, int]) -> Iterator[tuple[bytes, Inode]]:
        name, number = item
        if number:
            yield name, self.inode(number)

    def _below(self, directory: Inode) -> Iterator[tuple[bytes, Entry]]:
        if directory.base == NO_BASE or self.base is None:
            return
        for _, name, entry in self.base.children(self.base.directory(directory.base)):
            yield name, entry

    def inode(self, number: int) -> Inode:
        """What a name of the head means."""
        inode = self._changed_inode(number)
        if inode is not None:
            return inode
        assert self.base is not None
        offset = None
        if self._has_aliases:
            offset = self.rows.alias_base(self.archive, number)
        if offset is None and number < OWN:
            offset = self.numbers.offset(number)
        assert offset is not None, number
        return self._new(number, self.base.entry(offset))

    def _of_entry(self, entry: Entry) -> Inode:
        number = None
        if self._aliases is not None:
            number = self._aliases.get(entry.offset)
        elif self._has_aliases:
            number = self.rows.alias_number(self.archive, entry.offset)
        if number is None:
            number = self.numbers.number(entry.offset)
        if number is None:
            number = entry.offset
        return self._changed_inode(number) or self._new(number, entry)

    def _new(self, number: int, entry: Entry) -> Inode:
        assert self.base is not None
        is_file = entry.kind is EntryKind.FILE
        return Inode.of_entry(number, entry, self.base.count_links(entry.offset) if is_file else 1)

    def _changed_inode(self, number: int) -> Inode | None:
        if self._changed is not None and number not in self._changed:
            return None
        key = self._key | number
        found = self.rows.inode(key)
        if found is None:
            return None
        inode, far, inline = Inode.decode(number, *found)
        if far or inline:
            inode.add_content(key, {}, self.rows.region_numbers(key) if far else set(), inline)
        return inode

    def has_base_content(self, inode: Inode) -> Entry | None:
        """The base's entry of a file whose content is just that."""
        if inode.base == NO_BASE or self.base is None or not inode.is_file:
            return None
        if inode.content is not None and not inode.content.is_empty:
            return None
        entry = inode.entry or self.base.entry(inode.base)
        return entry if inode.size == inode.kept == entry.size else None

    def payload_of(self, inode: Inode) -> int:
        """Where the base's payload stream has a file's item."""
        assert self.base is not None
        inode.entry = inode.entry or self.base.entry(inode.base)
        return inode.entry.payload_offset

    def pieces(self, inode: Inode, start: int = 0, end: int | None = None) -> Iterator[Piece]:
        """What makes up a file, or a range within its size."""
        end = inode.size if end is None else end
        if inode.content is None:
            return iter([Piece(start, end, 0, 0, 0)])
        return inode.content.pieces(start, end, self.rows)

    def read(self, inode: Inode, offset: int, size: int) -> bytes:
        """Bytes of a file, within its size."""
        pieces = self.pieces(inode, offset, offset + size)
        return b"".join(self._part(inode, piece) for piece in pieces)

    def _part(self, inode: Inode, piece: Piece) -> bytes:
        start, end, segment, record, skip = piece
        if record == ZERO:
            return bytes(end - start)
        if segment:
            return bytes(self.journal.payload(segment, record)[skip : skip + end - start])
        kept = min(end, inode.kept)
        if kept <= start:
            return bytes(end - start)
        assert self.base is not None
        entry = inode.entry or self.base.entry(inode.base)
        inode.entry = entry
        return self.base.accessor.read(entry, start, kept - start) + bytes(end - kept)
