"""The steps to a snapshot that can be written, and those back to nothing."""

import logging
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext, suppress
from typing import TypeVar

from store.backends import patience
from store.backends.base import Backend, Lock
from store.datastore import groups, locks, manifests, owners
from store.datastore.removal import remove_empty_group, remove_leftovers, remove_snapshot_files
from store.datastore.snapshot_indexes import SnapshotIndexes
from store.datastore.workers import at_once
from store.errors import (
    AlreadyExists,
    BackendError,
    FormatError,
    IntegrityError,
    InvalidName,
    Locked,
    NotFound,
    PermissionDenied,
    StoreError,
)
from store.format.manifest import Manifest
from store.names import Digest, Namespace, Snapshot

log = logging.getLogger(__name__)
T = TypeVar("T")

GROUP_ATTEMPTS = 10


class Beginning:
    """The steps to a SnapshotWriter, and those back to nothing.

    `held` undoes them, latest first.
    """

    def __init__(
        self, backend: Backend, namespace: Namespace, snapshot: Snapshot, *, durable: bool
    ) -> None:
        self._backend, self._namespace, self._snapshot = backend, namespace, snapshot
        self._group, self._durable = snapshot.group, durable
        self.held = ExitStack()
        self.finished = False
        self._locks: list[Lock] = []
        self._group_lock: Lock | None = None
        self._owner: str | None = None
        self._is_left = False
        self._seen: list[groups.SnapshotDirectory] | None = None
        self.previous_indexes: SnapshotIndexes | None = None

    def _hold_lock(self, lock: Lock) -> Lock:
        self._locks.append(self.held.enter_context(lock))
        return lock

    def close(self, error: BaseException | None = None) -> None:
        """Undo what is not finished, because of `error` if there is one, and release the locks.

        Told to stop, or when the storage has just failed for as long as it may, nobody waits for
        another five minutes: then what fails once stays for the group's next writer.
        """
        if self.finished and self._locks:
            held, self._locks = reversed(self._locks), []
            at_once(self._backend, *(lock.release for lock in held))
            self.held.pop_all()  # unless interrupted: then those are left that were
        failed = isinstance(error, BackendError) and error.retryable
        is_urgent = failed or not isinstance(error, Exception | None)
        with patience.in_a_hurry(self._backend) if is_urgent else nullcontext():
            self.held.close()

    def lock_store(self) -> None:
        """Keep garbage collection away. Raises Locked."""
        self._hold_lock(self._backend.lock_store())

    def check_locks(self) -> None:
        """Raise Locked if one was lost, where locks are leases."""
        for lock in self._locks:
            lock.check()

    def lock_group(self) -> None:
        """Make and lock the group's directory, again if it is removed, as empty, in between.

        Raises Locked.
        """
        path = self._group.path(self._namespace)
        for _ in range(GROUP_ATTEMPTS):
            self._backend.mkdir(path, durable=self._durable)
            try:
                self._group_lock = self._hold_lock(
                    locks.lock_group(self._backend, self._namespace, self._group)
                )
            except NotFound:
                continue
            except Locked as error:
                raise Locked(
                    f"backup group {self._group}: another backup is running ({error})"
                ) from error
            return
        raise Locked(f"backup group {self._group} is being removed again and again")

    def read_owner(self) -> None:
        """See whose the group is, once it is locked."""
        with suppress(NotFound):
            self._owner = owners.read_owner(self._backend, self._namespace, self._group)

    def list_snapshots(self) -> None:
        """Look at the group's snapshots, once it is locked: one look is enough while it is."""
        self._seen = groups.snapshot_directories(self._backend, self._namespace, self._group)

    def open_group(self, owner: str | None) -> None:
        """Check that we may add to the group, whose owner and snapshots were looked at.

        Raises PermissionDenied (it belongs to somebody else).
        """
        if self._owner is None:
            self._claim_group(owner or owners.DEFAULT_OWNER)
        else:
            owners.check_may_add(self._group, self._owner, owner or self._owner)

    def _claim_group(self, owner: str) -> None:
        """Give an owner to a group that has none: a new one, or one whose maker died before.

        Who does that takes the group back if it comes to nothing, whichever process made its
        directory: of two that race, one makes it and the other may be first to lock it.
        """
        if self._newest() is not None:
            raise PermissionDenied(
                f"backup group {self._group} has snapshots but no owner; set one first"
            )
        self.held.callback(self._undo, remove_empty_group, self._group)
        try:
            self._write_owner(owner)
        except AlreadyExists:  # an empty one
            with suppress(NotFound):
                self._backend.delete(f"{self._group.path(self._namespace)}/{owners.OWNER}")
            self._write_owner(owner)

    def _write_owner(self, owner: str) -> None:
        owners.write_owner(
            self._backend,
            self._namespace,
            self._group,
            owner,
            exclusive=True,
            durable=self._durable,
        )

    def find_previous(self) -> Snapshot | None:
        """The snapshot to build on, kept from being removed.

        None when there is none, its verification failed, or its manifest is listed and not there.

        Raises AlreadyExists, InvalidName when the group has one of the same or a later time;
        Locked when the newest is being removed.
        """
        for _ in range(GROUP_ATTEMPTS):
            latest = self._newest()
            if latest is None:
                return None
            with suppress(NotFound):
                return latest if self._hold(latest) else None
            self._seen, gone = None, latest  # removed meanwhile: look again
        log.warning(
            "snapshot %s is listed, but the storage says that it has no manifest; the next backup"
            " does not build on it",
            gone,
        )
        self._check_later_than(gone)
        return None

    def previous_digests(self) -> Iterable[Digest]:
        """The chunks of the snapshot to build on."""
        return self.previous_indexes.digests() if self.previous_indexes else ()

    def _newest(self) -> Snapshot | None:
        """The group's newest finished snapshot."""
        if self._seen is None:
            self.list_snapshots()
        finished = (one.snapshot for one in reversed(self._seen or ()) if one.is_finished)
        return next(finished, None)

    def _hold(self, latest: Snapshot) -> bool:
        """Keep the newest snapshot; False when nothing may be built on it. Raises NotFound.

        Its manifest is read under its lock: then it is known to be there still.
        """
        if latest.time == self._snapshot.time:
            raise AlreadyExists(f"snapshot {latest} exists")
        lock = locks.lock_snapshot(self._backend, self._namespace, latest, exclusive=False)
        with ExitStack() as stack:
            stack.enter_context(lock)
            manifest = _sound_manifest(self._backend, self._namespace, latest)
            if manifest is None:
                return False
            self._check_later_than(latest)
            stack.pop_all()
        self._hold_lock(lock)
        self.previous_indexes = SnapshotIndexes(self._backend, self._namespace, latest, manifest)
        return True

    def _check_later_than(self, latest: Snapshot) -> None:
        if latest.time > self._snapshot.time:
            raise InvalidName(
                f"snapshot {self._snapshot} is older than the group's newest, {latest}"
            )

    def make_directory(self) -> None:
        """Make the snapshot's own directory, and lock it. Raises AlreadyExists, Locked."""
        remove_leftovers(self._backend, self._namespace, self._seen or ())
        if not self._backend.mkdir(self._snapshot.path(self._namespace), durable=self._durable):
            raise AlreadyExists(f"snapshot {self._snapshot} exists, or is being written")
        self.held.callback(self._undo, remove_snapshot_files, self._snapshot)
        if self._backend.is_object_store:
            return  # all who look at unfinished snapshots hold the group's lock, which we have
        self._hold_lock(
            locks.lock_snapshot(self._backend, self._namespace, self._snapshot, exclusive=True)
        )
        self.held.callback(self._undo, remove_snapshot_files, self._snapshot)

    def _undo(self, remove: Callable[[Backend, Namespace, T], None], what: T) -> None:
        """Remove what was begun, unless it is finished, or the group may be another's by now.

        The error that brought us here must not be lost.
        """
        if self.finished or self._is_left:
            return
        try:
            if self._group_lock is not None:
                self._group_lock.confirm()
            remove(self._backend, self._namespace, what)
        except StoreError as error:
            self._is_left = isinstance(error, Locked | BackendError)
            log.warning("could not remove %s, its group's next backup will: %s", what, error)


def _sound_manifest(backend: Backend, namespace: Namespace, snapshot: Snapshot) -> Manifest | None:
    """A snapshot's manifest; None when it is known to be damaged: nothing may be built on it."""
    try:
        manifest = manifests.read_manifest(backend, namespace, snapshot)
    except (FormatError, IntegrityError) as error:
        log.warning("%s; the next backup does not build on it", error)
        return None
    state = manifest.unprotected.get("verify_state")
    return None if isinstance(state, dict) and state.get("state") == "failed" else manifest
