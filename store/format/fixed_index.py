"""Fixed indexes (`*.fidx`): the chunks of a disk image, all of one size but the last.

0 magic | 8 uuid | 24 ctime | 32 csum | 64 size u64 | 72 chunk size u64 | 80 zero | 4096 digests

Source: proxmox-backup pbs-datastore/src/fixed_index.rs (spec section 4.1).
"""

import hashlib
import struct
from collections.abc import Iterator

from store.errors import FormatError
from store.format.buffer import Buffer
from store.format.index import (
    DIGEST_SIZE,
    MAX_ARCHIVE_SIZE,
    check_position,
    find_runs,
    open_body,
    pack_header,
)
from store.names import Digest

FIXED_SIZED_CHUNK_INDEX_1_0 = bytes.fromhex("2f7f41ed91fd0fcd")
CHUNK_SIZE = 4 * 1024 * 1024
SIZES = struct.Struct("<QQ")
SIZES_OFFSET = 64


class FixedIndex:
    """A fixed index open for reading, from bytes or an mmap, which it keeps in use. Thread-safe.

    `size` and `chunk_size` are in bytes, `ctime` in seconds since the epoch, `uuid` has 16 bytes;
    `header_csum` is what the file says of itself, and nobody trusts it.
    """

    __slots__ = ("_body", "_count", "chunk_size", "ctime", "header_csum", "size", "uuid")

    size: int
    chunk_size: int

    def __init__(self, raw: Buffer) -> None:
        """Raises FormatError: not a fixed index, cut short, or not as long as its sizes say."""
        header, self._body = open_body(raw, FIXED_SIZED_CHUNK_INDEX_1_0, DIGEST_SIZE, "fixed")
        self.uuid, self.ctime, self.header_csum = header.uuid, header.ctime, header.csum
        self.size, self.chunk_size = SIZES.unpack_from(raw, SIZES_OFFSET)
        self._count = chunk_count(self.size, self.chunk_size)
        if self._count * DIGEST_SIZE != len(self._body):
            found = len(self._body) // DIGEST_SIZE
            raise FormatError(
                f"fixed index of {self.size} bytes: has {found} chunks, expected {self._count}"
            )

    def __len__(self) -> int:
        return self._count

    def digest(self, position: int) -> Digest:
        """Name of one chunk. Raises IndexError."""
        check_position(position, self._count)
        start = position * DIGEST_SIZE
        return Digest(bytes(self._body[start : start + DIGEST_SIZE]))

    def range(self, position: int) -> tuple[int, int]:
        """Start and exclusive end of one chunk; the image's end may make the last one short."""
        check_position(position, self._count)
        start = position * self.chunk_size
        return start, min(start + self.chunk_size, self.size)

    def position(self, offset: int) -> int:
        """Which chunk holds the byte at `offset`. Raises IndexError outside the image."""
        check_position(offset, self.size)
        return offset // self.chunk_size

    def digests(self) -> Iterator[Digest]:
        """All names, in order."""
        return (Digest(digest) for (digest,) in struct.iter_unpack("32s", self._body))

    def runs_of(self, digest: Digest) -> Iterator[tuple[int, int]]:
        """Where chunks of this name are: first and exclusive last position, rising."""
        return find_runs(self._body, DIGEST_SIZE, 0, digest)

    def csum(self) -> bytes:
        """SHA-256 of all digests, computed now: what the manifest has as this file's csum."""
        return hashlib.sha256(self._body).digest()


class FixedIndexBuilder:
    """Fills the body of a new fixed index, in any order and from any thread."""

    def __init__(self, body: Buffer, size: int, chunk_size: int = CHUNK_SIZE) -> None:
        """`body` is writable, 32 bytes per chunk. Raises FormatError: a size no index can have."""
        self.size = size
        self.chunk_size = chunk_size
        self._body = memoryview(body)
        self._is_set = bytearray(chunk_count(size, chunk_size))
        if len(self._body) != len(self) * DIGEST_SIZE or self._body.readonly:
            raise ValueError(
                f"a body of {len(self)} digests must be writable and have 32 bytes for each"
            )

    def __len__(self) -> int:
        return len(self._is_set)

    def set(self, position: int, digest: Digest) -> None:
        """Name one chunk; a second time replaces the first. Raises IndexError."""
        check_position(position, len(self))
        start = position * DIGEST_SIZE
        self._body[start : start + DIGEST_SIZE] = digest
        self._is_set[position] = 1

    def release(self) -> None:
        """Let go of the body; nothing else works afterwards."""
        self._body.release()

    @property
    def csum(self) -> bytes:
        """SHA-256 of the body as it is now."""
        return hashlib.sha256(self._body).digest()

    def finish(self, uuid: bytes, ctime: int) -> bytes:
        """Return the header, 4096 bytes. Raises FormatError naming the first chunk never set.

        Args:
            uuid: 16 random bytes (version 4).
            ctime: when the index was made, seconds since the epoch.
        """
        missing = self._is_set.find(0)
        if missing >= 0:
            raise FormatError(f"fixed index: chunk {missing} of {len(self)} was never set")
        sizes = SIZES.pack(self.size, self.chunk_size)
        return pack_header(FIXED_SIZED_CHUNK_INDEX_1_0, uuid, ctime, self.csum, sizes)


def chunk_count(size: int, chunk_size: int) -> int:
    """How many chunks an image of `size` bytes has.

    Raises FormatError: a size no file can have, or a chunk size that is no power of two.
    """
    if chunk_size < 1 or chunk_size & (chunk_size - 1):
        raise FormatError(f"fixed index: chunk size {chunk_size} is not a power of two")
    if not 1 <= size <= MAX_ARCHIVE_SIZE:
        raise FormatError(f"fixed index: size {size} is not between 1 and {MAX_ARCHIVE_SIZE}")
    return -(-size // chunk_size)
