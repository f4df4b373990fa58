"""The catalog of a snapshot: names, sizes, times of its legacy archives, in its own stream."""

from store.datastore.snapshots import DynamicIndexFile
from store.format.catalog import CatalogWriter
from store.format.chunker import ChunkStream
from store.operations.backup.chunks import ChunkPool, IndexedSink

CATALOG_CHUNK_SIZE = 512 << 10


class CatalogFile:
    """The snapshot's one catalog, which all its tree archives of legacy mode share."""

    def __init__(self, pool: ChunkPool, index: DynamicIndexFile) -> None:
        self.writer = CatalogWriter()
        self._sink = IndexedSink(pool, index)
        self.stream = ChunkStream(self._sink.emit, CATALOG_CHUNK_SIZE)
        self.stream.write(self.writer.start())

    def close(self) -> tuple[bytes, int]:
        """Write the root block; returns the index's checksum and the stream's size."""
        self.stream.write(self.writer.finish())
        self.stream.finish()
        return self._sink.close(), self._sink.size
