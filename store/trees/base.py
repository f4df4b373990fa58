"""What a tree of files answers: a pxar archive, a file system in a disk image, a view over several.

All of them speak in pxar entries, so whatever shows, searches or restores one does it for all.
"""

from collections.abc import Iterator
from typing import Protocol

from store.format.buffer import ReadAt
from store.format.pxar.entries import Entry


class FileTree(Protocol):
    """A read-only tree of files. Thread-safe; `store.format.pxar.accessor.Accessor` is one.

    An entry's `offset` is its number: its own within the tree, below 2^46, and the same as long as
    the tree is open. Names of one file (hard links) have the same number, or are HARDLINK entries
    for `follow`. `raw_metadata` are pxar items (`encode_metadata`), so modes, owners, times, xattrs
    and ACLs are found in one way.

    Every method raises FormatError or IntegrityError where the tree is damaged, and BackendError.
    """

    def root(self) -> Entry:
        """The root directory; its name is empty."""

    def iterate(self, directory: Entry) -> Iterator[Entry]:
        """The children of a directory, in the tree's own order."""

    def lookup(self, directory: Entry, name: bytes) -> Entry | None:
        """The child of this name, or None."""

    def follow(self, link: Entry) -> Entry:
        """The regular file that a HARDLINK entry is another name of."""

    def entry_at(self, offset: int, directory_end: int = 0) -> Entry:
        """An entry met before, by its number; a directory with the `end` it had then."""

    def content(self, file: Entry) -> tuple[ReadAt, int]:
        """The stream that has a regular file's bytes, and where they begin in it."""

    def read(self, file: Entry, offset: int, size: int) -> bytes:
        """Up to `size` bytes of a regular file's content, fewer only at its end."""
