"""What differs between two trees, by metadata or by content.

Both are gone through side by side, a directory at a time, by names in order. A subtree whose stored
bytes are equal in both is not looked into; when those are in the same chunks it is not even read.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from store.errors import FormatError, StoreError
from store.format.pxar.accessor import Accessor
from store.format.pxar.entries import Entry, EntryKind
from store.operations.browse.ranges import Stretch, same_bytes
from store.trees.base import FileTree
from store.trees.joined import is_made_up
from store.trees.paths import followed
from store.trees.walk import MAX_PATH_LENGTH, PARTIAL, Walk

DIRECTORY = EntryKind.DIRECTORY
OnError = Callable[[bytes, StoreError], None]


class Letter(Enum):
    """What became of an entry; the letters are restic's."""

    ADDED = "+"
    REMOVED = "-"
    MODIFIED = "M"
    METADATA = "U"
    TYPE = "T"
    ROTTEN = "?"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `before` and `after` are the entries; None where there is none."""

    letter: Letter
    path: bytes
    before: Entry | None
    after: Entry | None

    @property
    def is_directory(self) -> bool:
        entry = self.after or self.before
        return entry is not None and entry.kind is DIRECTORY


class TreeDiff:
    """One comparison.

    content: compare what files contain, too. Without it a file is MODIFIED when size or time are
        others. With it only when its bytes are, and ROTTEN when its metadata are the same.
    on_error: gets the path of a damaged directory or file, which is left out.
    """

    def __init__(
        self, before: FileTree, after: FileTree, on_error: OnError, *, content: bool = False
    ) -> None:
        self._before, self._after = before, after
        self._on_error = on_error
        self._content = content

    def entries(self, before: Entry, after: Entry, path: bytes) -> Iterator[Change]:
        """Compare two entries of one path, with all below them; `path` is b"" for roots."""
        yield from self._compared(before, after, path)
        both = before.kind is after.kind is DIRECTORY and self._is_entered(before, after, path)
        pending = [(before, after, path)] if both else []
        while pending:
            left, right, path = pending.pop()
            prefix = b"%b/" % path if path else b""
            common: list[tuple[Entry, Entry, bytes]] = []
            try:
                yield from self._directory(left, right, prefix, common)
            except PARTIAL as error:
                self._on_error(path, error)
            pending += reversed(common)

    def one_sided(self, entry: Entry, path: bytes, letter: Letter) -> Iterator[Change]:
        """An entry that the other side does not have, and everything below it."""
        yield _one(letter, path, entry)
        if entry.kind is DIRECTORY:
            tree = self._after if letter is Letter.ADDED else self._before
            prefix = b"%b/" % path if path else b""
            for above, below in Walk(tree, self._on_error).below(entry, prefix):
                yield _one(letter, above + below.name, below)

    def _directory(
        self,
        before: Entry,
        after: Entry,
        prefix: bytes,
        common: list[tuple[Entry, Entry, bytes]],
    ) -> Iterator[Change]:
        """Compare the children of two directories; adds those to look into to `common`."""
        children = side_by_side(in_order(self._before, before), in_order(self._after, after))
        for left, right in children:
            if left is None:
                assert right is not None
                yield from self.one_sided(right, prefix + right.name, Letter.ADDED)
            elif right is None:
                yield from self.one_sided(left, prefix + left.name, Letter.REMOVED)
            else:
                path = prefix + left.name
                yield from self._compared(left, right, path)
                if left.kind is right.kind is DIRECTORY and self._is_entered(left, right, path):
                    common.append((left, right, path))

    def _is_entered(self, before: Entry, after: Entry, path: bytes) -> bool:
        if len(path) > MAX_PATH_LENGTH:
            text = f"below a path of {MAX_PATH_LENGTH} bytes nothing is looked at"
            self._on_error(path, FormatError(text))
            return False
        return not self._is_same_subtree(before, after)

    def _is_same_subtree(self, before: Entry, after: Entry) -> bool:
        """Whether everything below is stored in the same bytes.

        In a split archive those have no contents, so that with `content` they do not tell enough.
        """
        left, right = self._before, self._after
        if not (isinstance(left, Accessor) and isinstance(right, Accessor)):
            return False
        if left.version != right.version or (self._content and left.version != 1):
            return False
        # In a v1 archive the contents lie there, too: much to read for a comparison of metadata.
        read = left.version != 1 or self._content
        return same_bytes(Stretch(*left.extent(before)), Stretch(*right.extent(after)), read=read)

    def _compared(self, before: Entry, after: Entry, path: bytes) -> Iterator[Change]:
        try:
            left, right = followed(self._before, before), followed(self._after, after)
            letter = self._letter(left, right)
        except PARTIAL as error:
            self._on_error(path, error)
            return
        if letter is Letter.TYPE and DIRECTORY in (left.kind, right.kind):
            yield Change(letter, path, left, right)
            yield from self._below(before, path, Letter.REMOVED)
            yield from self._below(after, path, Letter.ADDED)
        elif letter is not None:
            yield Change(letter, path, left, right)

    def _below(self, entry: Entry, path: bytes, letter: Letter) -> Iterator[Change]:
        """What is in a directory that became something else, or in the one that it became."""
        changes = self.one_sided(entry, path, letter)
        next(changes)
        yield from changes

    def _letter(self, before: Entry, after: Entry) -> Letter | None:
        """What became of one entry; None: nothing.

        The names of a disk's partitions have no times of their own, and what `partN.raw` contains
        shows in its files, or in the image.
        """
        if before.kind is not after.kind:
            return Letter.TYPE
        if is_made_up(before):
            same = (before.size, before.target) == (after.size, after.target)
            return None if same else Letter.MODIFIED
        same_metadata = before.raw_metadata == after.raw_metadata
        if before.kind is EntryKind.FILE and self._content:
            if not self._have_same_content(before, after):
                sizes = before.size == after.size
                return Letter.ROTTEN if same_metadata and sizes else Letter.MODIFIED
        elif before.kind is EntryKind.FILE:
            if before.size != after.size or (not same_metadata and _time(before) != _time(after)):
                return Letter.MODIFIED
        elif (before.target, before.device) != (after.target, after.device):
            return Letter.MODIFIED
        return None if same_metadata or before.metadata == after.metadata else Letter.METADATA

    def _have_same_content(self, before: Entry, after: Entry) -> bool:
        if before.size != after.size:
            return False
        left, right = self._before.content(before), self._after.content(after)
        return same_bytes(Stretch(*left, before.size), Stretch(*right, after.size))


def in_order(tree: FileTree, directory: Entry) -> Iterator[Entry]:
    """The children by name. Archives have them so; others' are sorted here.

    Raises FormatError where an archive has not.
    """
    if not isinstance(tree, Accessor):
        yield from sorted(tree.iterate(directory), key=lambda entry: entry.name)
        return
    previous = b""
    for entry in tree.iterate(directory):
        if entry.name <= previous:
            raise FormatError("the names in this directory are not in order, cannot compare it")
        previous = entry.name
        yield entry


def side_by_side(
    left: Iterator[Entry], right: Iterator[Entry]
) -> Iterator[tuple[Entry | None, Entry | None]]:
    """Pair two sorted listings by name; None where one of them has no such name."""
    a, b = next(left, None), next(right, None)
    while a is not None or b is not None:
        if b is None or (a is not None and a.name < b.name):
            yield a, None
            a = next(left, None)
        elif a is None or b.name < a.name:
            yield None, b
            b = next(right, None)
        else:
            yield a, b
            a, b = next(left, None), next(right, None)


def _one(letter: Letter, path: bytes, entry: Entry) -> Change:
    if letter is Letter.ADDED:
        return Change(letter, path, None, entry)
    return Change(letter, path, entry, None)


def _time(entry: Entry) -> tuple[int, int]:
    return entry.metadata.mtime_s, entry.metadata.mtime_ns
