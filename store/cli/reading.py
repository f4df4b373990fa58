"""Opening a snapshot for the commands that read it."""

from contextlib import contextmanager
from typing import TYPE_CHECKING

from store.cli.options import get_namespace, load_key, open_repository

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from store.datastore.archives import SnapshotReader
    from store.datastore.datastore import Datastore
    from store.format.manifest import Manifest
    from store.names import Namespace, Snapshot
    from store.operations.browse.contents import SnapshotContents

CACHE_BYTES = 64 << 20


def open_reader(
    args: "argparse.Namespace",
    datastore: "Datastore",
    namespace: "Namespace",
    snapshot: "Snapshot",
) -> "SnapshotReader":
    """Open the snapshot. A default key that it does not need is left alone, passphrase and all."""
    from store.datastore.archives import SnapshotReader
    from store.datastore.chunk_cache import ChunkCache

    explicit = args.keyfile is not None or args.keyfd is not None
    manifest = datastore.read_manifest(namespace, snapshot)
    key = load_key(args) if explicit or _has_key(manifest) else None
    cache = ChunkCache(CACHE_BYTES)
    return SnapshotReader(datastore, namespace, snapshot, key, cache, manifest=manifest)


@contextmanager
def opened(args: "argparse.Namespace", name: str) -> "Iterator[SnapshotContents]":
    """What is in the snapshot `name`, which cannot be removed meanwhile."""
    datastore, namespace = open_repository(args), get_namespace(args)
    snapshot = datastore.resolve_snapshot(namespace, name)
    with opened_snapshot(args, datastore, namespace, snapshot) as contents:
        yield contents


@contextmanager
def opened_snapshot(
    args: "argparse.Namespace", datastore: "Datastore", namespace: "Namespace", snapshot: "Snapshot"
) -> "Iterator[SnapshotContents]":
    """The same of a snapshot that was found already."""
    from store.cli.disks import disk_opener
    from store.operations.browse.contents import SnapshotContents

    with datastore.lock_snapshot_shared(namespace, snapshot), disk_opener() as open_disk:
        yield SnapshotContents(open_reader(args, datastore, namespace, snapshot), open_disk)


def _has_key(manifest: "Manifest") -> bool:
    from store.format.manifest import CryptMode

    return any(file.crypt_mode is not CryptMode.NONE for file in manifest.files)
