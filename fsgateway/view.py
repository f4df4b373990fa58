"""The datastore behind a mount: what it lists, and a bounded number of open snapshots.

Called in threads only, from several at once. No lock is held while the datastore is read.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from fsgateway.attributes import CHANGING_S
from fsgateway.hardlinks import LinkBudget, Links, links_in_catalog, links_in_stream
from fsgateway.walking import Walk
from store.datastore.archives import IndexedStream, SnapshotReader
from store.datastore.chunk_cache import cache_over, reads_at_once
from store.datastore.datastore import Datastore, DatastoreStatus
from store.disks.disk import Disk, Disks
from store.errors import KeyRequired, StoreError, WrongKey
from store.format.buffer import ReadAt
from store.format.crypt import CryptConfig
from store.format.manifest import FileInfo
from store.format.pxar.accessor import Accessor, pack_directory
from store.format.pxar.entries import Entry
from store.format.pxar.items import HEADER_SIZE
from store.names import BackupGroup, Namespace, Snapshot
from store.trees.base import FileTree
from store.trees.kept_listings import KeptListings, open_kept_listings

if TYPE_CHECKING:
    from fsgateway.tree import GroupNode, Node

OPEN_SNAPSHOTS = 32
REMEMBERED = 4096
STATUS_S = 10.0
# Loaded ahead of who walks through an archive on a storage far away: 16 MiB, of each that is open.
CHUNKS_AHEAD = 4

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SnapshotId(NamedTuple):
    """A snapshot and the namespace it is in."""

    namespace: Namespace
    snapshot: Snapshot

    def __str__(self) -> str:
        return f"{self.namespace.path}/{self.snapshot}".lstrip("/")


class Recent(Generic[K, T]):
    """The `limit` values used last.

    Two threads may make one value at once; one of the two stays.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._lock = Lock()
        self._values: OrderedDict[K, tuple[float, T]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def values(self) -> list[T]:
        """All that are here."""
        with self._lock:
            return [value for _, value in self._values.values()]

    def peek(self, key: K, valid_s: float = float("inf")) -> T | None:
        """The value if it is here and young enough; waits for nothing but the lock."""
        with self._lock:
            found = self._values.get(key)
            if found is None or self._clock() - found[0] >= valid_s:
                return None
            self._values.move_to_end(key)
            return found[1]

    def get(self, key: K, make: Callable[[], T], valid_s: float = float("inf")) -> T:
        """The value of `key`, made now if it is not there or older than `valid_s`.

        Raises what `make` raises.
        """
        found = self.peek(key, valid_s)
        if found is not None:
            return found
        made = self._clock()
        value = make()
        self.keep(key, value, made)
        return value

    def keep(self, key: K, value: T, made: float | None = None) -> None:
        """Put a value in, `made` now if nothing else is said."""
        with self._lock:
            self._values[key] = self._clock() if made is None else made, value
            self._values.move_to_end(key)
            while len(self._values) > self._limit:
                self._values.popitem(last=False)


class Content(NamedTuple):
    """Where a file's bytes are: `size` of them in `stream` from `start` on."""

    stream: ReadAt
    start: int
    size: int


class Tree:
    """An open tree of files, whatever it is read from."""

    def __init__(self, files: FileTree) -> None:
        self.files = files
        self.kept: KeptListings | None = None

    def cached(self) -> Accessor | None:
        """What of the tree is in memory, for the event loop: reading all else raises NotCached."""
        return None

    def packed_at_hand(self, offset: int, end: int) -> bytes | None:
        """A directory's children, packed, if all of it is in one chunk in memory.

        For the event loop.
        """
        return None

    def content(self, entry: Entry) -> Content:
        """Where a regular file's bytes are.

        Raises FormatError if they are not there, KeyRequired, IntegrityError…
        """
        return Content(*self.files.content(entry), entry.size)

    def content_if_cached(self, entry: Entry) -> Content | None:
        """The same if that needs no reading: for the event loop. Raises FormatError."""
        return None

    def count_links(self) -> Links:
        """The hard links that `Entry.links` does not tell of. Raises StoreError."""
        return Links()


class ArchiveTree(Tree):
    """An open pxar archive, and the streams it is in."""

    def __init__(self, reader: SnapshotReader, name: str) -> None:
        """Raises as `SnapshotReader.open_tree`."""
        self.metadata, self.payload = reader.open_streams(name)
        self.accessor = Accessor(self.metadata, self.payload)
        super().__init__(self.accessor)
        self._cached = self.accessor.through(self.metadata.cached())
        self._reader, self._name = reader, name
        backend = self.metadata.reader.backend
        self._walk = Walk(self.metadata, reads_at_once(backend, 1, CHUNKS_AHEAD))
        if self.payload is None:
            self.kept = open_kept_listings(self.metadata.index.csum(), self.metadata.reader.key)

    def cached(self) -> Accessor:
        """What of the tree is in memory."""
        return self._cached

    def packed_at_hand(self, offset: int, end: int) -> bytes | None:
        """None also for what is not of the usual kind, or wrong: others say what."""
        self._walk.reached(offset)
        piece = self.metadata.piece(offset, end)
        if piece is None:
            return None
        return pack_directory(*piece, offset, end, self.accessor.content_item)

    def content_if_cached(self, entry: Entry) -> Content | None:
        """The same if that needs no reading. Raises FormatError."""
        if self.payload is not None:
            offset = entry.payload_offset
            if (
                offset + HEADER_SIZE > self.payload.size
                or self.payload.peek(offset, HEADER_SIZE) is None
            ):
                return None
        return self.content(entry)

    def count_links(self) -> Links:
        """Found in the metadata stream, or in the catalog of an archive that has none."""
        if self.payload is not None:
            return Links(links_in_stream(self.metadata.chunks()))
        catalog = self._reader.catalog()
        if catalog is None:
            return Links()
        name = f"{self._name}.didx".encode()
        return Links(links_in_catalog(catalog, name, self.accessor))


@dataclass(frozen=True, slots=True)
class Image:
    """An open disk image, and how many bytes of it are not zero chunks."""

    stream: IndexedStream
    used: int


class OpenSnapshot:
    """A snapshot's reader, with the trees and images opened so far."""

    def __init__(self, view: "View", ident: SnapshotId) -> None:
        """Raises NotFound, FormatError, IntegrityError (the manifest's signature is wrong)."""
        self.reader = SnapshotReader(view.datastore, *ident, view.key, view.cache)
        self._locked: WrongKey | None = None
        wanted = self.reader.manifest.key_fingerprint
        if view.key is not None and wanted not in (None, view.key.fingerprint):
            # Another key is as no key: what is plain, in a signed snapshot, can be read all the
            # same.
            self.reader = SnapshotReader(view.datastore, *ident, None, view.cache)
            given = view.key.fingerprint
            self._locked = WrongKey(
                f"snapshot {ident} needs the key {wanted}, the one given is {given}"
            )
        self._trees: Recent[str, ArchiveTree] = Recent(REMEMBERED)
        self._images: Recent[str, Image] = Recent(REMEMBERED)

    def _explained(self, error: KeyRequired) -> KeyRequired:
        return self._locked if self._locked is not None else error

    def tree(self, name: str) -> ArchiveTree:
        """A pxar archive, split or not.

        Raises KeyRequired, IntegrityError, FormatError, BackendError.
        """
        try:
            return self._trees.get(name, lambda: ArchiveTree(self.reader, name))
        except KeyRequired as error:
            raise self._explained(error) from error

    def close(self) -> None:
        """Write down what was listed and is to be kept; reading still works afterwards."""
        for tree in self._trees.values():
            if tree.kept is not None:
                tree.kept.close()

    def names(self, name: str) -> Accessor:
        """A pxar archive without the content of its files, not kept here. Raises as `tree`."""
        try:
            return self.reader.open_names(name)
        except KeyRequired as error:
            raise self._explained(error) from error

    def image(self, name: str) -> Image:
        """A disk image. Raises as `tree`."""
        try:
            return self._images.get(name, lambda: self._open_image(name))
        except KeyRequired as error:
            raise self._explained(error) from error

    def _open_image(self, name: str) -> Image:
        stream = self.reader.open_image(name)
        return Image(stream, stream.holes().data_size)

    def blob(self, name: str) -> bytes:
        """A decoded blob. Raises as `tree`."""
        try:
            return self.reader.read_blob(name)
        except KeyRequired as error:
            raise self._explained(error) from error

    def files_of(self, name: str) -> list[FileInfo]:
        """What the manifest says of an archive's files: one, or a pair (the metadata first)."""
        stem, dot, extension = name.rpartition(".")
        pair = (
            {f"{stem}.mpxar.didx", f"{stem}.ppxar.didx"} if dot and extension == "pxar" else set()
        )
        wanted = pair | {f"{name}.{kind}" for kind in ("didx", "fidx", "blob")}
        found = (info for info in self.reader.manifest.files if info.filename in wanted)
        return sorted(found, key=lambda info: info.filename)

    def size_of(self, name: str) -> int:
        """What the manifest says of an archive's size in bytes, all its files together."""
        return sum(info.size for info in self.files_of(name))


class Writable(Protocol):
    """What a writable mount has beside its snapshots (fsgateway.writing)."""

    def groups(self, namespace: Namespace) -> list[BackupGroup]:
        """The groups that have a head, with snapshots or without."""

    def current(self, group: "GroupNode") -> "Node":
        """A group's `current/`."""


class View:
    """What a mount shows: a datastore from one namespace down, read with at most one key."""

    def __init__(
        self,
        datastore: Datastore,
        key: CryptConfig | None,
        cache_bytes: int,
        namespace: Namespace | None = None,
        disks: Disks | None = None,
    ) -> None:
        self.datastore = datastore
        self.key = key
        self.cache_bytes = cache_bytes
        self.cache = cache_over(datastore.backend, cache_bytes)
        self.link_budget = LinkBudget()
        self.disks = disks or Disks()
        self.namespace = namespace or Namespace()
        self.writable: Writable | None = None
        self.started_ns = time.time_ns()
        # What a group has beside its snapshots: each makes its node, given where the group is.
        self.group_views: list[Callable[[tuple[str, ...], Namespace, BackupGroup], Node]] = []
        self._open: Recent[SnapshotId, OpenSnapshot] = Recent(OPEN_SNAPSHOTS)
        self._namespaces: Recent[Namespace, list[Namespace]] = Recent(REMEMBERED)
        self._groups: Recent[Namespace, list[BackupGroup]] = Recent(REMEMBERED)
        self._snapshots: Recent[tuple[Namespace, BackupGroup], list[Snapshot]] = Recent(REMEMBERED)
        self._blob_sizes: Recent[tuple[SnapshotId, str], int] = Recent(REMEMBERED)
        self._verify_states: Recent[SnapshotId, str] = Recent(REMEMBERED)
        self._status: Recent[None, DatastoreStatus] = Recent(1)

    def namespaces(self, parent: Namespace) -> list[Namespace]:
        """The namespaces right below `parent`, at most a second old, as are the next two."""
        return self._namespaces.get(parent, lambda: self._child_namespaces(parent), CHANGING_S)

    def _child_namespaces(self, parent: Namespace) -> list[Namespace]:
        depth = len(parent.components) + 1
        found = self.datastore.list_namespaces(parent, 1)
        return [namespace for namespace in found if len(namespace.components) == depth]

    def groups(self, namespace: Namespace) -> list[BackupGroup]:
        """The backup groups of a namespace."""
        return self._groups.get(
            namespace, lambda: self.datastore.list_groups(namespace), CHANGING_S
        )

    def snapshots(self, namespace: Namespace, group: BackupGroup) -> list[Snapshot]:
        """The finished snapshots of a group, oldest first."""
        key = namespace, group
        return self._snapshots.get(key, lambda: self.datastore.list_snapshots(*key), CHANGING_S)

    def open(self, ident: SnapshotId) -> OpenSnapshot:
        """A snapshot, opened once while it is among those used last. Raises as OpenSnapshot."""
        return self._open.get(ident, lambda: OpenSnapshot(self, ident))

    def disk(self, ident: SnapshotId, name: str) -> Disk:
        """What is inside a disk image. Raises KeyRequired, IntegrityError, FormatError."""
        return self.disks.open(
            (ident, name), lambda: self.open(ident).image(name).stream, f"{ident}/{name}"
        )

    def close(self) -> None:
        """End what disks were opened with, and write down what was listed and is to be kept."""
        self.disks.close()
        for opened in self._open.values():
            opened.close()

    def known_snapshots(self, namespace: Namespace, group: BackupGroup) -> list[Snapshot] | None:
        """The same if it was asked within the last second: for the event loop."""
        return self._snapshots.peek((namespace, group), CHANGING_S)

    def blob_size(self, ident: SnapshotId, name: str) -> int:
        """Decoded size of a blob; as stored when it cannot be decoded, so that listing goes on."""
        try:
            return self._blob_sizes.get((ident, name), lambda: len(self.open(ident).blob(name)))
        except StoreError:
            return self.open(ident).size_of(name)

    def verify_state(self, ident: SnapshotId) -> str:
        """How a snapshot's last verification ended, at most a second old; empty: there was none."""
        return self._verify_states.get(ident, lambda: self._read_verify_state(ident), CHANGING_S)

    def _read_verify_state(self, ident: SnapshotId) -> str:
        found = self.datastore.read_manifest(*ident).unprotected.get("verify_state")
        state = found.get("state") if isinstance(found, dict) else None
        return state if isinstance(state, str) else ""

    def status(self) -> DatastoreStatus:
        """Space of the datastore, at most ten seconds old."""
        return self._status.get(None, self.datastore.status, STATUS_S)
