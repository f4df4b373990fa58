"""Encoded chunks on a fast local disk, in front of any backend."""

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from store.backends.base import Backend
from store.backends.cache.disk import CacheDisk, CacheUsage
from store.backends.cache.files import DATASTORE_SIZE
from store.backends.wrappers.wrapper import Wrapper
from store.errors import StoreError
from store.format.buffer import Buffer

CHUNKS = ".chunks"
CHUNK = re.compile(r"\.chunks/([0-9a-f]{4})/(\1[0-9a-f]{60})")
CHUNK_DIRECTORY = re.compile(r"\.chunks/([0-9a-f]{4})")


class Cache(Wrapper):
    """A Backend whose chunks, once read, are read from a directory on this machine.

    Chunks are kept as they are stored (an encrypted one stays encrypted), and nothing else is.
    What is here says nothing about what the datastore has: `stat`, `touch` and `walk` ask it. Any
    number of processes and datastores may share the directory, and it may be deleted at any time.
    """

    def __init__(
        self,
        inner: Backend,
        directory: str,
        budget_bytes: int,
        *,
        identity: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Use `directory`, which is made if need be.

        Args:
            inner: where the chunks are.
            directory: empty, or a chunk cache already; on a local disk.
            budget_bytes: of disk, for everything in `directory`.
            identity: what tells this datastore from all others that use the directory; None is
                the location of `inner`.
            clock: seconds.
        Raises:
            InvalidName: the directory holds something else. Any other failure of it is a WARNING,
                once, and costs speed alone.
        """
        super().__init__(inner)
        identity = inner.location if identity is None else identity
        self._datastore = hashlib.sha256(identity.encode()).digest()[:DATASTORE_SIZE]
        self._disk = CacheDisk(directory, budget_bytes, clock=clock)

    def usage(self) -> CacheUsage:
        """How full the directory is, and what this process has had from it."""
        return self._disk.usage()

    def read(self, name: str) -> bytes:
        key = self._key(name)
        if key is None:
            return self.inner.read(name)
        raw = self._disk.get(key)
        if raw is None:
            raw = self.inner.read(name)
            self._disk.keep(key, raw)
        return raw

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        key = self._key(name)
        raw = self._disk.get(key) if key is not None else None
        if raw is None:
            return self.inner.read_range(name, offset, size)
        return raw[offset : offset + size]

    def write(
        self, name: str, parts: Sequence[Buffer], *, exclusive: bool = False, durable: bool = False
    ) -> None:
        try:
            self.inner.write(name, parts, exclusive=exclusive, durable=durable)
        finally:  # an error does not say that nothing was done
            self._drop(name)

    def rename(self, old: str, new: str) -> None:
        try:
            self.inner.rename(old, new)
        finally:
            self._drop(old)
            self._drop(new)

    def delete(self, name: str) -> None:
        try:
            self.inner.delete(name)
        finally:
            self._drop(name)

    def remove_tree(self, name: str) -> None:
        try:
            self.inner.remove_tree(name)
        finally:
            directory = CHUNK_DIRECTORY.fullmatch(name)
            if directory is not None:
                self._disk.drop_below(self._datastore, directory[1])
            elif name in ("", CHUNKS):
                self._disk.drop_below(self._datastore, "")

    def copies(self, name: str) -> Iterator[bytes]:
        key = self._key(name)
        if key is not None:
            self._disk.drop(key)
            with suppress(StoreError):
                yield self.inner.read(name)
        yield from self.inner.copies(name)

    def repair(self, name: str, good: Buffer) -> None:
        self._drop(name)
        self.inner.repair(name, good)

    def close(self) -> None:
        self._disk.close()
        self.inner.close()

    def _key(self, name: str) -> bytes | None:
        """Of a chunk's name; None for everything else."""
        chunk = CHUNK.fullmatch(name)
        return self._datastore + bytes.fromhex(chunk[2]) if chunk is not None else None

    def _drop(self, name: str) -> None:
        key = self._key(name)
        if key is not None:
            self._disk.drop(key)
