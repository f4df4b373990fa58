"""Encoded chunks by number, and a store of them that counts what is read."""

import random
from collections.abc import Iterable
from typing import NamedTuple

from store.backends.memory import MemoryBackend
from store.backends.wrappers.wrapper import Wrapper
from store.format.blob import encode_blob
from store.format.crypt import chunk_digest


class Chunk(NamedTuple):
    """The object of a chunk: `.chunks/0123/0123…`, and its bytes."""

    name: str
    raw: bytes


def chunk(number: int, size: int = 4000) -> Chunk:
    """The chunk with that number, always the same: `size` bytes of noise, and a header."""
    plain = random.Random(number).randbytes(size)
    text = chunk_digest(plain, None).hex()
    return Chunk(f".chunks/{text[:4]}/{text}", encode_blob(plain))


class ChunkSource(Wrapper):
    """A store in memory that holds `chunks` and lists the names that were read from it."""

    def __init__(self, chunks: Iterable[Chunk] = (), location: str = "memory") -> None:
        super().__init__(MemoryBackend(location))
        self.create()
        for one in chunks:
            self.add(one)
        self.asked: list[str] = []

    def add(self, one: Chunk) -> None:
        self.mkdir(one.name.rpartition("/")[0])
        self.write(one.name, (one.raw,))

    def read(self, name: str) -> bytes:
        self.asked.append(name)
        return super().read(name)

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        self.asked.append(name)
        return super().read_range(name, offset, size)
