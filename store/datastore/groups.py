"""Backup groups, and the snapshots in them, as the directories tell (spec 6.1, 6.4).

A snapshot is there when its manifest is; everything else is being written, or left over from a
writer that died.
"""

from typing import NamedTuple

from store.backends.base import Backend, Subdirectory
from store.datastore import manifests
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


def check_group(backend: Backend, namespace: Namespace, group: BackupGroup) -> None:
    """Raise NotFound if there is no such group."""
    there = backend.stat(group.path(namespace))
    if there is None or not there.is_directory:
        raise NotFound(f"backup group {group} does not exist in {backend.location}")


class SnapshotDirectory(NamedTuple):
    """A directory in a group that is named like a snapshot."""

    snapshot: Snapshot
    directory: Subdirectory

    @property
    def is_finished(self) -> bool:
        """Whether its manifest is there; looked up when asked, where that costs a look-up."""
        return self.directory.is_marked


def snapshot_directories(
    backend: Backend, namespace: Namespace, group: BackupGroup
) -> list[SnapshotDirectory]:
    """Everything in a group that is named like a snapshot, finished or not, oldest first."""
    found = []
    for directory in backend.subdirectories(group.path(namespace), MANIFEST_BLOB_NAME):
        try:
            snapshot = Snapshot(group, parse_backup_time(directory.name))
        except InvalidName:
            continue  # somebody else's directory
        found.append(SnapshotDirectory(snapshot, directory))
    return sorted(found, key=lambda one: one.snapshot)


def is_finished(backend: Backend, namespace: Namespace, snapshot: Snapshot) -> bool:
    """Whether its manifest is there."""
    return backend.stat(f"{snapshot.path(namespace)}/{MANIFEST_BLOB_NAME}") is not None


def check_finished(backend: Backend, namespace: Namespace, snapshot: Snapshot) -> None:
    """Raise NotFound if there is no such snapshot."""
    if not is_finished(backend, namespace, snapshot):
        raise manifests.missing(namespace, snapshot)


def list_snapshots(backend: Backend, namespace: Namespace, group: BackupGroup) -> list[Snapshot]:
    """The finished snapshots of a group, oldest first; none when there is no such group."""
    found = snapshot_directories(backend, namespace, group)
    return [one.snapshot for one in found if one.is_finished]


def find_latest(backend: Backend, namespace: Namespace, group: BackupGroup) -> Snapshot | None:
    """The newest finished snapshot of a group, if there is one."""
    newest_first = reversed(snapshot_directories(backend, namespace, group))
    return next((found.snapshot for found in newest_first if found.is_finished), None)


def latest_snapshot(backend: Backend, namespace: Namespace, group: BackupGroup) -> Snapshot:
    """The newest finished snapshot of a group. Raises NotFound."""
    latest = find_latest(backend, namespace, group)
    if latest is None:
        where = f" in namespace {namespace}" if namespace.components else ""
        raise NotFound(f"backup group {group}{where} has no snapshot")
    return latest


def resolve_snapshot(backend: Backend, namespace: Namespace, text: str) -> Snapshot:
    """The snapshot a user means by `type/id/time`, or `type/id` for the newest.

    Raises NotFound, InvalidName.
    """
    parts = text.split("/")
    if len(parts) == 2 or (len(parts) == 3 and parts[2] == "latest"):
        return latest_snapshot(backend, namespace, BackupGroup(parts[0], parts[1]))
    if len(parts) != 3:
        raise InvalidName(f"snapshot {text!r}: write it as type/id/time, or type/id for the newest")
    snapshot = Snapshot.parse(text)
    check_finished(backend, namespace, snapshot)
    return snapshot


def read_notes(backend: Backend, namespace: Namespace, group: BackupGroup) -> str:
    """The notes on a group, "" when there are none."""
    try:
        return backend.read(f"{group.path(namespace)}/{NOTES}").decode("utf-8", "replace")
    except NotFound:
        return ""
