"""What the parser of a file system answers, whatever the file system."""

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

HOLE = -1
MAX_RUNS = 100_000


class BadFile(Exception):
    """The disk says what cannot be, or what this parser does not know; one line for people."""


class NoKey(BadFile):
    """The disk is encrypted, and none of the keys given opens it."""


class Run(NamedTuple):
    """`size` bytes of a file, which lie at `start` of the file system, or nowhere (HOLE)."""

    start: int
    size: int


@dataclass(slots=True)
class Inode:
    """One file, by its number: below 2^46, never 0, and the same each time the disk is read."""

    number: int
    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    links: int = 1
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


class FileSystem(Protocol):
    """A file system opened for reading. One thread; whatever is wrong raises, anything at all."""

    def root(self) -> int:
        """The number of the root directory."""

    def inode(self, number: int) -> Inode:
        """What there is to know of a file."""

    def names(self, number: int) -> Iterator[tuple[bytes, int]]:
        """Names in a directory and the numbers behind them, without `.` and `..`."""

    def runs(self, number: int) -> list[Run] | None:
        """Where a file's content is, in order and without a gap; None: only `read` knows."""

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Up to `size` bytes of a file whose `runs` are None."""


class Blocks(Protocol):
    """The bytes that are parsed. Reads past the end are cut, as files do it."""

    size: int

    def pread(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`."""


def exactly(blocks: Blocks, offset: int, size: int) -> bytes:
    """All of `size` bytes at `offset`, or BadFile."""
    data = blocks.pread(offset, size)
    if len(data) != size:
        raise BadFile(f"{size} bytes at {offset} reach past the end of the disk ({blocks.size})")
    return data


def readable(xattrs: Iterator[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
    """All of them, or none: a file is worth more than its broken attributes."""
    try:
        return tuple(xattrs)
    except (BadFile, struct.error, IndexError, EOFError, ValueError):
        return ()


def joined(runs: Iterator[Run] | list[Run], size: int) -> list[Run]:
    """Runs with neighbours merged, cut or filled up (with a hole) to `size` bytes."""
    found: list[Run] = []
    left = size
    for start, length in runs:
        if left <= 0:
            break
        length = min(length, left)
        left -= length
        last = found[-1] if found else None
        if last is not None and (
            last.start == start == HOLE or (last.start != HOLE and last.start + last.size == start)
        ):
            found[-1] = Run(last.start, last.size + length)
        elif length:
            found.append(Run(start, length))
        if len(found) > MAX_RUNS:
            raise BadFile(f"a file in more than {MAX_RUNS} pieces")
    if left > 0:
        if found and found[-1].start == HOLE:
            found[-1] = Run(HOLE, found[-1].size + left)
        else:
            found.append(Run(HOLE, left))
    return found


def read_runs(blocks: Blocks, runs: list[Run], offset: int, size: int) -> bytes:
    """A range of what lies in `runs`."""
    parts, position = [], 0
    for start, length in runs:
        if size <= 0:
            break
        if offset < position + length:
            skip = offset - position
            take = min(size, length - skip)
            parts.append(bytes(take) if start == HOLE else exactly(blocks, start + skip, take))
            offset, size = offset + take, size - take
        position += length
    return b"".join(parts)
