"""What a disk image is made of: parts, and where their bytes lie."""

import logging
from bisect import bisect_right
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import NamedTuple, Protocol

from store.errors import FormatError
from store.format.buffer import ReadAt
from store.trees.base import FileTree

log = logging.getLogger(__name__)


class State(StrEnum):
    """Whether what a part's file system shows is what its guest wrote last."""

    CLEAN = "clean"
    UNCLEAN = "unclean"
    """It was in use: its journal has to be replayed before it is shown."""
    LOCKED = "locked"
    """Encrypted by the guest, and no key given opens it."""
    UNREADABLE = "unreadable"
    """Not a file system, or none that is known."""


class Segment(NamedTuple):
    """`size` bytes of an image from `start` on."""

    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Part:
    """A partition or logical volume.

    name: `part1`, by its number in the partition table; logical volumes have the numbers behind.
    kind: `ext4`, `xfs`, `btrfs`, `ntfs`, `fat`, `exfat`, `swap`, `lvm2-pv`, `luks`, `bitlocker`,
        None for what nobody knows.
    segments: where its bytes are in the image, in order.
    links: other names of it: its file system's label, `VG-LV`. Safe as names, and its alone.
    state: as the disk tells; never LOCKED here when a key opened it.
    detail: one line for people: why it is not clean, or not readable.
    """

    name: str
    kind: str | None
    segments: tuple[Segment, ...]
    links: tuple[str, ...] = ()
    state: State = State.CLEAN
    detail: str = ""

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(segment.size for segment in self.segments)


class GuestTree(FileTree, Protocol):
    """A FileTree that holds a process, or memory: it is closed when nobody needs it."""

    def close(self) -> None:
        """Let go of everything. What is asked afterwards is answered with IntegrityError."""


class Omitted:
    """Told of names that no file can have, which are left out of a tree: one WARNING for all."""

    def __init__(self, name: str) -> None:
        self._name, self._level = name, logging.WARNING

    def __call__(self, file: bytes) -> None:
        log.log(self._level, "%s: a file of the name %r is left out", self._name, file[:64])
        self._level = logging.DEBUG


class SegmentStream:
    """The bytes of a part, as a ReadAt. As thread-safe as what it is made of."""

    def __init__(self, image: ReadAt, segments: tuple[Segment, ...], name: str = "part") -> None:
        self.image, self._segments, self._name = image, segments, name
        self._ends = [*accumulate(segment.size for segment in segments)]
        self.size = self._ends[-1] if self._ends else 0

    @property
    def name(self) -> str:
        """Of the part, for messages."""
        return self._name

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`. Raises FormatError past the end."""
        pieces = [self.image.read(*piece) for piece in self.pieces(offset, size)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def pieces(self, offset: int, size: int) -> list[Segment]:
        """Where in the image a range is. Raises FormatError past the end."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise FormatError(
                f"{self._name}: {size} bytes at {offset} reach past the end ({self.size})"
            )
        found, number = [], bisect_right(self._ends, offset)
        while size:
            segment, end = self._segments[number], self._ends[number]
            length = min(size, end - offset)
            found.append(Segment(segment.start + segment.size - (end - offset), length))
            offset, size, number = offset + length, size - length, number + 1
        return found

    def prefetch(self, offset: int) -> None:
        """Start loading what is at `offset`, if the image can; a hint."""
        hint = getattr(self.image, "prefetch", None)
        if hint is not None and 0 <= offset < self.size:
            hint(self.pieces(offset, 1)[0].start)
