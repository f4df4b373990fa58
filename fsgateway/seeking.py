"""SEEK_DATA and SEEK_HOLE: where an open file has data, by its index alone.

So `cp --sparse=auto` and `qemu-img convert` read what is there, and nothing else.
"""

import errno
import os
from typing import TYPE_CHECKING

from fsgateway.bridge import Bridge, as_fuse_error
from fsgateway.handles import BytesFile, GuestFile, HandleTable, OpenFile, StreamFile
from fsgateway.readahead import Loader
from store.datastore.archives import IndexedStream
from store.disks.parsers.runs import RunStream

if TYPE_CHECKING:
    from fsgateway._fuse_extra import Request


class Seeker:
    """Answers the kernel's lseek requests for the open files of a mount."""

    def __init__(self, files: HandleTable[OpenFile], bridge: Bridge, loader: Loader) -> None:
        self._files = files
        self._bridge = bridge
        self._loader = loader

    def lseek(self, request: "Request", inode: int, handle: int, offset: int, whence: int) -> None:
        """The handler for `extra_handlers.set_handler`."""
        if self._loader.start_soon is None:
            request.reply_error(errno.EIO)
        else:
            self._loader.start_soon(self._answer, request, handle, offset, whence)

    async def _answer(self, request: "Request", handle: int, offset: int, whence: int) -> None:
        """In a thread: the first call for a file searches its whole index."""
        try:
            file = self._files.get(handle)
            found = await self._bridge.of(file).run(find, file, offset, whence)
        except Exception as error:  # noqa: BLE001 - as for every handler: an errno, no end of the mount
            is_an_answer = isinstance(error, OSError) and error.errno == errno.ENXIO
            request.reply_error(
                errno.ENXIO if is_an_answer else as_fuse_error(error, "lseek").errno
            )
        else:
            request.reply_offset(found)


def find(file: OpenFile, offset: int, whence: int) -> int:
    """The next data (SEEK_DATA) or hole (SEEK_HOLE) of a file at `offset` or after it.

    The end of a file is a hole; where nothing is known about holes, there is none before it.
    Raises OSError: ENXIO outside of the file, and where no data follows.
    """
    start, size, stream = _place(file)
    if not 0 <= offset < size:
        raise OSError(errno.ENXIO, "outside of the file")
    if isinstance(file, GuestFile) and isinstance(file.content.stream, RunStream):
        return _find_in_runs(file.content.stream, offset, whence)
    if stream is None:
        return offset if whence == os.SEEK_DATA else size
    holes = stream.holes()
    if whence == os.SEEK_HOLE:
        return min(holes.hole_from(start + offset) - start, size)
    found = holes.data_from(start + offset)
    if found is None or found - start >= size:
        raise OSError(errno.ENXIO, "no data follows")
    return found - start


def _find_in_runs(stream: RunStream, offset: int, whence: int) -> int:
    """The same in a guest's file, which knows its own holes."""
    for start, _, is_hole in stream.extents(offset, stream.size - offset):
        if is_hole == (whence == os.SEEK_HOLE):
            return start
    if whence == os.SEEK_HOLE:
        return stream.size
    raise OSError(errno.ENXIO, "no data follows")


def _place(file: OpenFile) -> tuple[int, int, IndexedStream | None]:
    """Where a file begins in its stream, how long it is, and the stream if it knows of holes."""
    if isinstance(file, StreamFile):
        return file.start, file.size, file.stream
    if isinstance(file, BytesFile):
        return 0, len(file.data), None
    stream, start, size = file.content
    return start, size, stream if isinstance(stream, IndexedStream) else None
