"""The two shapes in which bytes come in: a buffer, and something that can be read at an offset."""

from mmap import mmap
from typing import Protocol

from store.errors import FormatError

Buffer = bytes | bytearray | memoryview | mmap


class ReadAt(Protocol):
    """Random access to a stream of known size, in bytes. Safe to call from several threads."""

    @property
    def size(self) -> int:
        """Length of the whole stream."""

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset`; FormatError when they reach past the end."""


class BytesReadAt:
    """A stream that is in memory."""

    def __init__(self, data: Buffer) -> None:
        self._data = memoryview(data)

    @property
    def size(self) -> int:
        return len(self._data)

    def read(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > len(self._data):
            end = len(self._data)
            raise FormatError(f"read of {size} bytes at {offset} reaches past the end ({end})")
        return bytes(self._data[offset : offset + size])
