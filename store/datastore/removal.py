"""Taking snapshots and groups away, the manifest first: what has none is no snapshot any more."""

import logging
from collections.abc import Iterable
from contextlib import suppress

from store.backends.base import Backend
from store.datastore import groups, locks, manifests, namespaces, owners
from store.errors import Locked, NotFound, PermissionDenied
from store.names import MANIFEST_BLOB_NAME, BackupGroup, Namespace, Snapshot

log = logging.getLogger(__name__)


def remove_snapshot_files(backend: Backend, namespace: Namespace, snapshot: Snapshot) -> None:
    """Remove a snapshot's directory, finished or not. The caller holds its exclusive lock."""
    path = snapshot.path(namespace)
    with suppress(NotFound):
        backend.delete(f"{path}/{MANIFEST_BLOB_NAME}")
    backend.remove_tree(path)
    backend.forget_lock(locks.manifest_locks(namespace, snapshot))
    backend.forget_lock(locks.snapshot_locks(namespace, snapshot))


def remove_leftovers(
    backend: Backend, namespace: Namespace, found: Iterable[groups.SnapshotDirectory]
) -> None:
    """Remove what dead writers left of a group's snapshots. The caller holds the group's lock.

    Whatever has no manifest and is not locked by anybody is left over, where all locks are seen.
    """
    unfinished = [snapshot for snapshot, directory in found if not directory.is_marked]
    if unfinished and not backend.is_alone():
        log.info("%s is kept: a writer on another host may be at it", unfinished[0])
        return
    for snapshot in unfinished:
        with (
            suppress(Locked, NotFound),
            locks.lock_snapshot(backend, namespace, snapshot, exclusive=True),
        ):
            if not groups.is_finished(backend, namespace, snapshot):
                remove_snapshot_files(backend, namespace, snapshot)
                log.info("removed the unfinished snapshot %s", snapshot)


def remove_empty_group(backend: Backend, namespace: Namespace, group: BackupGroup) -> None:
    """Remove a group with its owner and notes if nothing else is in it.

    The caller holds its lock.
    """
    path = group.path(namespace)
    names = {entry.name for entry in backend.scan(path)}
    if names <= {owners.OWNER, groups.NOTES}:
        for name in names:
            backend.delete(f"{path}/{name}")
        backend.rmdir(path)
        backend.forget_lock(locks.group_locks(namespace, group))


def forget_snapshot(backend: Backend, namespace: Namespace, snapshot: Snapshot) -> None:
    """Remove a finished snapshot, and its group when it was the last, as PBS 4 does.

    Raises NotFound, PermissionDenied (protected), Locked (somebody reads it or writes its
    manifest).
    """
    groups.check_finished(backend, namespace, snapshot)
    _remove_finished(backend, namespace, snapshot)
    with suppress(Locked, NotFound), locks.lock_group(backend, namespace, snapshot.group):
        remove_empty_group(backend, namespace, snapshot.group)


def _remove_finished(backend: Backend, namespace: Namespace, snapshot: Snapshot) -> None:
    """Remove a finished snapshot that nobody uses. Raises PermissionDenied, Locked, NotFound."""
    with locks.lock_snapshot(backend, namespace, snapshot, exclusive=True):
        if is_protected(backend, namespace, snapshot):
            raise PermissionDenied(f"snapshot {snapshot} is protected")
        with locks.lock_manifest(backend, namespace, snapshot):
            remove_snapshot_files(backend, namespace, snapshot)


def is_protected(backend: Backend, namespace: Namespace, snapshot: Snapshot) -> bool:
    """Whether the snapshot has the mark that forbids removing it."""
    return backend.stat(f"{snapshot.path(namespace)}/{manifests.PROTECTED}") is not None


def set_protected(
    backend: Backend, namespace: Namespace, snapshot: Snapshot, protected: bool
) -> None:
    """Set or clear that mark. Raises NotFound, Locked (it is being removed)."""
    groups.check_finished(backend, namespace, snapshot)
    mark = f"{snapshot.path(namespace)}/{manifests.PROTECTED}"
    with locks.lock_snapshot(backend, namespace, snapshot, exclusive=False):
        groups.check_finished(backend, namespace, snapshot)
        if protected:
            backend.write(mark, (), durable=True)
        else:
            with suppress(NotFound):
                backend.delete(mark)


def delete_namespace(backend: Backend, namespace: Namespace, *, delete_groups: bool) -> None:
    """Remove a namespace; with `delete_groups` all that is in and below it, deepest first.

    Stops at the first thing it may not remove; what was removed before stays removed.
    Raises NotFound, PermissionDenied (not empty and not `delete_groups`; the root; a protected
    snapshot), Locked.
    """
    if not namespace.components:
        raise PermissionDenied("the root namespace can't be removed")
    namespaces.check_namespace(backend, namespace)
    below = namespaces.children(backend, namespace)
    inside = groups.list_groups(backend, namespace, empty=True)
    if (below or inside) and not delete_groups:
        first = below[0] if below else inside[0]
        raise PermissionDenied(f"namespace {namespace} is not empty: {first} is in it")
    for child in below:
        delete_namespace(backend, child, delete_groups=True)
    for group in inside:
        forget_group(backend, namespace, group)
    namespaces.remove_empty_namespace(backend, namespace)


def forget_group(backend: Backend, namespace: Namespace, group: BackupGroup) -> None:
    """Remove a group with all its snapshots, oldest first.

    Raises NotFound, Locked (in use), PermissionDenied (one is protected: none is removed).
    """
    with locks.lock_group(backend, namespace, group):
        snapshots = groups.list_snapshots(backend, namespace, group)
        protected = [found for found in snapshots if is_protected(backend, namespace, found)]
        if protected:
            raise PermissionDenied(f"snapshot {protected[0]} is protected")
        for snapshot in snapshots:
            _remove_finished(backend, namespace, snapshot)
        left = groups.snapshot_directories(backend, namespace, group)
        remove_leftovers(backend, namespace, left)
        remove_empty_group(backend, namespace, group)
