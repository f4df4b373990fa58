"""Disk images with a few bytes changed, where a parser looks."""

import random
import struct
from collections.abc import Sequence

from store.errors import FormatError, StoreError
from store.format.buffer import ReadAt
from store.format.pxar.entries import Entry, EntryKind, name_is_valid
from store.trees.base import FileTree

EDGES = (0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000,
         0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)  # fmt: skip
FORMATS = (">B", "<H", ">H", "<I", ">I", "<Q", ">Q")


class Recorded:
    """A stream that notes which pieces of it were read."""

    def __init__(self, stream: ReadAt) -> None:
        self._stream, self.size = stream, stream.size
        self.reads: set[tuple[int, int]] = set()

    def read(self, offset: int, size: int) -> bytes:
        self.reads.add((offset, size))
        return self._stream.read(offset, size)


class Mutated:
    """A stream with some bytes changed."""

    def __init__(self, stream: ReadAt, changes: dict[int, bytes]) -> None:
        self._stream, self.size = stream, stream.size
        self._changes = changes

    def read(self, offset: int, size: int) -> bytes:
        data = bytearray(self._stream.read(offset, size))
        for place, value in self._changes.items():
            for index, byte in enumerate(value):
                if offset <= place + index < offset + size:
                    data[place + index - offset] = byte
        return bytes(data)


def mutate(stream: ReadAt, reads: Sequence[tuple[int, int]], seed: str) -> Mutated:
    """Change bytes in places that were read: single ones anywhere, and whole numbers to the values
    that break sums, beside numbers that are not zero."""
    rng = random.Random(seed)
    changes: dict[int, bytes] = {}
    for _ in range(rng.choice((1, 2, 8, 60))):
        start, size = rng.choice(reads)
        data = stream.read(start, min(size, 1 << 20))
        used = [at for at in rng.sample(range(len(data)), min(400, len(data))) if data[at]]
        at = rng.choice(used or [0])
        if rng.random() < 0.5:
            changes[start + at] = bytes([data[at] ^ 1 << rng.randrange(8)])
        else:
            form = rng.choice(FORMATS)
            width = struct.calcsize(form)
            value = rng.choice(EDGES) & (1 << 8 * width) - 1
            at = min(at // width * width, len(data) - width)
            changes[start + at] = struct.pack(form, value)
    return Mutated(stream, changes)


class Walk:
    """Everything in a tree that can be read; what cannot is counted.

    Raises AssertionError for a name that leads out of its directory, and lets anything through that
    is no StoreError.
    """

    def __init__(self, tree: FileTree, entries: int = 3000, size: int = 4 << 20) -> None:
        self.errors: list[str] = []
        self.found = 0
        self._tree, self._left, self._size = tree, entries, size
        self._seen: set[int] = set()
        self._enter(tree.root(), 0)

    def _enter(self, directory: Entry, depth: int) -> None:
        if directory.offset in self._seen or depth > 200:
            return
        self._seen.add(directory.offset)
        directories = []
        try:
            for entry in self._tree.iterate(directory):
                assert name_is_valid(entry.name)
                self.found, self._left = self.found + 1, self._left - 1
                if self._left < 0:
                    return
                if entry.kind is EntryKind.DIRECTORY:
                    directories.append(entry)
                elif entry.kind is EntryKind.FILE:
                    self._read(entry)
        except StoreError as error:
            self.errors.append(str(error))
        for child in directories:
            self._enter(child, depth + 1)

    def _read(self, entry: Entry) -> None:
        try:
            again = self._tree.entry_at(entry.offset)
            if again.kind is not entry.kind:
                raise FormatError("another one")
            size = min(entry.size, self._size)
            if len(self._tree.read(entry, 0, size)) != size:
                raise AssertionError(f"{entry!r} is shorter than it says")
            self._tree.read(entry, max(0, entry.size - 4096), 4096)
        except StoreError as error:
            self.errors.append(str(error))
