"""What is open: files as streams or bytes, directories as lists."""

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from pyfuse3 import FileHandleT, InodeT

from fsgateway.attributes import Facts
from fsgateway.hardlinks import Links
from fsgateway.listings import Listing
from fsgateway.readahead import Way
from fsgateway.tree import Node
from fsgateway.view import Content
from store.datastore.archives import IndexedStream
from store.format.buffer import Buffer
from store.format.pxar.entries import Entry

T = TypeVar("T")


class HandleTable(Generic[T]):
    """Open files or directories by number. Numbers are not used twice while the mount lives."""

    def __init__(self, first: int = 1) -> None:
        self._open: dict[int, T] = {}
        self._next = first
        # The handlers' short way: one call, KeyError for what is not open.
        self.get = self._open.__getitem__

    def __len__(self) -> int:
        return len(self._open)

    def add(self, handle: T) -> FileHandleT:
        number = FileHandleT(self._next)
        self._next += 1
        self._open[number] = handle
        return number

    def remove(self, number: int) -> None:
        """Raises OSError(EBADF)."""
        if self._open.pop(number, None) is None:
            raise OSError(errno.EBADF, f"file handle {number} is not open")


class StreamFile:
    """An open image or file of an archive: `size` bytes of `stream` from `start` on.

    Args:
        inode: whose it is.
        way: the reader's way through the stream.
        is_exact: opened for direct I/O, so an answer may be shorter than asked, unless it begins
            with a page.
    """

    __slots__ = ("inode", "is_exact", "peek", "size", "start", "stream", "way")
    is_slow: ClassVar[bool] = False

    def __init__(
        self,
        inode: InodeT,
        stream: IndexedStream,
        start: int,
        size: int,
        way: Way,
        *,
        is_exact: bool,
    ) -> None:
        self.inode = inode
        self.stream, self.start, self.size = stream, start, size
        self.way = way
        self.is_exact = is_exact
        self.peek = stream.peek


class GuestFile:
    """An open file whose bytes somebody else brings: that of a file system inside an image."""

    __slots__ = ("content",)
    is_slow: ClassVar[bool] = True

    def __init__(self, content: Content) -> None:
        self.content = content

    def read(self, offset: int, size: int) -> bytes:
        """Waits; for a thread. Raises StoreError."""
        stream, start, end = self.content
        size = min(size, end - offset)
        return stream.read(start + offset, size) if size > 0 else b""


class BytesFile:
    """An open blob or manifest, decoded."""

    __slots__ = ("data",)
    is_slow: ClassVar[bool] = False

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, offset: int, size: int) -> Buffer:
        return self.data[offset : offset + size]


OpenFile = StreamFile | BytesFile | GuestFile


@dataclass(slots=True)
class EntryDirectory:
    """An open directory of a tree."""

    inode: InodeT
    listing: Listing
    links: Links


@dataclass(slots=True)
class NodeDirectory:
    """An open directory above the archives, with what is known of each child."""

    children: Sequence[tuple[Node, Facts | Entry]]


OpenDirectory = EntryDirectory | NodeDirectory
