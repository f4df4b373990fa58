"""One datastore: namespaces, groups, snapshots, and the chunks behind them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Self

from store.backends.base import Backend, Lock
from store.datastore import groups, locks, manifests, namespaces, owners, removal, snapshots
from store.datastore.chunk_store import CHUNKS, ChunkStore, SyncLevel
from store.datastore.memory import DEFAULT_MEMORY, Memory
from store.errors import FormatError, NotFound
from store.format.dynamic_index import DynamicIndex
from store.format.fixed_index import FixedIndex
from store.format.manifest import Manifest
from store.names import MAX_NAMESPACE_DEPTH, BackupGroup, Namespace, Snapshot

ROOT = Namespace()


@dataclass(frozen=True, slots=True)
class DatastoreStatus:
    """Bytes of the storage the datastore is on.

    `avail` is what an ordinary user may still write.
    """

    total: int
    used: int
    avail: int


class Datastore:
    """An open datastore.

    Thread-safe; other processes, a PBS among them, may work on it at the same time.

    Listing reads names only, never a manifest: a damaged snapshot is listed like any other.
    Every method may raise PermissionDenied, OutOfSpace and BackendError of the storage.
    """

    def __init__(self, name: str, backend: Backend, memory_bytes: int = DEFAULT_MEMORY) -> None:
        """`name` is for messages and lock files.

        `memory_bytes` bounds the chunks that who works on it keeps in memory.

        Raises NotFound: there is no datastore at the backend.
        """
        chunks = backend.stat(CHUNKS)
        if chunks is None or not chunks.is_directory:
            raise NotFound(f"{backend.location} is not a datastore: it has no {CHUNKS}")
        self.name = name
        self.backend = backend
        self.memory_bytes = memory_bytes
        self.chunks = ChunkStore(backend)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Datastore({self.name!r}, {self.backend.location!r})"

    def close(self) -> None:
        """Give its descriptors back."""
        self.backend.close()

    def status(self) -> DatastoreStatus:
        """Size and fill of the storage."""
        space = self.backend.status()
        return DatastoreStatus(space.total, space.used, space.available)

    # Namespaces

    def list_namespaces(
        self, parent: Namespace = ROOT, max_depth: int = MAX_NAMESPACE_DEPTH
    ) -> list[Namespace]:
        """`parent` and the namespaces below it, at most `max_depth` levels, sorted.

        Raises NotFound.
        """
        return namespaces.list_namespaces(self.backend, parent, max_depth)

    def create_namespace(self, namespace: Namespace) -> None:
        """Make a namespace. Raises NotFound (its parent), AlreadyExists, InvalidName (the root)."""
        namespaces.create_namespace(self.backend, namespace)

    def delete_namespace(self, namespace: Namespace, *, delete_groups: bool = False) -> None:
        """Remove a namespace; with `delete_groups` with everything in and below it.

        Raises NotFound, PermissionDenied (not empty, protected, or the root), Locked.
        """
        removal.delete_namespace(self.backend, namespace, delete_groups=delete_groups)

    # Groups

    def list_groups(self, namespace: Namespace = ROOT, *, empty: bool = False) -> list[BackupGroup]:
        """The groups of one namespace, sorted; those without a finished snapshot only if `empty`.

        Raises NotFound.
        """
        namespaces.check_namespace(self.backend, namespace)
        return groups.list_groups(self.backend, namespace, empty=empty)

    def owner(self, namespace: Namespace, group: BackupGroup) -> str:
        """Who may add snapshots: `user@realm` or `user@realm!token`. Raises NotFound."""
        return owners.read_owner(self.backend, namespace, group)

    def change_owner(self, namespace: Namespace, group: BackupGroup, owner: str) -> None:
        """Give a group to somebody else.

        Raises NotFound, InvalidName, Locked (a backup is running).
        """
        owners.check_owner(owner)
        with locks.lock_group(self.backend, namespace, group):
            groups.check_group(self.backend, namespace, group)
            owners.write_owner(self.backend, namespace, group, owner, exclusive=False, durable=True)

    def notes(self, namespace: Namespace, group: BackupGroup) -> str:
        """The group's notes, "" when there are none; a snapshot's are in its manifest."""
        return groups.read_notes(self.backend, namespace, group)

    def set_notes(self, namespace: Namespace, group: BackupGroup, text: str) -> None:
        """Replace the group's notes. Raises NotFound."""
        self.backend.write(
            f"{group.path(namespace)}/{groups.NOTES}", (text.encode(),), durable=True
        )

    def forget_group(self, namespace: Namespace, group: BackupGroup) -> None:
        """Remove a group with all its snapshots.

        Raises NotFound, Locked, PermissionDenied (one is protected).
        """
        removal.forget_group(self.backend, namespace, group)

    # Snapshots

    def list_snapshots(self, namespace: Namespace, group: BackupGroup) -> list[Snapshot]:
        """The finished snapshots of a group, oldest first; none when there is no such group."""
        return groups.list_snapshots(self.backend, namespace, group)

    def latest_snapshot(self, namespace: Namespace, group: BackupGroup) -> Snapshot:
        """The newest finished one. Raises NotFound."""
        return groups.latest_snapshot(self.backend, namespace, group)

    def resolve_snapshot(self, namespace: Namespace, text: str) -> Snapshot:
        """The snapshot a user means by `type/id/time`, or `type/id` for the newest.

        Raises NotFound, InvalidName.
        """
        return groups.resolve_snapshot(self.backend, namespace, text)

    def read_manifest(self, namespace: Namespace, snapshot: Snapshot) -> Manifest:
        """What the snapshot consists of, its signature unchecked.

        Raises NotFound, FormatError, IntegrityError.
        """
        return manifests.read_manifest(self.backend, namespace, snapshot)

    def update_manifest(
        self, namespace: Namespace, snapshot: Snapshot, change: Callable[[Manifest], Manifest]
    ) -> Manifest:
        """Replace the manifest by `change` of it (the `unprotected` part, or the signature breaks).

        Waits up to 5 s for another change to end. Raises NotFound, Locked, FormatError.
        """
        groups.check_finished(self.backend, namespace, snapshot)
        return manifests.update_manifest(self.backend, namespace, snapshot, change)

    def list_files(self, namespace: Namespace, snapshot: Snapshot) -> list[str]:
        """The files on the storage, `index.json.blob` and `client.log.blob` included, sorted."""
        return manifests.list_files(self.backend, namespace, snapshot)

    def read_file(self, namespace: Namespace, snapshot: Snapshot, filename: str) -> bytes:
        """One whole file as it is stored: an encoded blob, or a raw index.

        Raises NotFound, InvalidName.
        """
        return manifests.read_file(self.backend, namespace, snapshot, filename)

    def fixed_index(self, namespace: Namespace, snapshot: Snapshot, filename: str) -> FixedIndex:
        """Open a `.fidx`. Raises NotFound, FormatError."""
        raw = manifests.map_file(self.backend, namespace, snapshot, filename)
        try:
            return FixedIndex(raw)
        except FormatError as error:
            raise FormatError(f"{snapshot}/{filename}: {error}") from error

    def dynamic_index(
        self, namespace: Namespace, snapshot: Snapshot, filename: str
    ) -> DynamicIndex:
        """Open a `.didx`. Raises NotFound, FormatError."""
        raw = manifests.map_file(self.backend, namespace, snapshot, filename)
        try:
            return DynamicIndex(raw)
        except FormatError as error:
            raise FormatError(f"{snapshot}/{filename}: {error}") from error

    def is_protected(self, namespace: Namespace, snapshot: Snapshot) -> bool:
        """Whether the snapshot must not be removed."""
        return removal.is_protected(self.backend, namespace, snapshot)

    def set_protected(self, namespace: Namespace, snapshot: Snapshot, protected: bool) -> None:
        """Forbid or allow removing the snapshot. Raises NotFound, Locked."""
        removal.set_protected(self.backend, namespace, snapshot, protected)

    def forget_snapshot(self, namespace: Namespace, snapshot: Snapshot) -> None:
        """Remove a snapshot, and its group when it was the last.

        Chunks stay for garbage collection.

        Raises NotFound, PermissionDenied (protected), Locked (in use).
        """
        removal.forget_snapshot(self.backend, namespace, snapshot)

    def lock_snapshot_shared(
        self, namespace: Namespace, snapshot: Snapshot
    ) -> AbstractContextManager[Lock]:
        """Keep a snapshot from being removed while it is read.

        Raises NotFound, Locked (it is being removed).
        """
        return locks.lock_snapshot(self.backend, namespace, snapshot, exclusive=False)

    def begin_snapshot(
        self,
        namespace: Namespace,
        snapshot: Snapshot,
        *,
        owner: str | None = None,
        sync_level: SyncLevel = SyncLevel.FILESYSTEM,
    ) -> snapshots.SnapshotWriter:
        """Start writing a snapshot, making its group if it is new; for use in a `with`.

        Holds the group and the snapshot exclusively, and the previous snapshot shared, until
        `finish` or the end of the `with`. Removes what dead writers left in the group.

        Args:
            namespace: an existing one.
            snapshot: its time must be later than that of the group's newest (unless that one failed
                verification).
            owner: `user@realm[!token]`; None means whoever owns the group, or root@pam for a new
                one.
            sync_level: how durable the result is.
        Raises:
            NotFound: no such namespace.
            Locked: the group is being written, or garbage collection is running.
            PermissionDenied: the group belongs to another owner.
            AlreadyExists, InvalidName: the time is taken, or older than the newest one's.
        """
        return snapshots.begin_snapshot(
            self.backend,
            self.chunks,
            namespace,
            snapshot,
            owner=owner,
            sync_level=sync_level,
            memory=Memory.of(self),
        )
