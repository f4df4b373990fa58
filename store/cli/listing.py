"""Snapshots and groups as the records PBS's client prints."""

import logging
from typing import TYPE_CHECKING, Any

from store.errors import NotFound, StoreError
from store.names import CLIENT_LOG_BLOB_NAME, MANIFEST_BLOB_NAME

if TYPE_CHECKING:
    from store.cli.output import Row
    from store.datastore.datastore import Datastore
    from store.format.manifest import Manifest
    from store.names import BackupGroup, Namespace, Snapshot

log = logging.getLogger(__name__)


def snapshot_record(datastore: "Datastore", namespace: "Namespace", snapshot: "Snapshot") -> "Row":
    """One element of `snapshot list`: files, owner, protection, first line of the notes.

    Raises NotFound: it was removed meanwhile.
    """
    manifest = _readable_manifest(datastore, namespace, snapshot)
    files = file_records(datastore, namespace, snapshot, manifest)
    record: Row = {
        "backup-type": snapshot.group.type,
        "backup-id": snapshot.group.id,
        "backup-time": snapshot.time,
        "files": files,
        **_owner(datastore, namespace, snapshot.group),
        "protected": datastore.is_protected(namespace, snapshot),
        "size": sum(file.get("size", 0) for file in files),
    }
    if manifest is None:
        return record
    if comment := first_line(manifest.unprotected.get("notes")):
        record["comment"] = comment
    if manifest.key_fingerprint is not None:
        record["fingerprint"] = str(manifest.key_fingerprint)
    if verification := manifest.unprotected.get("verify_state"):
        record["verification"] = verification
    return record


def file_records(
    datastore: "Datastore",
    namespace: "Namespace",
    snapshot: "Snapshot",
    manifest: "Manifest | None",
) -> "list[Row]":
    """The files of the manifest in its order, the manifest itself, and a log added later.

    Without a readable manifest: the names alone.
    """
    if manifest is None:
        return [{"filename": name} for name in datastore.list_files(namespace, snapshot)]
    records: list[Row] = [
        {"filename": file.filename, "crypt-mode": str(file.crypt_mode), "size": file.size}
        for file in manifest.files
    ]
    signed = "none" if manifest.signature is None else "sign-only"
    for name, mode in ((MANIFEST_BLOB_NAME, {"crypt-mode": signed}), (CLIENT_LOG_BLOB_NAME, {})):
        stat = datastore.backend.stat(f"{snapshot.path(namespace)}/{name}")
        if stat is not None:
            records.append({"filename": name, **mode, "size": stat.size})
    return records


def group_record(
    datastore: "Datastore", namespace: "Namespace", group: "BackupGroup"
) -> "Row | None":
    """One element of `group list`; None for a group without a finished snapshot."""
    snapshots = datastore.list_snapshots(namespace, group)
    if not snapshots:
        return None
    try:
        manifest = _readable_manifest(datastore, namespace, snapshots[-1])
    except NotFound:  # removed meanwhile: look again
        return group_record(datastore, namespace, group)
    files = file_records(datastore, namespace, snapshots[-1], manifest)
    record: Row = {
        "backup-type": group.type,
        "backup-id": group.id,
        "backup-count": len(snapshots),
        "last-backup": snapshots[-1].time,
        "files": sorted(file["filename"] for file in files),
        **_owner(datastore, namespace, group),
    }
    if comment := first_line(datastore.notes(namespace, group)):
        record["comment"] = comment
    return record


def _readable_manifest(
    datastore: "Datastore", namespace: "Namespace", snapshot: "Snapshot"
) -> "Manifest | None":
    """None, and a warning, for one that cannot be read: the rest of the list is worth having.

    Raises NotFound.
    """
    try:
        return datastore.read_manifest(namespace, snapshot)
    except NotFound:
        raise
    except StoreError as error:
        log.warning("%s", error)
        return None


def _owner(datastore: "Datastore", namespace: "Namespace", group: "BackupGroup") -> "Row":
    """The owner's field; none, and a warning, where it is lost or cannot be read."""
    try:
        return {"owner": datastore.owner(namespace, group)}
    except StoreError as error:
        log.warning("%s; group change-owner gives it one", error)
        return {}


def first_line(notes: Any) -> str:  # noqa: ANN401 - JSON
    """The comment that lists show."""
    return notes.partition("\n")[0] if isinstance(notes, str) else ""


def short_names(files: "list[str]") -> str:
    """File names without their last ending, sorted: `catalog.pcat1 index.json root.pxar`."""
    return " ".join(sorted(name.rpartition(".")[0] for name in files))
