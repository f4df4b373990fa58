"""Going through all that is below a directory, depth first, in bounded memory.

A hostile tree can be as deep as it is large, and a broken file system can contain itself. So only
the levels nearest to where we are stay open, a directory that is its own ancestor is an error, and
what has no path of a sane length is left out, with an error that says so.
"""

from collections.abc import Callable, Iterator

from store.errors import FormatError, IntegrityError, KeyRequired, StoreError
from store.format.pxar.entries import Entry, EntryKind
from store.trees.base import FileTree

OPEN_LEVELS = 64
"""Each keeps a piece of its directory, 256 KiB at most; the others are found again."""
MAX_PATH_LENGTH = 64 << 10
"""Sixteen times what Linux takes in one call."""

PARTIAL = (FormatError, IntegrityError, KeyRequired)
"""Errors that concern a part of a tree: what is damaged or locked. The rest is worth having."""

OnError = Callable[[bytes, StoreError], None]


class _Level:
    """One directory that we are in: `last` is the child given last."""

    __slots__ = ("children", "directory", "last")

    def __init__(self, directory: Entry, children: Iterator[Entry]) -> None:
        self.directory = directory
        self.children: Iterator[Entry] | None = children
        self.last: Entry | None = None


class Walk:
    """One walk over a tree.

    on_error: gets the path of each directory that is damaged or locked, and what is wrong; the rest
        of it is left out. Without it the first error is raised. Other errors always are.
    enters: which directories to go into (by their path); default all.
    """

    def __init__(
        self,
        tree: FileTree,
        on_error: OnError | None = None,
        enters: Callable[[bytes], bool] | None = None,
    ) -> None:
        self._tree = tree
        self._on_error = on_error
        self._enters = enters
        self._levels: list[_Level] = []
        self._numbers: set[int] = set()

    def below(self, directory: Entry, prefix: bytes = b"") -> Iterator[tuple[bytes, Entry]]:
        """Yield `(prefix, entry)` of all entries below a directory; their path is the sum.

        prefix: the path of `directory`, with a slash at its end unless it is the root.
        """
        self._open(directory, prefix)
        while self._levels:
            level = self._levels[-1]
            try:
                for entry in self._rest(level):
                    yield prefix, entry
                    if entry.kind is EntryKind.DIRECTORY and self._is_entered(prefix, entry):
                        level.last = entry
                        prefix = b"%b%b/" % (prefix, entry.name)
                        self._open(entry, prefix)
                        break
                else:
                    prefix = self._leave(prefix)
            except PARTIAL as error:
                self._report(prefix, error)
                prefix = self._leave(prefix)

    def _open(self, directory: Entry, prefix: bytes) -> None:
        try:
            children = self._tree.iterate(directory)
        except PARTIAL as error:
            self._report(prefix, error)
            children = iter(())
        self._numbers.add(directory.offset)
        self._levels.append(_Level(directory, children))
        if len(self._levels) > OPEN_LEVELS:
            self._levels[-1 - OPEN_LEVELS].children = None

    def _rest(self, level: _Level) -> Iterator[Entry]:
        """What is left of a directory, from after its last child on."""
        if level.children is None:
            assert level.last is not None
            level.children = self._tree.iterate(level.directory)
            for entry in level.children:
                if entry.offset == level.last.offset and entry.name == level.last.name:
                    break
        return level.children

    def _leave(self, prefix: bytes) -> bytes:
        """Close the level; returns the prefix of the one above."""
        self._numbers.discard(self._levels.pop().directory.offset)
        return prefix[: prefix.rfind(b"/", 0, -1) + 1] if self._levels else prefix

    def _is_entered(self, prefix: bytes, entry: Entry) -> bool:
        if self._enters is not None and not self._enters(prefix + entry.name):
            return False
        if entry.offset in self._numbers:
            self._report(prefix + entry.name, FormatError("the directory contains itself"))
            return False
        if len(prefix) + len(entry.name) > MAX_PATH_LENGTH:
            text = f"below a path of {MAX_PATH_LENGTH} bytes nothing is looked at"
            self._report(prefix, FormatError(text))
            return False
        return True

    def _report(self, path: bytes, error: StoreError) -> None:
        if self._on_error is None:
            raise error
        self._on_error(path.rstrip(b"/"), error)
