"""What both kinds of index have in common: the header's start, and what a reader asks of them."""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from store.errors import FormatError
from store.format.buffer import Buffer
from store.names import Digest

HEADER_SIZE = 4096
DIGEST_SIZE = 32
UUID_SIZE = 16
# What a file offset can say, here and in PBS (i64).
MAX_ARCHIVE_SIZE = 2**63 - 1
SEARCHED_AT_ONCE = 1 << 15
"""Entries; about a millisecond."""
HEADER_START = struct.Struct("<8s16sq32s")


class HeaderStart(NamedTuple):
    """The first 64 bytes: magic 8 | uuid 16 | ctime i64 | csum 32.

    `ctime` is in seconds since the epoch; `csum` is the body's SHA-256, which readers recompute.
    """

    magic: bytes
    uuid: bytes
    ctime: int
    csum: bytes


class Index(Protocol):
    """An archive's chunks in order: a digest and the range of bytes it covers. Thread-safe."""

    uuid: bytes
    ctime: int
    header_csum: bytes

    @property
    def size(self) -> int:
        """Length of the archive in bytes."""

    def __len__(self) -> int:
        """Number of chunks, at least 1."""

    def digest(self, position: int) -> Digest:
        """Name of the chunk at `position` (0 …). Raises IndexError."""

    def range(self, position: int) -> tuple[int, int]:
        """Start and exclusive end of that chunk in the archive. Raises IndexError."""

    def position(self, offset: int) -> int:
        """Which chunk holds the byte at `offset`. Raises IndexError outside 0 … size - 1."""

    def digests(self) -> Iterator[Digest]:
        """All names, in order."""

    def runs_of(self, digest: Digest) -> Iterator[tuple[int, int]]:
        """Where chunks of this name are: first and exclusive last position, rising.

        Neighbours may come as one run or as several.
        """

    def csum(self) -> bytes:
        """SHA-256 of the body, computed now: compare it with the manifest's, not the header's."""


def open_body(
    raw: Buffer, magic: bytes, entry_size: int, kind: str
) -> tuple[HeaderStart, memoryview]:
    """Check the frame of an index file; return its header and its body (a view, no copy).

    Raises FormatError: another magic, shorter than its header, no entries, or cut inside an entry.
    """
    view = memoryview(raw)
    if len(view) < HEADER_SIZE:
        raise FormatError(
            f"{kind} index of {len(view)} bytes: shorter than its header ({HEADER_SIZE})"
        )
    header = HeaderStart._make(HEADER_START.unpack_from(view))
    if header.magic != magic:
        raise FormatError(
            f"not a {kind} index: it starts with {header.magic.hex()}, expected {magic.hex()}"
        )
    body = view[HEADER_SIZE:]
    if not len(body) or len(body) % entry_size:
        raise FormatError(
            f"{kind} index of {len(view)} bytes: not {HEADER_SIZE} + n * {entry_size}, n at least 1"
        )
    return header, body


def pack_header(magic: bytes, uuid: bytes, ctime: int, csum: bytes, rest: bytes = b"") -> bytes:
    """Return the 4096 header bytes. Raises ValueError unless `uuid` has 16 bytes."""
    if len(uuid) != UUID_SIZE:
        raise ValueError(f"a UUID has {UUID_SIZE} bytes, not {len(uuid)}")
    return (HEADER_START.pack(magic, uuid, ctime, csum) + rest).ljust(HEADER_SIZE, b"\0")


def check_position(position: int, count: int) -> None:
    """Raise IndexError unless 0 <= position < count: no negative positions, they would be bugs."""
    if not 0 <= position < count:
        raise IndexError(f"chunk {position} of {count}")


def find_runs(
    body: memoryview, entry_size: int, digest_at: int, digest: Digest
) -> Iterator[tuple[int, int]]:
    """Search the entries of an index for a digest, without a Python step for each of them.

    Args:
        entry_size, digest_at: how long an entry is, and where its digest is in it; bytes.
    Returns:
        As `Index.runs_of`.
    """
    gap = entry_size - DIGEST_SIZE
    escaped = re.escape(bytes(digest))
    # Possessive: a run of a million entries must not be remembered step by step.
    runs = re.compile(escaped + b"(?:.{%d}" % gap + escaped + b")*+", re.DOTALL)
    step = SEARCHED_AT_ONCE * entry_size
    for start in range(0, len(body), step):
        position = start
        while found := runs.search(body, position, start + step):
            first, odd = divmod(found.start() - digest_at, entry_size)
            if odd:  # across two entries: nothing but a coincidence, or malice
                position = found.start() + 1
                continue
            yield first, first + (found.end() - found.start() + gap) // entry_size
            position = found.end()
