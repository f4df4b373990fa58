"""The previous snapshot's tree, for metadata mode: whether it may serve, its entries by name."""

from array import array
from collections.abc import Callable, Iterator
from typing import NamedTuple

from store import native
from store.datastore.archives import ChunkCache, IndexedStream, SnapshotReader
from store.datastore.snapshot_indexes import SnapshotIndexes
from store.datastore.snapshots import SnapshotWriter
from store.errors import FormatError, IntegrityError, NotFound, StoreError
from store.format.dynamic_index import DynamicIndex
from store.format.manifest import Manifest
from store.format.pxar.accessor import Accessor, Children
from store.format.pxar.entries import Entry, EntryKind
from store.names import Digest, Snapshot
from store.operations.backup.chunks import ChunkWriter
from store.operations.backup.listing import KIND_SIZE
from store.operations.backup.request import BackupRequest, BackupSource

CACHE_BYTES = 32 << 20
Warn = Callable[[str], None]
Question = tuple[int, int, int, bool, bool, bool]
Compare = Callable[[list[bytes], memoryview, int, Question], tuple[bytes, bytes, bytes]]

unchanged_files: Compare | None = None  # without the C module every file is looked at by itself
if native.is_usable("store.operations._inode"):
    from store.operations import _inode

    unchanged_files = _inode.unchanged_files


class UnchangedFiles(NamedTuple):
    """Files that follow each other in the previous archive and are still so.

    offset: of the first one's items there; items: their bytes and more; for each file how many
    bytes those are, and where its payload is and how long its content.
    """

    offset: int
    items: memoryview
    lengths: "array[int]"
    payloads: "array[int]"
    sizes: "array[int]"


class OldDirectory:
    """A directory of the previous archive, read in step with today's: both are sorted by name.

    What can't be read in it is told to `on_damage` once, and is as if it were not there.
    """

    __slots__ = ("_children", "_next", "_on_damage")

    def __init__(
        self,
        children: Children | None = None,
        on_damage: Callable[[StoreError], None] | None = None,
    ) -> None:
        self._children, self._on_damage = children, on_damage
        self._next: Entry | None = None

    def find(self, name: bytes) -> Entry | None:
        """The entry of this name. Names must be asked for in ascending order."""
        entry = self._next or self._read()
        while entry is not None and entry.name < name:
            entry = self._read()
        return entry if entry is not None and entry.name == name else None

    def unchanged(self, names: list[bytes], question: Question) -> UnchangedFiles | None:
        """The files to come that are as they were; None when the next one is not.

        Args:
            names: of the directory as it is now, from `read_names`, the next one last.
            question: about the directory and its file system, for `unchanged_files`.
        """
        if unchanged_files is None or self._children is None:
            return None
        entry = self.find(names[-1][:-KIND_SIZE])
        if entry is None or entry.kind is not EntryKind.FILE:
            return None
        items, position = self._children.raw(entry)
        found = unchanged_files(names, items, position, question)
        if not found[0]:
            return None
        return UnchangedFiles(
            entry.offset, items[position:], *(array("Q", column) for column in found)
        )

    def pass_over(self, run: UnchangedFiles, count: int) -> None:
        """Go on after the first `count` files of a run."""
        assert self._children
        self._children.move_to(run.offset + sum(run.lengths[:count]))
        self._next = None

    def _read(self) -> Entry | None:
        self._next = None
        if self._children is not None:
            try:
                self._next = next(self._children, None)
            except StoreError as error:
                assert self._on_damage
                self._on_damage(error)
            if self._next is None:
                self._children = None
        return self._next


NOTHING = OldDirectory()


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
        return self._open(self._accessor.root())

    def directory(self, entry: Entry | None) -> OldDirectory:
        """The entries of a directory; none if there was no such directory."""
        if entry is None or entry.kind is not EntryKind.DIRECTORY:
            return NOTHING
        return self._open(entry)

    def _open(self, directory: Entry) -> OldDirectory:
        try:
            return OldDirectory(self._accessor.children(directory), self._damaged)
        except StoreError as error:
            self._damaged(error)
            return NOTHING

    def _damaged(self, error: StoreError) -> None:
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
            stream.reader.read(digest, end - start, start)
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
