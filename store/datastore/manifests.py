"""Manifests and the other files of a snapshot on the backend."""

import logging
from collections.abc import Callable
from contextlib import suppress

from store.backends import patience
from store.backends.base import Backend
from store.datastore import locks
from store.errors import FormatError, IntegrityError, KeyRequired, Locked, NotFound
from store.format.blob import decode_blob, encode_blob
from store.format.buffer import Buffer
from store.format.manifest import Manifest
from store.names import INDEX_FILE, MANIFEST_BLOB_NAME, Namespace, Snapshot, check_file_name

log = logging.getLogger(__name__)

PROTECTED = ".protected"


def file_path(namespace: Namespace, snapshot: Snapshot, filename: str) -> str:
    """The object of one file of a snapshot.

    Raises InvalidName: no name for one, so no path leads out.
    """
    return f"{snapshot.path(namespace)}/{check_file_name(filename)}"


def missing(
    namespace: Namespace, snapshot: Snapshot, filename: str = MANIFEST_BLOB_NAME
) -> NotFound:
    """The error for a file, or a whole snapshot, that is not there."""
    where = f" in namespace {namespace}" if namespace.components else ""
    if filename == MANIFEST_BLOB_NAME:
        return NotFound(f"snapshot {snapshot} does not exist{where}")
    return NotFound(f"snapshot {snapshot}{where} has no file {filename!r}")


def read_file(backend: Backend, namespace: Namespace, snapshot: Snapshot, filename: str) -> bytes:
    """One whole file of a snapshot, as it is stored. Raises NotFound, InvalidName."""
    try:
        return backend.read(file_path(namespace, snapshot, filename))
    except NotFound as error:
        raise missing(namespace, snapshot, filename) from error


def map_file(backend: Backend, namespace: Namespace, snapshot: Snapshot, filename: str) -> Buffer:
    """The same as memory that need not be resident. Raises NotFound, InvalidName."""
    try:
        return backend.map(file_path(namespace, snapshot, filename))
    except NotFound as error:
        raise missing(namespace, snapshot, filename) from error


def list_files(backend: Backend, namespace: Namespace, snapshot: Snapshot) -> list[str]:
    """The files a snapshot has on the backend, sorted; temporary and foreign ones are left out."""
    found = backend.scan(snapshot.path(namespace))
    return sorted(
        entry.name for entry in found if not entry.is_directory and INDEX_FILE.fullmatch(entry.name)
    )


def read_manifest(backend: Backend, namespace: Namespace, snapshot: Snapshot) -> Manifest:
    """What a snapshot consists of; its signature is not checked.

    Raises NotFound, FormatError, IntegrityError.
    """
    raw = read_file(backend, namespace, snapshot, MANIFEST_BLOB_NAME)
    try:
        return Manifest.decode(decode_blob(raw))
    except (FormatError, IntegrityError, KeyRequired) as error:
        kind = FormatError if isinstance(error, KeyRequired) else type(error)
        raise kind(f"manifest of {snapshot}: {error}") from error


def publish_manifest(
    backend: Backend,
    namespace: Namespace,
    snapshot: Snapshot,
    manifest: Manifest,
    check_locks: Callable[[], None],
    *,
    durable: bool,
) -> None:
    """Put a new snapshot's manifest in place: with it the snapshot becomes visible.

    `check_locks` raises Locked when one was lost. Then the manifest is not there when this ends: by
    now another may have removed the files it names, taking them for a dead writer's.

    Raises Locked, and AlreadyExists where locks are leases: another's manifest is there.
    """
    raw = encode_blob(manifest.encode())
    path = file_path(namespace, snapshot, MANIFEST_BLOB_NAME)
    exclusive = backend.is_object_store
    try:
        _write_held(backend, path, raw, check_locks, exclusive=exclusive, durable=durable)
    except Locked:
        _take_back(backend, path, raw)
        raise


def _write_held(
    backend: Backend,
    path: str,
    raw: bytes,
    check_locks: Callable[[], None],
    *,
    exclusive: bool = False,
    durable: bool,
) -> None:
    """Write what nobody may write without its locks: no attempt begins when one was lost.

    Raises Locked also when that shows afterwards, by the time the storage gives its answer: a
    request may take long, and a virtual machine that is paused does not know. Then it is written.
    """
    check_locks()
    with patience.while_held(check_locks):
        backend.write(path, (raw,), exclusive=exclusive, durable=durable)
    check_locks()


def _take_back(backend: Backend, path: str, raw: bytes) -> None:
    """Remove what we wrote without a lock, if it is there and ours."""
    with suppress(NotFound):
        if backend.read(path) == raw:
            backend.delete(path)


def update_manifest(
    backend: Backend,
    namespace: Namespace,
    snapshot: Snapshot,
    change: Callable[[Manifest], Manifest],
) -> Manifest:
    """Replace a manifest by `change` of it, under its lock.

    Raises NotFound, Locked: then it may be changed or not, but a snapshot that was removed
    meanwhile stays removed.
    """
    path = file_path(namespace, snapshot, MANIFEST_BLOB_NAME)
    with locks.lock_manifest(backend, namespace, snapshot) as lock:
        changed = change(read_manifest(backend, namespace, snapshot))
        raw = encode_blob(changed.encode())
        try:
            _write_held(backend, path, raw, lock.check, durable=True)
        except Locked:
            lock.release()
            try:
                _take_back_if_removed(backend, namespace, changed, raw)
            except Locked as error:
                log.warning("%s: not known whether it was removed meanwhile: %s", path, error)
            raise
    return changed


def _take_back_if_removed(
    backend: Backend, namespace: Namespace, manifest: Manifest, raw: bytes
) -> None:
    """Remove a manifest of ours that came after the snapshot's removal.

    Under a new lock, which who removes a snapshot holds to the end. Where the files are there the
    manifest stays, or a snapshot that nobody has removed would be lost.
    """
    snapshot = manifest.snapshot
    with locks.lock_manifest(backend, namespace, snapshot):
        files = {info.filename for info in manifest.files}
        if not files <= set(list_files(backend, namespace, snapshot)):
            _take_back(backend, file_path(namespace, snapshot, MANIFEST_BLOB_NAME), raw)
