"""Opening snapshots for the commands that read them."""

from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from functools import cached_property
from typing import TYPE_CHECKING

from store.cli.options import get_namespace, load_key, open_repository

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from store.datastore.archives import SnapshotReader
    from store.format.crypt import CryptConfig
    from store.format.manifest import Manifest
    from store.names import Snapshot
    from store.operations.browse.contents import SnapshotContents

CACHE_BYTES = 64 << 20


class Reading:
    """The repository and namespace of a command, and the key, which is asked for once at most.

    A default key that a snapshot does not need is left alone, passphrase and all.
    """

    def __init__(self, args: "argparse.Namespace") -> None:
        from store.datastore.chunk_cache import ChunkCache

        self._args = args
        self.datastore = open_repository(args)
        self.namespace = get_namespace(args)
        self._cache = ChunkCache(CACHE_BYTES)

    def resolve(self, name: str) -> "Snapshot":
        """The snapshot of a name; `type/id` is the newest."""
        return self.datastore.resolve_snapshot(self.namespace, name)

    def reader(self, snapshot: "Snapshot", manifest: "Manifest | None" = None) -> "SnapshotReader":
        """Open a snapshot, which the caller has locked; `manifest`: if it was read already."""
        from store.datastore.archives import SnapshotReader

        explicit = self._args.keyfile is not None or self._args.keyfd is not None
        manifest = manifest or self.datastore.read_manifest(self.namespace, snapshot)
        key = self._key if explicit or _has_key(manifest) else None
        return SnapshotReader(
            self.datastore, self.namespace, snapshot, key, self._cache, manifest=manifest
        )

    @contextmanager
    def contents(self, snapshot: "Snapshot") -> "Iterator[SnapshotContents]":
        """What is in a snapshot, which nobody can remove meanwhile."""
        from store.cli.disks import disk_opener
        from store.operations.browse.contents import SnapshotContents

        with ExitStack() as held, disk_opener(self._args) as open_disk:
            manifest = self._lock(snapshot, held)
            yield SnapshotContents(self.reader(snapshot, manifest), open_disk)

    def _lock(self, snapshot: "Snapshot", held: ExitStack) -> "Manifest":
        """Lock a snapshot and read its manifest, at once: far away each takes a while.

        What was read before the lock was had is as good: who removes a snapshot leaves its chunks
        for a day.
        """
        from store.datastore.workers import Workers

        datastore, namespace = self.datastore, self.namespace

        def read() -> "Manifest":
            return datastore.read_manifest(namespace, snapshot)

        with Workers(datastore.backend, 1, "manifest") as workers:
            manifest = workers.submit(copy_context().run, read)
            held.enter_context(datastore.lock_snapshot_shared(namespace, snapshot))
            return manifest.result()

    @cached_property
    def _key(self) -> "CryptConfig | None":
        return load_key(self._args)


def _has_key(manifest: "Manifest") -> bool:
    from store.format.manifest import CryptMode

    return any(file.crypt_mode is not CryptMode.NONE for file in manifest.files)
