"""What all connections of an export share, in nbdkit's process. Knows nothing of nbdkit."""

from contextlib import ExitStack
from typing import Protocol

from blockgw.device import Device
from blockgw.export import Exports
from blockgw.settings import Settings
from blockgw.writing.held_head import HeldHead, heads_of, open_head
from blockgw.writing.selection import HeadSelection
from store.datastore.archives import ChunkCache
from store.datastore.chunk_cache import cache_over
from store.datastore.datastore import Datastore
from store.format.crypt import CryptConfig
from store.repositories.repository import open_datastore


class Served(Protocol):
    """Snapshots, or a head. Every method raises StoreError."""

    def names(self) -> list[str]:
        """Of all exports."""

    def default(self) -> str:
        """The name that stands for the empty one."""

    def open(self, name: str) -> Device:
        """What a client asks for."""

    def end(self) -> None:
        """No more requests come."""


class ServedSnapshots:
    """The images of snapshots."""

    def __init__(
        self, exports: Exports, datastore: Datastore, key: CryptConfig | None, cache: ChunkCache
    ) -> None:
        self._exports = exports
        self._datastore, self._key, self._cache = datastore, key, cache

    def names(self) -> list[str]:
        """Of all exports."""
        return [str(name) for name in self._exports.names()]

    def default(self) -> str:
        """The name that stands for the empty one."""
        return str(self._exports.default())

    def open(self, name: str) -> Device:
        """The image a client asks for."""
        return Device.open(self._datastore, self._exports.resolve(name), self._key, self._cache)

    def end(self) -> None:
        """Devices give their snapshots back themselves."""


class ServedHead:
    """The images of one head."""

    def __init__(self, held: HeldHead) -> None:
        self._held = held

    def names(self) -> list[str]:
        """Of all exports."""
        return self._held.exports.names()

    def default(self) -> str:
        """The name that stands for the empty one."""
        return self._held.exports.default()

    def open(self, name: str) -> Device:
        """The image a client asks for."""
        return self._held.open(name)

    def end(self) -> None:
        """Close the head, sealed or not, as the user said."""
        self._held.end()


class Server:
    """The open datastore, and what of it is served."""

    def __init__(self, settings: Settings) -> None:
        """Raises StoreError: then nothing is left open."""
        self.threads = settings.threads
        with ExitStack() as stack:
            datastore = open_datastore(settings.repository)
            # In an object store, shared locks would stay until they run out.
            stack.callback(datastore.close)
            cache = cache_over(datastore.backend, datastore.memory_bytes)
            stack.callback(cache.close)
            self.served = self._serve(settings, datastore, cache)
            stack.callback(self.served.end)
            self._resources = stack.pop_all()

    def _serve(self, settings: Settings, datastore: Datastore, cache: ChunkCache) -> Served:
        key = CryptConfig(settings.key) if settings.key else None
        selection = settings.selection
        if not isinstance(selection, HeadSelection):
            return ServedSnapshots(Exports(datastore, selection), datastore, key, cache)
        head = open_head(selection, heads_of(selection, datastore, key, cache))
        try:
            return ServedHead(HeldHead(head, selection))
        except BaseException:
            head.abandon()
            raise

    def close(self) -> None:
        """No more requests come. Raises StoreError; everything is given back all the same."""
        self._resources.close()
