"""The indexes of one snapshot, each read once for all who need it."""

import logging
import threading
from collections.abc import Iterator
from typing import TypeVar

from store.backends.base import Backend
from store.datastore import manifests
from store.errors import FormatError, IntegrityError, NotFound
from store.format.dynamic_index import DynamicIndex
from store.format.fixed_index import FixedIndex
from store.format.manifest import Manifest
from store.names import Digest, Namespace, Snapshot

log = logging.getLogger(__name__)

INDEXES = (".didx", ".fidx")
AnyIndex = TypeVar("AnyIndex", FixedIndex, DynamicIndex)


class SnapshotIndexes:
    """The indexes of a snapshot whose manifest is known. Thread-safe.

    Those of trees are kept: two parts of a backup need them.
    """

    def __init__(
        self, backend: Backend, namespace: Namespace, snapshot: Snapshot, manifest: Manifest
    ) -> None:
        self.manifest = manifest
        self._backend, self._namespace, self._snapshot = backend, namespace, snapshot
        self._kept: dict[str, DynamicIndex] = {}
        self._lock = threading.Lock()

    def open(self, filename: str) -> FixedIndex | DynamicIndex:
        """One index. Raises NotFound, FormatError, IntegrityError, BackendError."""
        if filename.endswith(".fidx"):
            return self._read(filename, FixedIndex)
        with self._lock:
            index = self._kept.get(filename)
            if index is None:
                index = self._kept[filename] = self._read(filename, DynamicIndex)
            return index

    def digests(self) -> Iterator[Digest]:
        """The chunks of the whole snapshot; an index that is damaged or gone is left out."""
        for info in self.manifest.files:
            if info.filename.endswith(INDEXES):
                try:
                    yield from self.open(info.filename).digests()
                except (FormatError, IntegrityError, NotFound) as error:
                    log.debug("%s", error)

    def _read(self, filename: str, kind: type[AnyIndex]) -> AnyIndex:
        raw = manifests.map_file(self._backend, self._namespace, self._snapshot, filename)
        try:
            return kind(raw)
        except FormatError as error:
            raise FormatError(f"{self._snapshot}/{filename}: {error}") from error
