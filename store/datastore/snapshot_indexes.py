"""The indexes of one snapshot, each read once for all who need it."""

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial

from store.backends.base import Backend
from store.datastore import manifests
from store.datastore.workers import at_once
from store.errors import FormatError, IntegrityError, NotFound, StoreError
from store.format.dynamic_index import DynamicIndex
from store.format.fixed_index import FixedIndex
from store.format.manifest import Manifest
from store.names import Digest, Namespace, Snapshot

log = logging.getLogger(__name__)

INDEXES = (".didx", ".fidx")
AnyIndex = FixedIndex | DynamicIndex


class SnapshotIndexes:
    """The indexes of a snapshot whose manifest is known. Thread-safe.

    Those of trees are kept: two parts of a backup need them. So is what was read ahead.
    """

    def __init__(
        self, backend: Backend, namespace: Namespace, snapshot: Snapshot, manifest: Manifest
    ) -> None:
        self.manifest = manifest
        self._backend, self._namespace, self._snapshot = backend, namespace, snapshot
        self._kept: dict[str, AnyIndex] = {}
        self._lock = threading.Lock()

    def read_ahead(self, filenames: Iterable[str]) -> None:
        """Read some that will be opened, at once. What fails is left for `open` to find."""
        at_once(self._backend, *(partial(self._read_ahead, filename) for filename in filenames))

    def _read_ahead(self, filename: str) -> None:
        with suppress(StoreError):
            self._kept[filename] = self._read(filename)

    def open(self, filename: str) -> AnyIndex:
        """One index. Raises NotFound, FormatError, IntegrityError, BackendError."""
        with self._lock:
            index = self._kept.get(filename)
            if index is None and filename.endswith(".didx"):
                index = self._kept[filename] = self._read(filename)
        return self._read(filename) if index is None else index

    def digests(self) -> Iterator[Digest]:
        """The chunks of the whole snapshot; an index that is damaged or gone is left out."""
        for info in self.manifest.files:
            if info.filename.endswith(INDEXES):
                try:
                    yield from self.open(info.filename).digests()
                except (FormatError, IntegrityError, NotFound) as error:
                    log.debug("%s", error)

    def _read(self, filename: str) -> AnyIndex:
        raw = manifests.map_file(self._backend, self._namespace, self._snapshot, filename)
        try:
            return FixedIndex(raw) if filename.endswith(".fidx") else DynamicIndex(raw)
        except FormatError as error:
            raise FormatError(f"{self._snapshot}/{filename}: {error}") from error
