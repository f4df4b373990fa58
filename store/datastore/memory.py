"""How much memory an operation may use for chunks."""

from dataclasses import dataclass
from typing import Self

DEFAULT_MEMORY = 256 << 20


@dataclass(frozen=True, slots=True)
class Memory:
    """What one backup or restore may keep in memory for chunks, in bytes, and its shares.

    One chunk always passes, however small the shares are.
    """

    total: int = DEFAULT_MEMORY

    @classmethod
    def of(cls, datastore: object) -> Self:
        """As the datastore is configured (`memory_bytes`)."""
        return cls(getattr(datastore, "memory_bytes", DEFAULT_MEMORY))

    @property
    def in_flight(self) -> int:
        """Chunks that workers have in their hands, plain and encoded; clients may copy them."""
        return self.total * 3 // 8

    @property
    def ahead(self) -> int:
        """Decoded chunks that wait for the reader of one stream; a tree is read as two."""
        return self.total // 4

    @property
    def listed(self) -> int:
        """What an object store said of the chunks it has."""
        return self.total // 4
