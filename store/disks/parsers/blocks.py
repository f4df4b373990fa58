"""The bytes of a disk as its parsers want them: cached, and as a file."""

import io
from collections import OrderedDict
from collections.abc import Callable

BLOCK = 64 * 1024
CACHED = 384
# What a reader that goes straight on gets at once; a chunk of the datastore is 4 MiB.
AHEAD = 8
LARGE = 1 << 20


class CachedBlocks:
    """Blocks of 64 KiB, those used last kept: 24 MiB.

    Args:
        size: of the disk, in bytes.
        fetch: brings exactly the bytes asked for (offset, size).
    """

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self.size = size
        self._fetch = fetch
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._next = -1

    def pread(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`, fewer at the end."""
        if offset < 0 or size < 0:
            raise ValueError(f"read of {size} bytes at {offset}")
        size = min(size, self.size - offset)
        if size <= 0:
            return b""
        number, skip = divmod(offset, BLOCK)
        if skip + size <= BLOCK:
            return self._block(number)[skip : skip + size]
        if size >= LARGE:
            return self._fetch(offset, size)
        last = (offset + size - 1) // BLOCK
        whole = b"".join(self._block(block) for block in range(number, last + 1))
        return whole[skip : skip + size]

    def _block(self, number: int) -> bytes:
        block = self._blocks.get(number)
        if block is None:
            self._load(number, AHEAD if number == self._next else 1)
            return self._blocks[number]
        self._blocks.move_to_end(number)
        return block

    def _load(self, number: int, count: int) -> None:
        start = number * BLOCK
        data = self._fetch(start, min(count * BLOCK, self.size - start))
        for piece in range(0, len(data), BLOCK):
            self._blocks[number + piece // BLOCK] = data[piece : piece + BLOCK]
        self._next = number + -(-len(data) // BLOCK)
        self._blocks.move_to_end(number)
        while len(self._blocks) > CACHED:
            self._blocks.popitem(last=False)


class BlockFile(io.RawIOBase):
    """The same as a file that is read and sought in."""

    def __init__(self, blocks: CachedBlocks) -> None:
        super().__init__()
        self.size = blocks.size
        self._blocks, self._position = blocks, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        data = self._blocks.pread(self._position, self.size if size < 0 else size)
        self._position += len(data)
        return data

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override] # whatever can be filled
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class Slice:
    """Some segments (start, size) of it, one behind the other."""

    def __init__(self, blocks: CachedBlocks, segments: list[tuple[int, int]]) -> None:
        self._blocks, self._segments = blocks, segments
        self.size = sum(size for _, size in segments)

    def pread(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`, fewer at the end."""
        parts = []
        for start, length in self._segments:
            if size <= 0:
                break
            if offset < length:
                take = min(size, length - offset)
                parts.append(self._blocks.pread(start + offset, take))
                offset, size = length, size - take
            offset -= length
        return b"".join(parts)
