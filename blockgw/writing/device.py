"""One client's view of an image that it may write to."""

from collections.abc import Iterator
from typing import Protocol

from blockgw.device import READ_AHEAD_CHUNKS, Device, Image
from blockgw.writing.gate import Gate
from store.format.buffer import Buffer
from store.format.fixed_index import CHUNK_SIZE


class WritableImage(Image, Protocol):
    """What it writes to; the Image of a head is one."""

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """All of `data`; with `fua` it is durable."""

    def zero(self, offset: int, size: int, *, fua: bool = False) -> None:
        """The range reads as zeros afterwards."""

    def trim(self, offset: int, size: int, *, fua: bool = False) -> None:
        """Nobody needs what is in the range."""

    def flush(self) -> None:
        """What was written before, by whom ever, is durable."""


class WritableDevice(Device):
    """A Device whose image changes: by this client, by others, all of whom see it at once.

    Thread-safe. Besides what reading raises, each method raises BackendError when the export is
    ending, OutOfSpace when the journal is full, Locked when another process has the head, and
    OSError (EINVAL, ENOSPC) outside the image.
    """

    def __init__(
        self, image: WritableImage, gate: Gate, read_ahead: int = READ_AHEAD_CHUNKS
    ) -> None:
        """`gate`: all requests go through it. `read_ahead` is chunks of what was never written."""
        super().__init__(image, CHUNK_SIZE, read_ahead=read_ahead)
        self._writable, self._gate = image, gate

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill `target` with the bytes from `offset`, which must lie inside the image."""
        with self._gate:
            super().read_into(target, offset)

    def prefetch(self, offset: int, size: int) -> None:
        """Start decoding what lies in the range and was never written."""
        with self._gate:
            super().prefetch(offset, size)

    def extents(
        self, offset: int, size: int, *, one: bool = False
    ) -> Iterator[tuple[int, int, bool]]:
        """`(offset, length, is_zero)` of the range, neighbours merged; with `one`, the first."""
        with self._gate:
            yield from super().extents(offset, size, one=one)

    def write(self, offset: int, data: Buffer, *, fua: bool) -> None:
        """All of `data`, which is not kept."""
        with self._gate:
            self._writable.write(offset, data, fua=fua)

    def zero(self, offset: int, size: int, *, fua: bool) -> None:
        """The range reads as zeros; that takes no room, and is as fast as any write."""
        with self._gate:
            self._writable.zero(offset, size, fua=fua)

    def trim(self, offset: int, size: int, *, fua: bool) -> None:
        """Nobody needs what is in the range: it reads as zeros."""
        with self._gate:
            self._writable.trim(offset, size, fua=fua)

    def flush(self) -> None:
        """All writes that were answered are durable, whichever connection they came by."""
        with self._gate:
            self._writable.flush()
