"""Which entries of an archive a restore by pattern takes.

The patterns follow the rules of `.pxarexclude` (spec 9.6), with the roles swapped as in the stock
client's `--pattern`: `P` takes, `!P` leaves out, the last one that matches decides, and what none
matches goes with its directory.
"""

import re
from collections.abc import Sequence

from store.format.pxar.patterns import Match, PatternList

_GLOB = re.compile(rb"[*?\[\\]")


class Selection:
    """The patterns of one restore. Raises InvalidName for a bad one."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = PatternList(patterns)
        taking = [text.encode("utf-8", "surrogateescape") for text in patterns]
        taking = [text for text in taking if not text.startswith(b"!")]
        # A pattern without a leading slash may match anywhere.
        anchored = all(text.startswith(b"/") for text in taking)
        self._beginnings = [_literal_beginning(text) for text in taking] if anchored else [[]]

    def takes(self, path: bytes, *, is_directory: bool, parent: bool) -> bool:
        """Whether the entry at `path` is taken.

        Args:
            path: from the root, without a leading slash.
            is_directory: whether it is one.
            parent: whether its directory is taken.
        """
        # In an exclude list a plain pattern excludes; here it takes.
        match = self._patterns.matches(b"/" + path, is_directory)
        return parent if match is None else match is Match.EXCLUDE

    def takes_file(self, path: bytes) -> bool:
        """Whether the file at `path` is taken, when nothing is known of its directories."""
        taken, parts = False, path.split(b"/")
        for depth in range(1, len(parts) + 1):
            below = b"/".join(parts[:depth])
            taken = self.takes(below, is_directory=depth < len(parts), parent=taken)
        return taken

    def reaches(self, directory: bytes) -> bool:
        """Whether anything below a directory that is not taken itself could be taken."""
        parts = directory.split(b"/")
        return any(
            all(ours == theirs for ours, theirs in zip(beginning, parts, strict=False))
            for beginning in self._beginnings
        )


def _literal_beginning(pattern: bytes) -> list[bytes]:
    """The path components of an anchored pattern before the first with a glob character."""
    beginning = []
    for part in pattern.strip(b"/").split(b"/"):
        if _GLOB.search(part):
            break
        beginning.append(part)
    return beginning
