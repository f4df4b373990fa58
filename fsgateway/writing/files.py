"""Open files of a head: those of trees, images, and blobs."""

import errno
import os
from collections import Counter
from collections.abc import Callable
from threading import Lock
from typing import Protocol

from fsgateway import extra_handlers
from fsgateway.inodes import HEAD
from store.format.blob import MAX_BLOB_SIZE
from store.format.buffer import Buffer
from store.heads import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    Head,
    Image,
    Tree,
    WouldWait,
)

FIRST_HANDLE = HEAD
"""A head's handles are numbered like its inodes: nobody takes them for those of read-only nodes."""


class WritableFile(Protocol):
    """An open file. The two `…_now` never wait: they raise WouldWait, and nothing was done.

    is_uncached: the kernel shall keep no page of what goes through it.
    """

    @property
    def is_uncached(self) -> bool: ...

    def read_now(self, offset: int, size: int) -> Buffer: ...

    def read(self, offset: int, size: int) -> Buffer: ...

    def write_now(self, offset: int, data: bytes) -> int: ...

    def write(self, offset: int, data: bytes) -> int: ...

    def allocate(self, offset: int, length: int, mode: int) -> None: ...

    def seek(self, offset: int, whence: int) -> int: ...

    def sync(self, *, data_only: bool) -> None: ...

    def close(self) -> None: ...


class TreeFile:
    """A regular file of a tree. It is held as long as it is open."""

    __slots__ = ("_number", "_tree")
    is_uncached = False

    def __init__(self, tree: Tree, number: int, *, is_held: bool = False) -> None:
        self._tree, self._number = tree, number
        if not is_held:
            tree.hold(number)

    def read_now(self, offset: int, size: int) -> bytes:
        return self._tree.at_once(self._tree.read, self._number, offset, size)

    def read(self, offset: int, size: int) -> bytes:
        return self._tree.read(self._number, offset, size)

    def write_now(self, offset: int, data: bytes) -> int:
        return self._tree.at_once(self._tree.write, self._number, offset, data)

    def write(self, offset: int, data: bytes) -> int:
        return self._tree.write(self._number, offset, data)

    def complete(self, data: Buffer, *facts: int, releases: bool) -> None:
        """As `Tree.complete`."""
        self._tree.complete(self._number, data, *facts, releases=releases)

    def allocate(self, offset: int, length: int, mode: int) -> None:
        self._tree.fallocate(self._number, offset, length, mode)

    def seek(self, offset: int, whence: int) -> int:
        return self._tree.seek(self._number, offset, whence)

    def sync(self, *, data_only: bool) -> None:
        self._tree.sync(self._number, data_only=data_only)

    def close(self) -> None:
        self._tree.release(self._number)


class ImagePlace:
    """An image of a head by name. One that was just made has no size, and is not there yet."""

    def __init__(self, head: Head, name: str, *, is_new: bool = False) -> None:
        """Raises NotFound, and what opening its base raises."""
        self._head, self._name = head, name
        self._lock = Lock()
        self._image = None if is_new else head.image(name)
        self._users = Counter[bool]()  # by is_uncached
        self._opening = Lock()

    @property
    def is_there(self) -> bool:
        return self._image is not None

    @property
    def size(self) -> int:
        return self._image.size if self._image else 0

    def image(self, size: int) -> Image:
        """The image, made or grown to have at least `size` bytes. Raises StoreError, OSError."""
        with self._lock:
            if self._image is None:
                self._image = self._head.create_image(self._name, size)
            elif size > self._image.size:
                self._image.grow(size)
            return self._image

    def at_hand(self) -> Image:
        """The image. Raises WouldWait when it has to be made first."""
        if self._image is None:
            raise WouldWait
        return self._image

    def enter(self, flags: int) -> bool:
        """Count one more who has it open, with open(2)'s flags; whether past the kernel's cache.

        A page of what is only written is a copy that nobody reads, and dear. But who writes past
        the cache does not change what others see through it: all who have it open go one way, and
        it must be one by which it can be mapped.
        """
        only_writes = flags & os.O_ACCMODE == os.O_WRONLY and not flags & os.O_APPEND
        may_pass = only_writes and extra_handlers.can_map_uncached()
        with self._opening:
            is_uncached = self._users[True] > 0 or (may_pass and not self._users[False])
            self._users[is_uncached] += 1
        return is_uncached

    def leave(self, *, is_uncached: bool) -> None:
        """One of them has closed it."""
        with self._opening:
            self._users[is_uncached] -= 1

    def truncate(self, size: int) -> None:
        """Raises OSError(EINVAL): an image cannot shrink, for its snapshots could not tell."""
        if size < self.size:
            raise OSError(errno.EINVAL, f"{self._name}: an image does not shrink")
        if size:
            self.image(size)


class ImageFile:
    """An image as a file: writing past its end makes it larger."""

    __slots__ = ("_place", "is_uncached")

    def __init__(self, place: ImagePlace, flags: int) -> None:
        """`flags`: those of open(2)."""
        self._place = place
        self.is_uncached = place.enter(flags)

    def read_now(self, offset: int, size: int) -> Buffer:
        size = self._inside(offset, size)
        found = self._place.image(0).peek(offset, size) if size else b""
        if found is None:
            raise WouldWait
        return found

    def read(self, offset: int, size: int) -> bytes:
        size = self._inside(offset, size)
        return self._place.image(0).read(offset, size) if size else b""

    def _inside(self, offset: int, size: int) -> int:
        return max(0, min(size, self._place.size - offset))

    def write_now(self, offset: int, data: bytes) -> int:
        if data:
            self._place.at_hand().write_at_once(offset, data)
        return len(data)

    def write(self, offset: int, data: bytes) -> int:
        if data:
            self._place.image(offset + len(data)).write(offset, data)
        return len(data)

    def allocate(self, offset: int, length: int, mode: int) -> None:
        if mode & ~(FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE):
            raise OSError(errno.EOPNOTSUPP, "fallocate of this kind")
        if not mode & FALLOC_KEEP_SIZE:
            self._place.image(offset + length)
        size = self._inside(offset, length)
        if size and mode & FALLOC_PUNCH_HOLE:
            self._place.image(0).trim(offset, size)
        elif size and mode & FALLOC_ZERO_RANGE:
            self._place.image(0).zero(offset, size)

    def seek(self, offset: int, whence: int) -> int:
        size = self._place.size
        if not 0 <= offset < size:
            raise OSError(errno.ENXIO, "outside of the image")
        for start, _, is_zero in self._place.image(0).extents(offset, size - offset):
            if is_zero == (whence == os.SEEK_HOLE):
                return max(start, offset)
        if whence == os.SEEK_HOLE:
            return size
        raise OSError(errno.ENXIO, "no data follows")

    def sync(self, *, data_only: bool) -> None:
        if self._place.size:
            self._place.image(0).flush()

    def close(self) -> None:
        """What is not flushed is made durable within seconds."""
        self._place.leave(is_uncached=self.is_uncached)


class Blob:
    """A blob while it is open: its bytes are in memory, and stored when the last closes it."""

    def __init__(self, head: Head, name: str, *, is_new: bool = False) -> None:
        """Raises NotFound and what reading raises."""
        self.name = name
        self.users = 0
        self._head = head
        self._lock = Lock()
        self._is_dirty = is_new
        self._has_name = True
        self._data = bytearray(b"" if is_new else head.read_blob(name))

    @property
    def size(self) -> int:
        return len(self._data)

    def read(self, offset: int, size: int) -> bytes:
        with self._lock:
            return bytes(self._data[offset : offset + size])

    def write(self, offset: int, data: bytes) -> int:
        """Raises OSError(EFBIG)."""
        with self._lock:
            self._resize(max(len(self._data), offset + len(data)))
            self._data[offset : offset + len(data)] = data
        return len(data)

    def truncate(self, size: int) -> None:
        """Raises OSError(EFBIG)."""
        with self._lock:
            self._resize(size)

    def _resize(self, size: int) -> None:
        if size > MAX_BLOB_SIZE:
            raise OSError(errno.EFBIG, f"{self.name}: a blob has at most {MAX_BLOB_SIZE} bytes")
        self._is_dirty = True
        del self._data[size:]
        self._data += bytes(size - len(self._data))

    def leave(self) -> None:
        """Its name is gone, or another's: who has it open goes on, nothing of it is stored."""
        with self._lock:
            self._has_name = False

    def store(self) -> None:
        """Put it into the head if it changed."""
        with self._lock:
            if self._is_dirty and self._has_name:
                self._head.write_blob(self.name, bytes(self._data))
                self._is_dirty = False


class BlobFile:
    """An open blob."""

    __slots__ = ("_blob", "_on_close")
    is_uncached = False

    def __init__(self, blob: Blob, on_close: Callable[[Blob], None]) -> None:
        self._blob, self._on_close = blob, on_close

    def read_now(self, offset: int, size: int) -> bytes:
        return self._blob.read(offset, size)

    read = read_now

    def write_now(self, offset: int, data: bytes) -> int:
        return self._blob.write(offset, data)

    write = write_now

    def allocate(self, offset: int, length: int, mode: int) -> None:
        if mode:
            raise OSError(errno.EOPNOTSUPP, "a blob has no holes")
        if offset + length > self._blob.size:
            self._blob.truncate(offset + length)

    def seek(self, offset: int, whence: int) -> int:
        if not 0 <= offset < self._blob.size:
            raise OSError(errno.ENXIO, "outside of the file")
        return offset if whence == os.SEEK_DATA else self._blob.size

    def truncate(self, size: int) -> None:
        """Raises OSError(EFBIG)."""
        self._blob.truncate(size)

    def sync(self, *, data_only: bool) -> None:
        self._blob.store()

    def close(self) -> None:
        self._on_close(self._blob)
