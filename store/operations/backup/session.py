"""One snapshot on its way: its files, in order, and the manifest that names them.

A backup fills it from the source's trees and disks, the sealing of a head from what changed.
"""

import hashlib
import os
from collections.abc import Callable

from store.datastore.datastore import Datastore
from store.datastore.memory import Memory
from store.datastore.snapshots import DynamicIndexFile, SnapshotWriter
from store.format.blob import encode_blob
from store.format.chunker import ChunkStream, PayloadStream
from store.format.crypt import CryptConfig
from store.format.dynamic_index import DynamicIndex
from store.format.manifest import CryptMode, FileInfo, Manifest
from store.operations.backup.archive import SplitArchive
from store.operations.backup.chunks import ChunkPool, ChunkWriter, IndexedSink
from store.operations.backup.reuse import PayloadReuse


class SnapshotSession:
    """What is written into one snapshot. The order of calls is that of the manifest's files.

    Attributes:
        chunks: where chunks go, and how many were new.
        files: those finished.
    """

    def __init__(
        self,
        datastore: Datastore,
        writer: SnapshotWriter,
        key: CryptConfig | None,
        crypt_mode: CryptMode,
    ) -> None:
        """`key`: to encrypt or to sign with, as `crypt_mode` says; None with NONE alone."""
        self.writer, self.key, self.crypt_mode = writer, key, crypt_mode
        chunk_key = key if crypt_mode is CryptMode.ENCRYPT else None
        self.chunks = ChunkWriter(writer, datastore.chunks, chunk_key, Memory.of(datastore))
        self.files: list[FileInfo] = []

    def add(self, filename: str, csum: bytes, size: int) -> None:
        """Note a file that is finished, for the manifest."""
        self.files.append(FileInfo(filename, self.crypt_mode, size, csum))

    def add_blob(
        self, filename: str, plain: bytes, *, encrypted: bool, compress: bool = True
    ) -> None:
        """Store a small file."""
        key = self.key if encrypted else None
        blob = encode_blob(plain, key, iv=os.urandom(16) if key else None, compress=compress)
        self.writer.add_blob(filename, blob)
        self.add(filename, hashlib.sha256(blob).digest(), len(blob))

    def add_split_tree(
        self,
        name: str,
        pool: ChunkPool,
        fill: Callable[[SplitArchive], None],
        *,
        chunk_size: int,
        prelude: bytes | None = None,
        previous: DynamicIndex | None = None,
        payload_growth: float = 1.0,
        any_order: bool = False,
    ) -> int:
        """Store a tree as `NAME.mpxar` and `NAME.ppxar`.

        Args:
            name: of the archive, without an ending.
            pool: of threads for its chunks.
            fill: called with the archive, writes all of it.
            chunk_size: the average of new chunks, bytes.
            prelude: of the metadata stream.
            previous: payload index whose chunks may be used again.
            payload_growth, any_order: see `PayloadReuse`.
        Returns:
            Bytes of files that were used again.
        """
        payload_name, metadata_name = f"{name}.ppxar.didx", f"{name}.mpxar.didx"
        payload_sink = IndexedSink(pool, self.index(payload_name))
        sink = IndexedSink(pool, self.index(metadata_name))
        payload = PayloadStream(payload_sink.emit, payload_sink.emit_known, chunk_size)
        reuse = None
        if previous is not None:
            reuse = PayloadReuse(
                previous, payload, self.chunks, payload_growth, any_order=any_order
            )
        archive = SplitArchive(ChunkStream(sink.emit, chunk_size), payload, prelude, reuse)
        fill(archive)
        self.add(payload_name, payload_sink.close(), payload_sink.size)
        self.add(metadata_name, sink.close(), sink.size)
        return archive.reused_bytes

    def index(self, filename: str) -> DynamicIndexFile:
        """Start the index of a stream."""
        return self.writer.create_dynamic_index(filename)

    def finish(self) -> None:
        """Announce the snapshot."""
        manifest = Manifest(self.writer.snapshot, tuple(self.files), None, {})
        self.writer.finish(manifest.signed(self.key) if self.key else manifest)
