"""Content of a head that is in the datastore already, as chunks that no snapshot of its names yet.

    chunk(number, digest, size)      an extent's record is CHUNK + number

They are protected as the journal is: encrypted with the group's key if it is. `moving` says how
they get there, and what keeps them from garbage collection.
"""

from collections.abc import Iterable
from typing import NamedTuple

from store.datastore.chunk_cache import ChunkReader
from store.errors import IntegrityError
from store.format.buffer import Buffer
from store.heads.base import WouldWait
from store.heads.database import Rows
from store.heads.extents import CHUNK
from store.names import Digest

_TABLE = "CREATE TABLE IF NOT EXISTS chunk (number INTEGER PRIMARY KEY, digest BLOB, size INTEGER)"


class MovedChunk(NamedTuple):
    """A chunk as an index would name it. `record`: in the extents that it is the content of."""

    record: int
    digest: Digest
    size: int


class MovedChunks:
    """The chunks of one head. Thread-safe."""

    def __init__(self, rows: Rows, reader: ChunkReader) -> None:
        """`reader`: of the datastore's chunks, with the journal's protection."""
        self._rows, self._reader = rows, reader
        rows.execute(_TABLE)  # heads of earlier versions have none

    def read(self, record: int, *, may_wait: bool = True) -> Buffer:
        """A whole chunk. Raises WouldWait if it may not wait, else as ChunkReader.read."""
        _, digest, size = self.find(record, may_wait=may_wait)
        if may_wait:
            return self._reader.read(digest, size, 0)
        found = self._reader.peek(digest)
        if found is None:
            raise WouldWait
        return found

    def peek(self, record: int) -> Buffer | None:
        """The same if it needs not wait, else None."""
        try:
            return self.read(record, may_wait=False)
        except WouldWait:
            return None

    def find(self, record: int, *, may_wait: bool = True) -> MovedChunk:
        """What is known of a chunk. Raises WouldWait, IntegrityError."""
        found = self._rows.fetch(
            "SELECT digest, size FROM chunk WHERE number = ?", record - CHUNK, may_wait=may_wait
        )
        if not found:
            raise IntegrityError(f"head's journal: no row of chunk {record - CHUNK}")
        return MovedChunk(record, Digest(found[0][0]), found[0][1])

    def all(self) -> list[MovedChunk]:
        """Those with a row; not all of them need be in use."""
        rows = self._rows.fetch("SELECT number, digest, size FROM chunk ORDER BY number")
        return [MovedChunk(CHUNK + number, Digest(digest), size) for number, digest, size in rows]

    def next_record(self) -> int:
        """One that no chunk has."""
        return CHUNK + 1 + (self._rows.fetch("SELECT max(number) FROM chunk")[0][0] or 0)

    def add(self, chunks: Iterable[MovedChunk]) -> None:
        """Give chunks rows. Called under the journal's locks, in a transaction."""
        rows = ((record - CHUNK, bytes(digest), size) for record, digest, size in chunks)
        self._rows.execute_many("INSERT INTO chunk VALUES (?, ?, ?)", rows)

    def forget(self, records: Iterable[int]) -> None:
        """Take away rows of chunks that nobody reads. Called as `add`."""
        rows = ((record - CHUNK,) for record in records)
        self._rows.execute_many("DELETE FROM chunk WHERE number = ?", rows)
