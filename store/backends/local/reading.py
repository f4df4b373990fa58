"""Reading regular files, whole or in part: no fifo, no device, no symlink."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from stat import S_ISDIR, S_ISREG

from store.backends.base import MAX_READ
from store.errors import BackendError, FormatError, NotFound
from store.format.buffer import Buffer

FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW


def open_existing(path: str, access: int = os.O_RDONLY) -> int:
    """A descriptor of what is there. Raises OSError.

    Waits for nobody to open a fifo's other end. But a file that the server of an export delegated
    to an NFS client has to be given back by it first: that is what EAGAIN says here.
    """
    try:
        return os.open(path, access | FLAGS | os.O_NONBLOCK)
    except BlockingIOError:
        return os.open(path, access | FLAGS)


def read_file(path: str, limit: int = MAX_READ) -> bytes:
    """A whole file. Raises OSError, NotFound (a directory), FormatError (absurd), BackendError."""
    descriptor = open_existing(path)
    try:
        size = _regular_size(descriptor, path)
        if size > limit:
            raise FormatError(f"{path}: {size} bytes, more than any such file has")
        data = os.read(descriptor, size)
        return data if len(data) == size else read_rest(descriptor, data, size, path)
    finally:
        os.close(descriptor)


def read_file_into(path: str, room: memoryview, limit: int = MAX_READ) -> Buffer:
    """The same, in `room` if it fits there."""
    with open_regular(path) as (descriptor, size):
        if size <= min(limit, len(room)):
            data = room[:size]
            if os.readv(descriptor, [data]) == size:
                return data
    return read_file(path, limit)


def read_part(path: str, offset: int, size: int) -> bytes:
    """At most `size` bytes from `offset`. Raises as `open_regular`."""
    with open_regular(path) as (descriptor, _):
        return os.pread(descriptor, size, offset)


@contextmanager
def open_regular(path: str) -> Iterator[tuple[int, int]]:
    """Descriptor and size of a file. Raises OSError, NotFound (a directory), BackendError."""
    descriptor = open_existing(path)
    try:
        yield descriptor, _regular_size(descriptor, path)
    finally:
        os.close(descriptor)


def _regular_size(descriptor: int, path: str) -> int:
    status = os.fstat(descriptor)
    if S_ISDIR(status.st_mode):
        raise NotFound(f"{path}: is a directory")
    if not S_ISREG(status.st_mode):
        raise BackendError(f"{path}: not a regular file")
    return status.st_size


def read_rest(descriptor: int, data: bytes, size: int, path: str) -> bytes:
    """Go on after a short read (2 GiB is the most one call gives).

    Raises OSError, BackendError when the file shrank.
    """
    parts, have = [data], len(data)
    while have < size:
        part = os.read(descriptor, size - have)
        if not part:
            raise BackendError(f"{path}: ends at {have} of {size} bytes", retryable=True)
        parts.append(part)
        have += len(part)
    return b"".join(parts)
