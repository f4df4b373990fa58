"""One backup from beginning to end: chunks, then indexes, then the manifest; or nothing at all.

The order of the manifest's files is the stock client's: archives and blobs as given (payload before
metadata), then the catalog, then the wrapped key.
"""

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from store.datastore.chunk_store import CHUNKS
from store.datastore.datastore import Datastore
from store.datastore.snapshots import SnapshotWriter
from store.errors import InvalidName, SourceError
from store.format.chunker import ChunkStream
from store.format.keys import wrap_crypt_config
from store.format.manifest import CryptMode
from store.format.pxar.patterns import PatternList
from store.names import CATALOG_NAME, ENCRYPTED_KEY_BLOB_NAME
from store.operations.arenas import share_arenas
from store.operations.backup.archive import LegacyArchive, TreeArchive
from store.operations.backup.catalog import CatalogFile
from store.operations.backup.chunks import ChunkPool, IndexedSink
from store.operations.backup.content import read_small_file
from store.operations.backup.estimate import estimated
from store.operations.backup.image import backup_image
from store.operations.backup.opening import inode_of
from store.operations.backup.previous import PreviousTree, open_previous
from store.operations.backup.request import (
    BackupRequest,
    BackupResult,
    BackupSource,
    ChangeDetectionMode,
)
from store.operations.backup.session import SnapshotSession
from store.operations.backup.walk import TreeWalker, WalkReport
from store.operations.directories import Inode
from store.progress import SILENT, Progress

Warn = Callable[[str], None]


def run_backup(
    request: BackupRequest, progress: Progress = SILENT, on_warning: Warn = lambda _: None
) -> BackupResult:
    """Make the snapshot that `request` describes.

    Raises:
        SourceError: a source can't be read.
        InvalidName, AlreadyExists: the snapshot may not be made.
        Locked, PermissionDenied: another writer, another owner.
        OutOfSpace, BackendError: the storage failed.
            After any of them, and after Ctrl-C, the datastore has no trace of the snapshot but
            chunks that nothing names.
    """
    started = time.monotonic()
    share_arenas()
    for source in request.sources:
        _check_source(source)
    begin = request.datastore.begin_snapshot(
        request.namespace, request.snapshot, owner=request.owner, sync_level=request.sync_level
    )
    with begin as writer:
        session = _Session(request, writer, progress, on_warning)
        result = session.run()
    result.duration_s = time.monotonic() - started
    return result


def _check_source(source: BackupSource) -> None:
    path = Path(source.path)
    try:
        path.stat()
    except OSError as error:
        raise SourceError(f"{source.path}: {error.strerror}") from error
    if source.type == "pxar" and not path.is_dir():
        raise SourceError(
            f"{source.path}: not a directory;"
            f" for a disk use {source.name}.img, for a file .conf or .log"
        )
    if source.type != "pxar" and path.is_dir():
        raise SourceError(f"{source.path}: is a directory; use {source.name}.pxar for a tree")


class _Session(SnapshotSession):
    """The state of one running backup."""

    def __init__(
        self, request: BackupRequest, writer: SnapshotWriter, progress: Progress, on_warning: Warn
    ) -> None:
        super().__init__(request.datastore, writer, request.key, request.crypt_mode)
        self._request = request
        self._progress, self._on_warning = progress, on_warning
        self._catalog: CatalogFile | None = None
        self._patterns = _patterns(request)
        self._result = BackupResult(request.snapshot, previous=writer.previous)

    def run(self) -> BackupResult:
        with ChunkPool(self.chunks) as pool:
            for source in self._request.sources:
                self._archive(source, pool)
            if self._catalog:
                self.add(CATALOG_NAME, *self._catalog.close())
        if self._request.master_public_key is not None:
            self._add_wrapped_key(self._request.master_public_key)
        self.finish()
        return self._fill_result()

    def _archive(self, source: BackupSource, pool: ChunkPool) -> None:
        if source.type == "img":
            info = backup_image(
                source.path, source.filename, self.writer, self.chunks, self._progress
            )
            self._result.source_bytes += info.size
            self.add(source.filename, info.csum, info.size)
        elif source.type != "pxar":
            content = read_small_file(source.path)
            self._result.source_bytes += len(content)
            encrypted = self._request.crypt_mode == CryptMode.ENCRYPT
            self.add_blob(source.filename, content, encrypted=encrypted)
        elif self._request.change_detection_mode is ChangeDetectionMode.LEGACY:
            self._legacy_tree(source, pool)
        else:
            self._split_tree(source, pool)

    def _legacy_tree(self, source: BackupSource, pool: ChunkPool) -> None:
        sink = IndexedSink(pool, self.index(source.filename))
        stream = ChunkStream(sink.emit, self._request.chunk_size)
        if self._catalog is None:
            self._catalog = CatalogFile(pool, self.index(CATALOG_NAME))
        archive = LegacyArchive(source.filename, stream, self._catalog.writer, self._catalog.stream)
        self._walk(source, archive, None, cli_file=True)
        self.add(source.filename, sink.close(), sink.size)

    def _split_tree(self, source: BackupSource, pool: ChunkPool) -> None:
        request = self._request
        metadata_mode = request.change_detection_mode is ChangeDetectionMode.METADATA
        previous = (
            open_previous(request, self.writer, source, self.chunks, self._warn)
            if metadata_mode
            else None
        )
        self._result.reused_bytes += self.add_split_tree(
            source.name,
            pool,
            lambda archive: self._walk(source, archive, previous, cli_file=False),
            chunk_size=request.chunk_size,
            prelude=self._patterns.prelude(),
            previous=previous.payload if previous else None,
            payload_growth=request.payload_growth,
        )

    def _walk(
        self,
        source: BackupSource,
        archive: TreeArchive,
        previous: PreviousTree | None,
        *,
        cli_file: bool,
    ) -> None:
        request = self._request
        walker = TreeWalker(
            source=source.path,
            archive=archive,
            patterns=self._patterns,
            previous=previous,
            devices={_device(path) for path in request.include_devices},
            all_file_systems=request.all_file_systems,
            on_warning=self._warn,
            progress=self._progress,
            cli_patterns=self._patterns.command_line_text() if cli_file else None,
            forbidden=_own_directories(request.datastore),
        )
        self._progress.start(None, "B")
        try:
            with estimated(source.path, self._progress):
                self._count(walker.walk())
        finally:
            self._progress.done()

    def _add_wrapped_key(self, public_pem: bytes) -> None:
        if self._request.key_file is None or self._request.key is None:
            raise SourceError("a master key was given, and no key for it to protect")
        wrapped = wrap_crypt_config(
            public_pem, self._request.key, self._request.key_file.created, _local_now()
        )
        self._result.source_bytes += len(wrapped)
        self.add_blob(ENCRYPTED_KEY_BLOB_NAME, wrapped, encrypted=False, compress=False)

    def _count(self, report: WalkReport) -> None:
        self._result.source_bytes += report.source_bytes
        self._result.unreadable += report.unreadable

    def _warn(self, text: str) -> None:
        self._result.warnings += 1
        self._on_warning(text)

    def _fill_result(self) -> BackupResult:
        self._result.files = tuple(self.files)
        self._result.new_chunks, self._result.known_chunks = (
            self.chunks.new_chunks,
            self.chunks.known_chunks,
        )
        self._result.stored_bytes = self.chunks.stored_bytes
        return self._result


def _patterns(request: BackupRequest) -> PatternList:
    patterns, bad = PatternList.from_command_line(request.exclude, request.skip_lost_and_found)
    if bad:
        raise InvalidName(f"exclude pattern {bad[0]!r}: not a valid pattern")
    return patterns


def _device(path: str) -> int:
    try:
        return Path(path).stat().st_dev
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error


def _own_directories(datastore: Datastore) -> frozenset[Inode]:
    """Where the datastore is, if it is a directory: its chunks must not be backed up into it."""
    location = datastore.backend.location
    if not location.startswith("/"):
        return frozenset()
    places = (location, f"{location}/{CHUNKS}")  # the chunks may be on another disk
    return frozenset(inode for inode in map(inode_of, places) if inode)


def _local_now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


__all__ = ["BackupRequest", "BackupResult", "BackupSource", "ChangeDetectionMode", "run_backup"]
