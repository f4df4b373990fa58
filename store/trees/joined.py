"""Several trees as one: a directory with a member for each, such as the partitions of a disk."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from threading import Lock

from store.errors import FormatError, NotFound
from store.format.buffer import ReadAt
from store.format.pxar.entries import Entry, EntryKind, encode_stat
from store.trees.base import FileTree

NUMBER_BITS = 46
"""What a tree's own numbers take at most (base.py); those of the members come above them."""
_FACTS = tuple(name for name in Entry.__slots__ if name not in ("offset", "target_offset"))


@dataclass(frozen=True)
class Member:
    """One name in the joined root: exactly one of a tree, a stream or a link's target.

    open_tree: called when the directory is first entered, by one thread. Until then nobody knows
        its mode, owner and time.
    listed: otherwise it is there for who asks for it by its name.
    """

    name: bytes
    open_tree: Callable[[], FileTree] | None = None
    stream: ReadAt | None = None
    target: bytes = b""
    listed: bool = True


class MemberEntry(Entry):
    """An entry of a member: the facts of `inner`, which is the member tree's own.

    top: it is the root of that tree, under the member's name.
    """

    __slots__ = ("inner", "member", "top")
    inner: Entry
    member: int
    top: bool


class JoinedRoot(Entry):
    """The directory of all members."""

    __slots__ = ()


def is_made_up(entry: Entry) -> bool:
    """Whether an entry is not in any member: the joined root, and the members' names in it."""
    return isinstance(entry, JoinedRoot) or (isinstance(entry, MemberEntry) and entry.top)


class JoinedTree:
    """A FileTree of members. Opening one that cannot be opened raises, and disturbs no other.

    mtime_s: of the root and of what has no time of its own.
    """

    def __init__(self, members: Iterable[Member], mtime_s: int = 0) -> None:
        self._members = tuple(members)
        self._mtime_s = mtime_s
        self._trees: dict[int, FileTree] = {}
        self._lock = Lock()
        self._root = JoinedRoot(b"", EntryKind.DIRECTORY, 0, 0, self._stat(0o40755))
        self._tops = {m.name: self._top(n, m) for n, m in enumerate(self._members)}

    def root(self) -> Entry:
        return self._root

    def iterate(self, directory: Entry) -> Iterator[Entry]:
        if not isinstance(directory, MemberEntry):
            yield from (top for top in self._tops.values() if self._members[top.member].listed)
            return
        tree, inner = self._inner(directory)
        for entry in tree.iterate(inner):
            yield self._wrapped(directory.member, entry)

    def lookup(self, directory: Entry, name: bytes) -> Entry | None:
        if not isinstance(directory, MemberEntry):
            return self._tops.get(name)
        tree, inner = self._inner(directory)
        found = tree.lookup(inner, name)
        return None if found is None else self._wrapped(directory.member, found)

    def follow(self, link: Entry) -> Entry:
        tree, inner = self._inner(link)
        assert isinstance(link, MemberEntry)
        return self._wrapped(link.member, tree.follow(inner))

    def entry_at(self, offset: int, directory_end: int = 0) -> Entry:
        if not offset:
            return self._root
        number, offset = (offset >> NUMBER_BITS) - 1, offset & ((1 << NUMBER_BITS) - 1)
        top = next((t for t in self._tops.values() if t.member == number), None)
        if top is None:
            raise NotFound(f"no entry {offset} in the joined tree")
        if not offset:
            return top
        return self._wrapped(number, self._tree(number).entry_at(offset, directory_end))

    def content(self, file: Entry) -> tuple[ReadAt, int]:
        stream = self._members[file.member].stream if isinstance(file, MemberEntry) else None
        if stream is not None:
            return stream, 0
        tree, inner = self._inner(file)
        return tree.content(inner)

    def read(self, file: Entry, offset: int, size: int) -> bytes:
        stream = self._members[file.member].stream if isinstance(file, MemberEntry) else None
        if stream is not None:
            offset = min(max(0, offset), file.size)
            return stream.read(offset, min(max(0, size), file.size - offset))
        tree, inner = self._inner(file)
        return tree.read(inner, offset, size)

    def _tree(self, number: int) -> FileTree:
        opener = self._members[number].open_tree
        if opener is None:
            raise FormatError(f"{self._members[number].name!r} is no directory")
        with self._lock:
            if number not in self._trees:
                self._trees[number] = opener()
                self._describe(number, self._trees[number].root())
            return self._trees[number]

    def _describe(self, number: int, root: Entry) -> None:
        """Give a member's directory the facts of its root, now that they are known."""
        top = self._tops[self._members[number].name]
        top.raw_metadata, top._metadata = root.raw_metadata, None

    def _inner(self, entry: Entry) -> tuple[FileTree, Entry]:
        """The member's tree, and what it calls an entry of ours."""
        if not isinstance(entry, MemberEntry):
            raise FormatError(f"{entry!r} is none of the joined trees'")
        tree = self._tree(entry.member)
        return tree, tree.root() if entry.top else entry.inner

    def _top(self, number: int, member: Member) -> MemberEntry:
        """The entry in the joined root; a tree's facts stay unread until it is entered."""
        kind, mode, size = EntryKind.DIRECTORY, 0o40755, 0
        if member.stream is not None:
            kind, mode, size = EntryKind.FILE, 0o100600, member.stream.size
        elif member.open_tree is None:
            kind, mode = EntryKind.SYMLINK, 0o120777
        plain = Entry(member.name, kind, 0, 0, self._stat(mode), size=size, target=member.target)
        return self._wrapped(number, plain, top=True)

    def _wrapped(self, member: int, inner: Entry, *, top: bool = False) -> MemberEntry:
        entry = MemberEntry.__new__(MemberEntry)
        for name in _FACTS:
            setattr(entry, name, getattr(inner, name))
        base = (member + 1) << NUMBER_BITS
        entry.offset = base + inner.offset
        entry.target_offset = base + inner.target_offset
        if inner.kind is EntryKind.HARDLINK:
            entry.target = b"%b/%b" % (self._members[member].name, inner.target)
        entry.inner, entry.member, entry.top = inner, member, top
        return entry

    def _stat(self, mode: int) -> bytes:
        return encode_stat(mode, 0, 0, 0, self._mtime_s, 0)
