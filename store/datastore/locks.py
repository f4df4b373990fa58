"""Which lock stands for what: PBS's lock files (spec 6.5), and the objects we lock besides."""

import hashlib
import re

from store.backends.base import Backend, Lock
from store.errors import NotFound
from store.names import MANIFEST_BLOB_NAME, BackupGroup, Namespace, Snapshot, format_backup_time

MANIFEST_TIMEOUT_S = 5.0
MAX_LOCK_NAME = 254
PLAIN = re.compile(rb"[A-Za-z0-9_.]")


def escape(path: str) -> str:
    r"""Systemd's escaping of a path: `/` becomes `-`, all but `[A-Za-z0-9_.]` becomes `\xNN`."""
    escaped = []
    for position, byte in enumerate(path.lstrip("/").encode()):
        char = bytes((byte,))
        if char == b"/":
            escaped.append("-")
        elif PLAIN.match(char) and not (char == b"." and position == 0):
            escaped.append(char.decode())
        else:
            escaped.append(f"\\x{byte:02x}")
    return "".join(escaped)


def lock_name(namespace: Namespace, path: str) -> str:
    """PBS 4's lock file for `vm/100`, `vm/100/<time>`, … below the datastore's lock directory."""
    name = escape(path)
    if len(name) > MAX_LOCK_NAME:
        name = f"hashed/{name[:80]}...{name[-80:]}-{hashlib.sha256(path.encode()).hexdigest()}"
    return "/".join(part for part in (":".join(namespace.components), name) if part)


def lock_group(backend: Backend, namespace: Namespace, group: BackupGroup) -> Lock:
    """Keep all other writers out of a group. Raises Locked, NotFound."""
    try:
        return backend.lock(group.path(namespace), group_locks(namespace, group), exclusive=True)
    except NotFound as error:
        where = f" in namespace {namespace}" if namespace.components else ""
        raise NotFound(f"backup group {group} does not exist{where}") from error


def group_locks(namespace: Namespace, group: BackupGroup) -> tuple[str, ...]:
    """PBS's lock files of a group."""
    return (lock_name(namespace, str(group)),)


def lock_snapshot(
    backend: Backend, namespace: Namespace, snapshot: Snapshot, *, exclusive: bool
) -> Lock:
    """Exclusive to write or remove a snapshot, shared to read it. Raises Locked, NotFound."""
    return backend.lock(
        snapshot.path(namespace), snapshot_locks(namespace, snapshot), exclusive=exclusive
    )


def snapshot_locks(namespace: Namespace, snapshot: Snapshot) -> tuple[str, ...]:
    """PBS's lock files of a snapshot."""
    return (lock_name(namespace, str(snapshot)),)


def lock_manifest(backend: Backend, namespace: Namespace, snapshot: Snapshot) -> Lock:
    """Keep other changes of a manifest away; waits up to 5 s. Raises Locked, NotFound."""
    return backend.lock(
        f"{snapshot.path(namespace)}/{MANIFEST_BLOB_NAME}",
        manifest_locks(namespace, snapshot),
        exclusive=True,
        timeout_s=MANIFEST_TIMEOUT_S,
    )


def manifest_locks(namespace: Namespace, snapshot: Snapshot) -> tuple[str, ...]:
    """The lock files of a manifest: PBS 4's, and PBS 3's, which no PBS 4 minds."""
    time = format_backup_time(snapshot.time)
    return (
        lock_name(namespace, f"{snapshot}/.index.json.lck"),
        f"{snapshot.path(namespace)}/{time}.index.json.lck",
    )
