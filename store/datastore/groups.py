"""Backup groups, and the snapshots in them, as the directories tell (spec 6.1, 6.4).

A snapshot is there when its manifest is; everything else is being written, or left over from a
writer that died.
"""

from store.backends.base import Backend
from store.errors import InvalidName, NotFound
from store.names import (
    BACKUP_TYPES,
    MANIFEST_BLOB_NAME,
    SAFE_ID,
    BackupGroup,
    Namespace,
    Snapshot,
    parse_backup_time,
)

NOTES = "notes"


def list_groups(
    backend: Backend, namespace: Namespace, *, empty: bool = False
) -> list[BackupGroup]:
    """The groups of one namespace, sorted; those without a finished snapshot only if `empty`."""
    groups = []
    for backup_type in BACKUP_TYPES:
        path = f"{namespace.path}/{backup_type}" if namespace.components else backup_type
        for entry in backend.scan(path):
            if entry.is_directory and SAFE_ID.fullmatch(entry.name):
                group = BackupGroup(backup_type, entry.name)
                if empty or find_latest(backend, namespace, group) is not None:
                    groups.append(group)
    return sorted(groups)


def snapshot_directories(
    backend: Backend, namespace: Namespace, group: BackupGroup
) -> list[Snapshot]:
    """Everything in a group that is named like a snapshot, finished or not, oldest first."""
    found = []
    for entry in backend.scan(group.path(namespace)):
        if entry.is_directory:
            try:
                found.append(Snapshot(group, parse_backup_time(entry.name)))
            except InvalidName:
                continue  # somebody else's directory
    return sorted(found)


def is_finished(backend: Backend, namespace: Namespace, snapshot: Snapshot) -> bool:
    """Whether its manifest is there."""
    return backend.stat(f"{snapshot.path(namespace)}/{MANIFEST_BLOB_NAME}") is not None


def list_snapshots(backend: Backend, namespace: Namespace, group: BackupGroup) -> list[Snapshot]:
    """The finished snapshots of a group, oldest first; none when there is no such group."""
    found = snapshot_directories(backend, namespace, group)
    return [snapshot for snapshot in found if is_finished(backend, namespace, snapshot)]


def find_latest(backend: Backend, namespace: Namespace, group: BackupGroup) -> Snapshot | None:
    """The newest finished snapshot of a group, if there is one."""
    newest_first = reversed(snapshot_directories(backend, namespace, group))
    return next((found for found in newest_first if is_finished(backend, namespace, found)), None)


def read_notes(backend: Backend, namespace: Namespace, group: BackupGroup) -> str:
    """The notes on a group, "" when there are none."""
    try:
        return backend.read(f"{group.path(namespace)}/{NOTES}").decode("utf-8", "replace")
    except NotFound:
        return ""
