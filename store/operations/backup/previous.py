"""The previous snapshot's tree, for metadata mode: whether it may serve, its entries by name."""

from collections.abc import Callable, Iterator

from store.datastore.archives import ChunkCache, IndexedStream, SnapshotReader
from store.datastore.snapshot_indexes import SnapshotIndexes
from store.datastore.snapshots import SnapshotWriter
from store.errors import FormatError, IntegrityError, NotFound, StoreError
from store.format.dynamic_index import DynamicIndex
from store.format.manifest import Manifest
from store.format.pxar.accessor import Accessor
from store.format.pxar.entries import Entry, EntryKind
from store.names import Digest, Snapshot
from store.operations.backup.chunks import ChunkWriter
from store.operations.backup.request import BackupRequest, BackupSource

CACHE_BYTES = 32 << 20
Warn = Callable[[str], None]


class OldDirectory:
    """A directory of the previous archive, read in step with today's: both are sorted by name."""

    __slots__ = ("_entries", "_next")

    def __init__(self, entries: Iterator[Entry]) -> None:
        self._entries = entries
        self._next = next(entries, None)

    def find(self, name: bytes) -> Entry | None:
        """The entry of this name. Names must be asked for in ascending order, none twice."""
        entry = self._next
        if entry is None or entry.name > name:
            return None
        while entry is not None and entry.name < name:
            entry = next(self._entries, None)
        self._next = entry
        return entry if entry is not None and entry.name == name else None


NOTHING = OldDirectory(iter(()))


class PreviousTree:
    """One tree of the previous snapshot. Damage in it costs reading files again, nothing else."""

    def __init__(
        self, metadata: IndexedStream, payload: DynamicIndex, chunks: ChunkWriter, on_damage: Warn
    ) -> None:
        self.payload = payload
        self._metadata, self._accessor = metadata, Accessor(metadata)
        self._chunks, self._on_damage = chunks, on_damage
        self._is_whole = True

    def root(self) -> OldDirectory:
        return OldDirectory(self._until_damage(self._accessor.root()))

    def directory(self, entry: Entry | None) -> OldDirectory:
        """The entries of a directory; none if there was no such directory."""
        if entry is None or entry.kind is not EntryKind.DIRECTORY:
            return NOTHING
        return OldDirectory(self._until_damage(entry))

    def _until_damage(self, directory: Entry) -> Iterator[Entry]:
        try:
            yield from self._accessor.iterate(directory)
        except StoreError as error:
            self._on_damage(f"previous snapshot: {error}; files there are read again")
            if self._is_whole:
                self._is_whole = False
                self._chunks.distrust(_damaged_chunks(self._metadata))


def _damaged_chunks(stream: IndexedStream) -> Iterator[Digest]:
    """The chunks of a stream that are there but can't be decoded.

    Nothing but their content tells them from good ones, so a backup that names one would be as
    damaged as the one before.
    """
    index = stream.index
    for position in range(len(index)):
        start, end = index.range(position)
        digest = index.digest(position)
        try:
            stream.reader.read(digest, end - start)
        except (IntegrityError, FormatError):
            yield digest


def open_previous(
    request: BackupRequest,
    writer: SnapshotWriter,
    source: BackupSource,
    chunks: ChunkWriter,
    on_warning: Warn,
) -> PreviousTree | None:
    """The same archive in the group's newest snapshot, if its payload can be used again.

    It must be sound, of the same key and crypt mode, and with a key signed by it: what is taken
    over is not read, so nobody else may have written it.
    """
    if writer.previous is None or writer.previous_indexes is None:
        _explain_none(request, on_warning)
        return None
    try:
        return _open(request, writer.previous, writer.previous_indexes, source, chunks, on_warning)
    except NotFound:
        return None  # the archive is new, or was written in one stream
    except StoreError as error:
        text = f"{writer.previous} does not serve: {error}"
        on_warning(f"{source.archive}: every file is read, {text}")
        return None


def _open(
    request: BackupRequest,
    snapshot: Snapshot,
    indexes: SnapshotIndexes,
    source: BackupSource,
    chunks: ChunkWriter,
    on_warning: Warn,
) -> PreviousTree | None:
    reader = SnapshotReader(
        request.datastore,
        request.namespace,
        snapshot,
        request.key,
        ChunkCache(CACHE_BYTES),
        manifest=indexes.manifest,
        indexes=indexes,
    )
    info = reader.manifest.file(f"{source.name}.ppxar.didx")
    reason = _why_not(reader.manifest, snapshot, request)
    if info.crypt_mode != request.crypt_mode:
        reason = f"its crypt mode is {info.crypt_mode}, not {request.crypt_mode}"
    if reason:
        on_warning(f"{source.archive}: every file is read, {snapshot} does not serve: {reason}")
        return None
    metadata, payload = reader.open_streams(source.archive)
    if payload is None or not isinstance(payload.index, DynamicIndex):
        return None
    try:
        return PreviousTree(metadata, payload.index, chunks, on_warning)
    except StoreError:
        chunks.distrust(_damaged_chunks(metadata))
        raise


def _why_not(manifest: Manifest, snapshot: Snapshot, request: BackupRequest) -> str | None:
    state = manifest.unprotected.get("verify_state")
    if isinstance(state, dict) and state.get("state") == "failed":
        return "its verification failed"
    if manifest.snapshot != snapshot:
        return f"its manifest is that of {manifest.snapshot}"
    if request.key is not None and manifest.signature is None:
        return "its manifest is not signed"
    return None


def _explain_none(request: BackupRequest, on_warning: Warn) -> None:
    """A group may have snapshots, and the newest be no good."""
    found = request.datastore.list_snapshots(request.namespace, request.group)
    if found:
        on_warning(f"every file is read: {found[-1]} can't be read, or its verification failed")


def is_unchanged(entry: Entry, metadata: bytes, size: int) -> bool:
    """Whether an entry of the previous archive is a regular file of the same metadata and size.

    Metadata is compared byte for byte, values of extended attributes too.
    """
    return entry.kind is EntryKind.FILE and entry.raw_metadata == metadata and entry.size == size
