"""Dynamic indexes (`*.didx`): the chunks of a stream that was cut by its content.

0 magic | 8 uuid | 24 ctime | 32 csum | 64 zero | 4096 entries: exclusive end u64 | digest 32

Source: proxmox-backup pbs-datastore/src/dynamic_index.rs (spec section 4.2).
"""

import hashlib
import operator
import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from copy import copy

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

DYNAMIC_SIZED_CHUNK_INDEX_1_0 = bytes.fromhex("1c914ea519bab3cd")
ENTRY = struct.Struct("<Q32s")
END = struct.Struct("<Q")
WORDS_PER_ENTRY = ENTRY.size // END.size


class DynamicIndex:
    """A dynamic index open for reading, from bytes or an mmap, which it keeps in use. Thread-safe.

    `size` is the length of the stream in bytes, `ctime` in seconds since the epoch, `uuid` has
    16 bytes; `header_csum` is what the file says of itself, and nobody trusts it.
    """

    __slots__ = ("_body", "_ends", "ctime", "header_csum", "size", "uuid")

    def __init__(self, raw: Buffer) -> None:
        """Raises FormatError: not a dynamic index, cut short, empty, or ends do not increase."""
        header, self._body = open_body(raw, DYNAMIC_SIZED_CHUNK_INDEX_1_0, ENTRY.size, "dynamic")
        self.uuid, self.ctime, self.header_csum = header.uuid, header.ctime, header.csum
        self._ends = _ends_of(self._body)
        _check_ends(self._ends)
        self.size = self._ends[-1]

    def __len__(self) -> int:
        return len(self._ends)

    def copy(self) -> "DynamicIndex":
        """The same in memory of its own, 40 bytes a chunk: an mmap is let go of."""
        twin = copy(self)
        twin._body = memoryview(bytes(self._body))
        twin._ends = _ends_of(twin._body)
        return twin

    def digest(self, position: int) -> Digest:
        """Name of one chunk. Raises IndexError."""
        check_position(position, len(self._ends))
        start = position * ENTRY.size + END.size
        return Digest(bytes(self._body[start : start + DIGEST_SIZE]))

    def range(self, position: int) -> tuple[int, int]:
        """Start and exclusive end of one chunk in the stream. Raises IndexError."""
        check_position(position, len(self._ends))
        return (self._ends[position - 1] if position else 0), self._ends[position]

    def position(self, offset: int) -> int:
        """Which chunk holds the byte at `offset`. Raises IndexError outside the stream."""
        check_position(offset, self.size)
        return bisect_right(self._ends, offset)

    def digests(self) -> Iterator[Digest]:
        """All names, in order."""
        return (Digest(digest) for _, digest in ENTRY.iter_unpack(self._body))

    def runs_of(self, digest: Digest) -> Iterator[tuple[int, int]]:
        """Where chunks of this name are: first and exclusive last position, rising."""
        return find_runs(self._body, ENTRY.size, END.size, digest)

    def csum(self) -> bytes:
        """SHA-256 of all entries, computed now: what the manifest has as this file's csum."""
        return hashlib.sha256(self._body).digest()


class DynamicIndexBuilder:
    """Makes a dynamic index entry by entry. One caller at a time."""

    def __init__(self) -> None:
        self.size = 0
        self._state = hashlib.sha256()

    def add(self, end: int, digest: Digest) -> bytes:
        """Return the next 40-byte entry; its chunk ends before `end`. FormatError if empty."""
        if end <= self.size:
            raise FormatError(f"dynamic index: end {end} is not behind the last one, {self.size}")
        entry = ENTRY.pack(end, digest)
        self._state.update(entry)
        self.size = end
        return entry

    @property
    def csum(self) -> bytes:
        """SHA-256 of the entries so far."""
        return self._state.digest()

    def header(self, uuid: bytes, ctime: int) -> bytes:
        """Return the header, 4096 bytes. Raises FormatError without entries, as PBS would.

        Args:
            uuid: 16 random bytes (version 4).
            ctime: when the index was made, seconds since the epoch.
        """
        if not self.size:
            raise FormatError("dynamic index: no entries")
        return pack_header(DYNAMIC_SIZED_CHUNK_INDEX_1_0, uuid, ctime, self.csum)


def _ends_of(body: memoryview) -> memoryview:
    """View each entry's first word as an integer; a copy on big-endian machines only."""
    words = body.cast("B").cast("Q")[::WORDS_PER_ENTRY]
    if sys.byteorder == "little":
        return words
    swapped = array("Q", words.tobytes())
    swapped.byteswap()
    return memoryview(swapped)


def _check_ends(ends: memoryview) -> None:
    """Raise FormatError unless ends increase. No Python loop: 40 ms for a million entries."""
    if ends[-1] > MAX_ARCHIVE_SIZE:
        raise FormatError(f"dynamic index: size {ends[-1]} is more than {MAX_ARCHIVE_SIZE}")
    if ends[0] and all(map(operator.lt, ends, ends[1:])):
        return
    broken = next(i for i, end in enumerate(ends) if end <= (ends[i - 1] if i else 0))
    raise FormatError(
        f"dynamic index: entry {broken} ends at {ends[broken]}, not behind the one before"
    )
