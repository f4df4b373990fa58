"""Which entries of an archive a restore by pattern takes.

The patterns follow the rules of `.pxarexclude` (spec 9.6), with the roles swapped as in the stock
client's `--pattern`: `P` takes, `!P` leaves out, the last one that matches decides, and what none
matches goes with its directory.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from store.format.pxar.globs import literal_beginning, reaches
from store.format.pxar.patterns import Match, PatternList


class Takes(Protocol):
    """Decides what is restored. Paths are from the root, without a leading slash."""

    def takes(self, path: bytes, *, is_directory: bool, parent: bool) -> bool:
        """Whether the entry at `path` is taken; `parent`: whether its directory is."""

    def takes_file(self, path: bytes) -> bool:
        """Whether the file at `path` is taken, when nothing is known of its directories."""

    def reaches(self, directory: bytes) -> bool:
        """Whether anything below a directory that is not taken itself could be taken."""


class Everything:
    """All there is."""

    def takes(self, _path: bytes, *, is_directory: bool, parent: bool) -> bool:
        return True

    def takes_file(self, _path: bytes) -> bool:
        return True

    def reaches(self, _directory: bytes) -> bool:
        return True


class Picked:
    """Entries that were picked one by one, directories with all that is in them."""

    def __init__(self, paths: Iterable[bytes]) -> None:
        self._paths = frozenset(paths)
        self._above = frozenset(above for path in self._paths for above in _directories(path))

    def takes(self, path: bytes, *, is_directory: bool, parent: bool) -> bool:
        return parent or path in self._paths

    def takes_file(self, path: bytes) -> bool:
        return path in self._paths or any(above in self._paths for above in _directories(path))

    def reaches(self, directory: bytes) -> bool:
        return directory in self._above


def _directories(path: bytes) -> list[bytes]:
    """All directories around a path, but for the root."""
    return [path[:end] for end, byte in enumerate(path) if byte == 0x2F]


class Selection:
    """The patterns of one restore. Raises InvalidName for a bad one."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = PatternList(patterns)
        taking = [text.encode("utf-8", "surrogateescape") for text in patterns]
        taking = [text for text in taking if not text.startswith(b"!")]
        # A pattern without a leading slash may match anywhere.
        anchored = all(text.startswith(b"/") for text in taking)
        self._beginnings = [literal_beginning(text) for text in taking] if anchored else [[]]

    def takes(self, path: bytes, *, is_directory: bool, parent: bool) -> bool:
        # In an exclude list a plain pattern excludes; here it takes.
        match = self._patterns.matches(b"/" + path, is_directory)
        return parent if match is None else match is Match.EXCLUDE

    def takes_file(self, path: bytes) -> bool:
        taken, parts = False, path.split(b"/")
        for depth in range(1, len(parts) + 1):
            below = b"/".join(parts[:depth])
            taken = self.takes(below, is_directory=depth < len(parts), parent=taken)
        return taken

    def reaches(self, directory: bytes) -> bool:
        return reaches(self._beginnings, directory)
