"""Manifests and the other files of a snapshot on the backend."""

from collections.abc import Callable

from store.backends.base import Backend
from store.errors import FormatError, IntegrityError, KeyRequired, NotFound
from store.format.blob import decode_blob, encode_blob
from store.format.buffer import Buffer
from store.format.manifest import Manifest
from store.names import INDEX_FILE, MANIFEST_BLOB_NAME, Namespace, Snapshot, check_file_name

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


def write_manifest(
    backend: Backend,
    namespace: Namespace,
    snapshot: Snapshot,
    manifest: Manifest,
    *,
    exclusive: bool = False,
    durable: bool,
) -> None:
    """Put a manifest in place; with it the snapshot becomes visible.

    `exclusive`: AlreadyExists when there is one.
    """
    path = file_path(namespace, snapshot, MANIFEST_BLOB_NAME)
    backend.write(path, (encode_blob(manifest.encode()),), exclusive=exclusive, durable=durable)


def update_manifest(
    backend: Backend,
    namespace: Namespace,
    snapshot: Snapshot,
    change: Callable[[Manifest], Manifest],
) -> Manifest:
    """Replace a manifest by `change` of it. The caller holds its lock."""
    changed = change(read_manifest(backend, namespace, snapshot))
    write_manifest(backend, namespace, snapshot, changed, durable=True)
    return changed
