"""The archives of one snapshot as users know them: `root.pxar`, `disk.img`, `qemu-server.conf`."""

import hashlib
import logging
from collections.abc import Callable
from typing import TypeVar

from store.datastore.chunk_cache import ChunkCache, ChunkReader
from store.datastore.datastore import Datastore
from store.datastore.memory import Memory
from store.datastore.snapshot_indexes import SnapshotIndexes
from store.datastore.streams import Index, IndexedStream
from store.errors import FormatError, IntegrityError, KeyRequired, NotFound, WrongKey
from store.format.blob import decode_blob, is_encrypted
from store.format.catalog import Catalog
from store.format.crypt import CryptConfig
from store.format.dynamic_index import ENTRY, DynamicIndex
from store.format.manifest import CryptMode, FileInfo, Manifest
from store.format.pxar.accessor import Accessor
from store.names import (
    CATALOG_NAME,
    CLIENT_LOG_BLOB_NAME,
    ENCRYPTED_KEY_BLOB_NAME,
    Namespace,
    Snapshot,
)

__all__ = ["ChunkCache", "ChunkReader", "IndexedStream", "SnapshotReader"]

log = logging.getLogger(__name__)

T = TypeVar("T")

# Larger ones stay memory maps, each of which holds a descriptor.
MAX_COPIED = 256 << 10
NAMES_TABLES = 2
SPLIT_METADATA = ".mpxar.didx"
SPLIT_PAYLOAD = ".ppxar.didx"


class SnapshotReader:
    """A finished snapshot opened for reading.

    Thread-safe; holds no lock (see `Datastore.lock_snapshot_shared`).

    Can be made without the key of an encrypted snapshot: the manifest is readable, opening an
    archive is not.
    """

    def __init__(
        self,
        datastore: Datastore,
        namespace: Namespace,
        snapshot: Snapshot,
        key: CryptConfig | None,
        cache: ChunkCache,
        *,
        manifest: Manifest | None = None,
        indexes: SnapshotIndexes | None = None,
    ) -> None:
        """Read the manifest, and check its signature if `key` made it.

        `manifest`, `indexes`: what was read of them already.

        Raises NotFound, FormatError, IntegrityError (the signature is wrong).
        """
        self.datastore, self.namespace, self.snapshot = datastore, namespace, snapshot
        self.manifest: Manifest = manifest or datastore.read_manifest(namespace, snapshot)
        self._indexes = indexes
        self._key, self._cache = key, cache
        if self.manifest.snapshot != snapshot:  # as PBS: a renamed group stays readable
            log.warning(
                "%s has the manifest of %s: renamed, or swapped", snapshot, self.manifest.snapshot
            )
        if key is not None and self.manifest.key_fingerprint in (None, key.fingerprint):
            self.manifest.verify(key)

    @property
    def archives(self) -> list[str]:
        """What is in the snapshot, in the manifest's order; a split pair once, as `NAME.pxar`.

        Catalog and manifest are left out, the client's log (which no manifest lists) is in.
        """
        names = self._listed
        if CLIENT_LOG_BLOB_NAME in self.datastore.list_files(self.namespace, self.snapshot):
            names.append(CLIENT_LOG_BLOB_NAME.removesuffix(".blob"))
        return list(dict.fromkeys(names))

    @property
    def _listed(self) -> list[str]:
        files = (info.filename for info in self.manifest.files)
        return [_user_name(filename) for filename in files if filename != CATALOG_NAME]

    def __contains__(self, name: str) -> bool:
        """Whether `archives` has this one; what the manifest lists costs no request."""
        return name in self._listed or name in self.archives

    def open_tree(self, name: str) -> Accessor:
        """Open `root.pxar`, split or not.

        Raises NotFound, KeyRequired, WrongKey, IntegrityError, FormatError.
        """
        return Accessor(*self.open_streams(name))

    def open_streams(self, name: str) -> tuple[IndexedStream, IndexedStream | None]:
        """The streams of a tree: metadata and payload, or (all of it, None) when not split."""
        whole = self._find(f"{name}.didx")
        if whole is not None:
            return self._open_stream(whole), None
        stem = name.removesuffix(".pxar")
        metadata, payload = self._find(stem + SPLIT_METADATA), self._find(stem + SPLIT_PAYLOAD)
        if not name.endswith(".pxar") or metadata is None or payload is None:
            raise self._no_such(name, "tree")
        return self._open_stream(metadata), self._open_stream(payload)

    def open_names(self, name: str) -> Accessor:
        """A tree without the content of its files, in little memory: for who opens hundreds.

        Raises as `open_tree`.
        """
        stem = name.removesuffix(".pxar")
        info = self._find(f"{name}.didx") or self._find(stem + SPLIT_METADATA)
        if info is None:
            raise self._no_such(name, "tree")
        return Accessor(self._open_stream(info, self._copy_index), tables=NAMES_TABLES)

    def open_image(self, name: str) -> IndexedStream:
        """Open `drive-scsi0.img`. Raises as `open_tree`."""
        info = self._find(f"{name}.fidx")
        if info is None:
            raise self._no_such(name, "image")
        return self._open_stream(info)

    def open_stream(self, filename: str) -> IndexedStream:
        """The stream behind one index of the manifest, `root.ppxar.didx`. Raises as `open_tree`."""
        return self._open_stream(self.manifest.file(filename))

    def read_blob(self, name: str) -> bytes:
        """The plaintext of `qemu-server.conf`, `client.log`, … Raises as `open_tree`."""
        filename = f"{name}.blob"
        info = self._find(filename)
        if info is None and filename != CLIENT_LOG_BLOB_NAME:
            raise self._no_such(name, "blob")
        raw = self._read(filename, self.datastore.read_file)
        if info is not None and (len(raw), hashlib.sha256(raw).digest()) != (info.size, info.csum):
            raise IntegrityError(
                f"{self._label(filename)}: not the file that the manifest describes"
            )
        try:
            encrypted = is_encrypted(raw)
            self._check_state(info, encrypted)
            protected = (
                self.manifest.key_fingerprint is not None and filename != ENCRYPTED_KEY_BLOB_NAME
            )
            return decode_blob(raw, self._needed_key(filename) if encrypted or protected else None)
        except (FormatError, IntegrityError) as error:
            raise type(error)(f"{self._label(filename)}: {error}") from error

    def catalog(self) -> Catalog | None:
        """The catalog, which legacy backups of trees have. Raises as `open_tree`."""
        info = self._find(CATALOG_NAME)
        return Catalog(self._open_stream(info)) if info else None

    def _find(self, filename: str) -> FileInfo | None:
        return next((info for info in self.manifest.files if info.filename == filename), None)

    def _open_stream(
        self, info: FileInfo, load: Callable[[Namespace, Snapshot, str], Index] | None = None
    ) -> IndexedStream:
        encrypted = info.crypt_mode is CryptMode.ENCRYPT
        key = (
            self._needed_key(info.filename) if self.manifest.key_fingerprint or encrypted else None
        )
        index = self._open_index(info, load or self._load_index)
        label = self._label(info.filename)
        reader = ChunkReader(self.datastore.chunks, key, encrypted, self._cache, name=label)
        return IndexedStream(index, reader, Memory.of(self.datastore))

    def _open_index(
        self, info: FileInfo, load: Callable[[Namespace, Snapshot, str], Index]
    ) -> Index:
        index = self._read(info.filename, load)
        if index.size != info.size:
            raise IntegrityError(
                f"{self._label(info.filename)}: {index.size} bytes, the manifest says {info.size}"
            )
        if index.csum() != info.csum:
            raise IntegrityError(
                f"{self._label(info.filename)}: not the index that the manifest describes"
            )
        return index

    def _load_index(self, namespace: Namespace, snapshot: Snapshot, filename: str) -> Index:
        if self._indexes is not None:
            return self._indexes.open(filename)
        if filename.endswith(".fidx"):
            return self.datastore.fixed_index(namespace, snapshot, filename)
        return self.datastore.dynamic_index(namespace, snapshot, filename)

    def _copy_index(self, namespace: Namespace, snapshot: Snapshot, filename: str) -> Index:
        """An index that holds no descriptor, if it is small."""
        index = self._load_index(namespace, snapshot, filename)
        assert isinstance(index, DynamicIndex)
        return index.copy() if len(index) * ENTRY.size <= MAX_COPIED else index

    def _read(self, filename: str, read: Callable[[Namespace, Snapshot, str], T]) -> T:
        """A file of the snapshot; one that the manifest names and nobody has is damage."""
        try:
            return read(self.namespace, self.snapshot, filename)
        except NotFound as error:
            self.datastore.read_manifest(self.namespace, self.snapshot)  # NotFound: just forgotten
            if self._find(filename) is None:
                raise
            raise IntegrityError(
                f"{self._label(filename)}: the manifest names it, and it is missing"
            ) from error

    def _needed_key(self, filename: str) -> CryptConfig | None:
        """The key to read a file with.

        A signed one is readable without any, but not with another one.
        """
        wanted = self.manifest.key_fingerprint
        if self._key is None:
            info = self._find(filename)
            if info is not None and info.crypt_mode is not CryptMode.ENCRYPT:
                return None
            raise KeyRequired(
                f"{self._label(filename)} is encrypted; it needs the key {wanted or '(unknown)'}"
            )
        if wanted is not None and wanted != self._key.fingerprint:
            given = self._key.fingerprint
            raise WrongKey(f"{self._label(filename)} needs the key {wanted}, not the given {given}")
        return self._key

    def _check_state(self, info: FileInfo | None, encrypted: bool) -> None:
        """A blob of an encrypted snapshot is encrypted, but for the wrapped key.

        Nobody may swap in a plain one.
        """
        if info is None or info.filename == ENCRYPTED_KEY_BLOB_NAME:
            return
        if encrypted != (info.crypt_mode is CryptMode.ENCRYPT):
            found = "encrypted" if encrypted else "plain"
            raise IntegrityError(f"is {found}, the manifest says crypt-mode {info.crypt_mode}")

    def _no_such(self, name: str, kind: str) -> NotFound:
        return NotFound(
            f"snapshot {self.snapshot} has no {kind} {name!r}; it has {', '.join(self.archives)}"
        )

    def _label(self, filename: str) -> str:
        return f"{self.snapshot}/{filename}"


def _user_name(filename: str) -> str:
    """`root.pxar.didx`, `root.mpxar.didx`, `root.ppxar.didx` -> `root.pxar`.

    `a.conf.blob` -> `a.conf`.
    """
    for extension in (SPLIT_METADATA, SPLIT_PAYLOAD):
        if filename.endswith(extension):
            return f"{filename.removesuffix(extension)}.pxar"
    return filename.rpartition(".")[0]
