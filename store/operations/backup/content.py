"""Reading the source's files, whatever happens to them meanwhile."""

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from typing import Protocol

from store.errors import SourceError
from store.format.blob import MAX_BLOB_SIZE
from store.format.buffer import Buffer

READ_SIZE = 4 << 20
"""One read of a file, in bytes. The stock client's: payload chunks depend on it (spec 5.4)."""


class Stream(Protocol):
    """What content goes into: a ChunkStream or PayloadStream."""

    def write(self, data: Buffer) -> None: ...
    def reserve(self, size: int) -> memoryview: ...
    def commit(self, size: int) -> None: ...


class FileCopier:
    """Copies open files into a stream: as many bytes as the file had when it was opened.

    where: names the file being copied, for errors. on_change: told what happened to it.
    """

    def __init__(self, where: Callable[[], str], on_change: Callable[[str], None]) -> None:
        self._where, self._on_change = where, on_change

    def copy(self, file: int, info: os.stat_result, stream: Stream) -> None:
        """Append exactly `info.st_size` bytes of an open file.

        Zeros follow if the file shrank; what it grew by is left out. Raises SourceError where it
        can't be read.
        """
        left = info.st_size
        while left:
            view = stream.reserve(min(READ_SIZE, left))
            count = self._read(file, view, info.st_size - left)
            if count < len(view):
                self._fill_up(stream, view, count, left)
                self._on_change(f"shrank by {left - count} bytes while it was read")
                return
            stream.commit(count)
            left -= count
        self._compare(file, info)

    def _read(self, file: int, view: memoryview, offset: int) -> int:
        """Fill `view`, as far as the file goes."""
        count = 0
        try:
            while count < len(view) and (step := os.readv(file, [view[count:]])):
                count += step
        except OSError as error:
            if error.errno != errno.ESTALE:  # removed, on another host
                text = f"{self._where()}: {error.strerror} at byte {offset + count}"
                raise SourceError(text) from error
        return count

    def _fill_up(self, stream: Stream, view: memoryview, count: int, left: int) -> None:
        """Commit `view`, of which `count` bytes were read, and zeros for the rest of the file."""
        zeros = bytes(len(view))
        view[count:] = zeros[count:]
        stream.commit(len(view))
        left -= len(view)
        while left:
            step = min(left, len(zeros))
            stream.write(zeros[:step])
            left -= step

    def _compare(self, file: int, info: os.stat_result) -> None:
        with contextlib.suppress(OSError):  # content is complete, and that is what counts
            now = os.fstat(file)
            if now.st_mtime_ns != info.st_mtime_ns or now.st_size != info.st_size:
                self._on_change("changed while it was read")


def read_small_file(path: str) -> bytes:
    """The whole of a small file, or of what comes through a pipe. Raises SourceError."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            os.set_blocking(file.fileno(), True)
            content = file.read(MAX_BLOB_SIZE + 1)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error
    if len(content) > MAX_BLOB_SIZE:
        raise SourceError(f"{path}: larger than {MAX_BLOB_SIZE >> 20} MiB, too large for a blob")
    if not (content or is_regular):
        raise SourceError(f"{path}: is no file, and nothing comes out of it")
    return content
