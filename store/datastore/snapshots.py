"""Writing a snapshot: from nothing to a finished one, or back to nothing."""

import hashlib
import threading
from typing import Self

from store.backends.base import Backend
from store.datastore import manifests, namespaces, owners
from store.datastore.beginning import Beginning
from store.datastore.chunk_store import ChunkStore, InsertResult, SyncLevel
from store.datastore.digest_hints import Candidates
from store.datastore.index_files import DynamicIndexFile, FixedIndexFile, fixed_index_size
from store.datastore.known_chunks import KnownChunks
from store.datastore.memory import Memory
from store.datastore.workers import at_once
from store.errors import (
    AlreadyExists,
    IntegrityError,
    InvalidName,
)
from store.format.blob import encode_blob
from store.format.buffer import Buffer
from store.format.fixed_index import CHUNK_SIZE
from store.format.manifest import Manifest
from store.names import (
    CLIENT_LOG_BLOB_NAME,
    MANIFEST_BLOB_NAME,
    Digest,
    Namespace,
    Snapshot,
    check_file_name,
)

__all__ = ["DynamicIndexFile", "FixedIndexFile", "SnapshotWriter", "SyncLevel", "begin_snapshot"]

REMEMBERED_CHUNKS = 1 << 18


class UploadStatistics:
    """PBS's `chunk_upload_stats` (spec 7.3). Thread-safe.

    Each chunk counts once; to know, we remember the last quarter million, which is 1 TiB, in about
    20 MB.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[bytes, None] = {}
        self.count = self.duplicates = self.size = self.compressed_size = 0

    def add_chunk(self, digest: Digest, plain_size: int, stored_size: int, *, new: bool) -> None:
        with self._lock:
            if digest in self._seen:
                return
            self._seen[digest] = None
            if len(self._seen) > REMEMBERED_CHUNKS:
                del self._seen[next(iter(self._seen))]
            self.count += 1
            self.duplicates += not new
            self.size += plain_size
            self.compressed_size += stored_size

    def add_blob(self, encoded_size: int) -> None:
        with self._lock:
            self.size += encoded_size

    def as_json(self) -> dict[str, int]:
        return {
            "compressed_size": self.compressed_size,
            "count": self.count,
            "duplicates": self.duplicates,
            "size": self.size,
        }


class SnapshotWriter:
    """One snapshot being written; made by `Datastore.begin_snapshot`, to be used in a `with`.

    No reader sees it before `finish`. Leaving the `with` in any other way removes it, and the group
    if it is new; chunks stay, unreferenced, for garbage collection. Chunk methods are thread-safe,
    the others are for one thread. A process that dies leaves a directory without a manifest, which
    the group's next writer removes.
    """

    def __init__(
        self,
        backend: Backend,
        chunks: ChunkStore,
        begun: Beginning,
        namespace: Namespace,
        snapshot: Snapshot,
        previous: Snapshot | None,
        sync_level: SyncLevel,
        known: KnownChunks | None,
    ) -> None:
        """`begun` holds the locks, and undoes the beginning until `finish` tells it not to.

        `known`: of an object store, which chunks it has.
        """
        self.namespace, self.snapshot, self.previous = namespace, snapshot, previous
        self.previous_indexes = begun.previous_indexes
        self._backend, self._chunks, self._begun = backend, chunks, begun
        self._known = known
        self._sync_level = sync_level
        self._durable = sync_level is SyncLevel.FILE
        self._files: dict[str, FixedIndexFile | DynamicIndexFile | None] = {}
        self._statistics = UploadStatistics()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self.close(error)

    @property
    def files(self) -> list[str]:
        """The files written so far, in order."""
        return list(self._files)

    def add_blob(self, filename: str, encoded: Buffer) -> bytes:
        """Store an encoded blob and return its csum (SHA-256 of `encoded`).

        Raises InvalidName, AlreadyExists (the file is in the snapshot), OutOfSpace, BackendError.
        """
        path = self._claim(filename, ".blob")
        self._backend.write(path, (encoded,), durable=self._durable)
        self._files[filename] = None
        self._statistics.add_blob(len(encoded))
        return hashlib.sha256(encoded).digest()

    def create_fixed_index(self, filename: str, size: int) -> FixedIndexFile:
        """Start the index of an image of `size` bytes (at least 1), in chunks of 4 MiB.

        Raises InvalidName, AlreadyExists, IntegrityError (size), OutOfSpace: the room is reserved
        now.
        """
        path = self._claim(filename, ".fidx")
        room = fixed_index_size(size, CHUNK_SIZE)
        file = self._backend.create_temporary(path, _temporary(path), room)
        try:
            index = FixedIndexFile(file, size, durable=self._durable)
        except BaseException:
            file.discard()
            raise
        self._files[filename] = index
        return index

    def create_dynamic_index(self, filename: str) -> DynamicIndexFile:
        """Start the index of a stream.

        Raises InvalidName, AlreadyExists, OutOfSpace, BackendError.
        """
        path = self._claim(filename, ".didx")
        file = self._backend.create_temporary(path, _temporary(path))
        index = DynamicIndexFile(file, durable=self._durable)
        self._files[filename] = index
        return index

    def _claim(self, filename: str, extension: str) -> str:
        """The path for a new file of the snapshot."""
        if not filename.endswith(extension):
            raise InvalidName(f"backup file {filename!r}: its name should end in {extension}")
        if filename == MANIFEST_BLOB_NAME:
            raise InvalidName(f"{filename} is written by finish()")
        if check_file_name(filename) in self._files:
            raise AlreadyExists(f"snapshot {self.snapshot} already has {filename!r}")
        return manifests.file_path(self.namespace, self.snapshot, filename)

    def touch_chunk(self, digest: Digest, *, sure: bool = True) -> bool:
        """Whether the datastore has this chunk; if so it is kept for us from now on.

        Unless `sure`, False may also mean that storing it is the cheapest way to know. Thread-safe.
        """
        if self._known is None:
            return self._chunks.touch(digest) is not None
        return self._known.confirm(digest) if sure else self._known.find(digest)

    def insert_chunk(self, digest: Digest, header: Buffer, body: Buffer, plain_size: int) -> bool:
        """Store an encoded chunk; True if it is new. Thread-safe. Errors as ChunkStore.insert."""
        result = self._chunks.insert(digest, header, body, durable=self._durable)
        return self._note_chunk(digest, plain_size, result)

    def replace_chunk(
        self, digest: Digest, header: Buffer, body: Buffer, plain_size: int, bad: Buffer
    ) -> None:
        """Store an encoded chunk over a damaged one; see ChunkStore.replace. Thread-safe."""
        result = self._chunks.replace(digest, header, body, bad, durable=self._durable)
        self._note_chunk(digest, plain_size, result)

    def _note_chunk(self, digest: Digest, plain_size: int, result: InsertResult) -> bool:
        new, stored_size = result
        self._statistics.add_chunk(digest, plain_size, stored_size, new=new)
        if self._known is not None:
            self._known.stored(digest, new=new)
        return new

    def finish(self, manifest: Manifest) -> Manifest:
        """Make the snapshot visible, and by the sync level durable.

        Returns the manifest as written.

        Chunks, indexes and blobs are on disk before the manifest gets its name, and the manifest
        when this returns.

        Raises:
            IntegrityError: the manifest is for another snapshot, or names files that are not there
                or not closed.
            Locked: a lock was lost, where they are leases. The snapshot is not there.
            StoreError: the storage failed; the snapshot is not there, and leaving the `with`
                removes its files.
        """
        self._check(manifest)
        self._statistics.add_blob(len(encode_blob(manifest.encode())))
        complete = manifest.with_unprotected(chunk_upload_stats={**self._statistics.as_json()})
        self._sync()
        manifests.publish_manifest(
            self._backend,
            self.namespace,
            self.snapshot,
            complete,
            self._begun.check_locks,
            durable=self._durable,
        )
        self._sync()
        self._begun.finished = True
        self.close()
        if self._known is not None:
            self._known.remember()
        return complete

    def _check(self, manifest: Manifest) -> None:
        if manifest.snapshot != self.snapshot:
            raise IntegrityError(
                f"the manifest of {manifest.snapshot} can't be that of {self.snapshot}"
            )
        unfinished = [
            name for name, index in self._files.items() if index is not None and not index.closed
        ]
        listed = {info.filename for info in manifest.files}
        written = set(self._files) - {CLIENT_LOG_BLOB_NAME}
        wrong = sorted(listed ^ written) + unfinished
        if wrong:
            raise IntegrityError(
                f"snapshot {self.snapshot}: manifest and files differ in {wrong[0]!r}"
            )

    def _sync(self) -> None:
        if self._sync_level is SyncLevel.FILESYSTEM:
            self._backend.sync()

    def close(self, error: BaseException | None = None) -> None:
        """Release the locks; unless the snapshot is finished it is removed first.

        Because of an interrupt, or an `error` of the storage that was retried, that takes some
        seconds at most: what can't be removed in those is left to the group's next writer.
        A second call does nothing.
        """
        try:
            for index in self._files.values():
                if index is not None:
                    index.discard()
        finally:
            self._begun.close(error)


def _temporary(path: str) -> str:
    """`x.img.fidx` -> `x.img.tmp_fidx`: PBS's name for an index that is not whole yet."""
    stem, _, extension = path.rpartition(".")
    return f"{stem}.tmp_{extension}"


def begin_snapshot(
    backend: Backend,
    chunks: ChunkStore,
    namespace: Namespace,
    snapshot: Snapshot,
    *,
    owner: str | None,
    sync_level: SyncLevel,
    memory: Memory,
) -> SnapshotWriter:
    """Start a snapshot; see `Datastore.begin_snapshot`."""
    namespaces.check_namespace(backend, namespace)
    if owner is not None:
        owners.check_owner(owner)
    begun = Beginning(backend, namespace, snapshot, durable=sync_level is SyncLevel.FILE)
    try:
        known = None
        at_once(backend, begun.lock_store, begun.lock_group)
        if backend.is_object_store:
            candidates = Candidates(backend.location, begun.previous_digests)
            known = KnownChunks(backend, candidates, memory.listed)
            at_once(backend, begun.read_owner, begun.list_snapshots, known.begin)
        else:
            begun.read_owner()
        begun.open_group(owner)
        previous = begun.find_previous()
        begun.make_directory()
        return SnapshotWriter(
            backend, chunks, begun, namespace, snapshot, previous, sync_level, known
        )
    except BaseException as error:
        begun.close(error)
        raise
