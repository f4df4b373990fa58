"""Opening snapshots for the commands that read them."""

from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING

from store.cli.options import get_namespace, load_key, open_repository

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from concurrent.futures import Future

    from store.backends.base import Backend
    from store.datastore.archives import SnapshotReader
    from store.datastore.snapshot_indexes import SnapshotIndexes
    from store.format.crypt import CryptConfig
    from store.format.manifest import Manifest
    from store.names import Snapshot
    from store.operations.browse.contents import SnapshotContents

CACHE_BYTES = 64 << 20
CONTENTS, KEYS = "store.operations.browse.contents", "store.format.keys"


class Reading:
    """The repository and namespace of a command, and the key, which is asked for once at most.

    A default key that a snapshot does not need is left alone, passphrase and all.
    """

    def __init__(
        self, args: "argparse.Namespace", name: str | None = None, module: str = CONTENTS
    ) -> None:
        """Open the repository.

        Where that takes a request, the snapshot `name` is looked for meanwhile, and `module` is
        imported, which the command needs later.
        """
        from store.datastore.chunk_cache import ChunkCache

        self._args, self._name, self._module = args, name, module
        self.namespace = get_namespace(args)
        self._found: Future[Snapshot] | None = None
        self.datastore = open_repository(args, self._look)
        self._cache = ChunkCache(CACHE_BYTES)

    @contextmanager
    def _look(self, backend: "Backend") -> "Iterator[None]":
        """Look for the snapshot, and import. What was found or went wrong is for `resolve`."""
        from concurrent.futures import wait

        from store.datastore.groups import resolve_snapshot
        from store.datastore.workers import Workers

        with Workers(backend, 2, "meanwhile") as workers:
            if self._name is not None:
                self._found = workers.submit(
                    copy_context().run, resolve_snapshot, backend, self.namespace, self._name
                )
            workers.submit(self._import)
            yield
            if self._found is not None:
                wait((self._found,))

    def _import(self) -> None:
        import_module(self._module)
        if self._is_key_given:
            import_module(KEYS)

    def resolve(self, name: str) -> "Snapshot":
        """The snapshot of a name; `type/id` is the newest."""
        if self._found is not None and name == self._name:
            return self._found.result()
        return self.datastore.resolve_snapshot(self.namespace, name)

    @contextmanager
    def contents(self, snapshot: "Snapshot", *paths: str | None) -> "Iterator[SnapshotContents]":
        """What is in a snapshot, which nobody can remove meanwhile.

        `paths`: what will be opened; its indexes are had when the lock is.
        """
        from store.cli.disks import disk_opener
        from store.operations.browse.contents import SnapshotContents

        with ExitStack() as held, disk_opener(self._args) as open_disk:
            indexes = self._lock(snapshot, held, paths)
            yield SnapshotContents(self._reader(snapshot, indexes), open_disk)

    def _lock(
        self, snapshot: "Snapshot", held: ExitStack, paths: "tuple[str | None, ...]"
    ) -> "SnapshotIndexes":
        """Lock a snapshot, and read its manifest and indexes, at once: far away each takes a while.

        What was read before the lock was had is as good: it is compared with the manifest, and who
        removes a snapshot leaves its chunks to garbage collection.
        """
        from store.datastore.workers import Workers

        datastore, namespace = self.datastore, self.namespace

        def read() -> "SnapshotIndexes":
            manifest = datastore.read_manifest(namespace, snapshot)
            from store.datastore.snapshot_indexes import SnapshotIndexes
            from store.operations.browse.contents import indexes_behind

            indexes = SnapshotIndexes(datastore.backend, namespace, snapshot, manifest)
            names = [name for path in paths if path for name in indexes_behind(manifest, path)]
            indexes.read_ahead(dict.fromkeys(names))
            return indexes

        with Workers(datastore.backend, 1, "manifest") as workers:
            indexes = workers.submit(copy_context().run, read)
            held.enter_context(datastore.lock_snapshot_shared(namespace, snapshot))
            return indexes.result()

    def _reader(self, snapshot: "Snapshot", indexes: "SnapshotIndexes") -> "SnapshotReader":
        from store.datastore.archives import SnapshotReader

        manifest = indexes.manifest
        key = self._key if self._is_key_given or _has_key(manifest) else None
        return SnapshotReader(
            self.datastore,
            self.namespace,
            snapshot,
            key,
            self._cache,
            manifest=manifest,
            indexes=indexes,
        )

    @property
    def _is_key_given(self) -> bool:
        return self._args.keyfile is not None or self._args.keyfd is not None

    @cached_property
    def _key(self) -> "CryptConfig | None":
        return load_key(self._args)


def _has_key(manifest: "Manifest") -> bool:
    from store.format.manifest import CryptMode

    return any(file.crypt_mode is not CryptMode.NONE for file in manifest.files)
