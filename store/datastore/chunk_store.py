"""The chunk store of a datastore: every chunk once, under its digest (spec 1.1 to 1.4)."""

import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from enum import StrEnum
from typing import NamedTuple

from store.backends.base import Backend, ObjectStat
from store.backends.chunks import CHUNKS as CHUNKS
from store.backends.chunks import replace_bad, write_chunk
from store.errors import AlreadyExists, BackendError, ChunkMissing, NotFound
from store.format.blob import ENCRYPTED_BLOB_MAGIC_1_0, ENCRYPTED_MAGICS
from store.format.buffer import Buffer
from store.names import Digest

CHUNK_NAME = re.compile(r"[0-9a-f]{64}")
STRIPES = 64  # more than any pool of writers has threads
MAGIC_SIZE = 8
NAME_SIZE = 4 + 1 + 64
"""Characters of a chunk's name below `.chunks`."""


class SyncLevel(StrEnum):
    """How durable a backup is when it is done.

    PBS's names; `FILESYSTEM` is its default and ours.
    """

    NONE = "none"
    FILESYSTEM = "filesystem"
    FILE = "file"


class InsertResult(NamedTuple):
    """Whether the chunk was new, and how many bytes its file, the old or the new one, has."""

    new: bool
    stored_size: int


def name_below(digest: Digest) -> str:
    """`0123/0123…`: a chunk's name below `.chunks`."""
    text = digest.hex()
    return f"{text[:4]}/{text}"


def digest_of(name: str) -> Digest | None:
    """The digest of `0123/0123…`, a name below `.chunks`; None for what is no chunk's name."""
    directory, _, text = name.partition("/")
    if not (text.startswith(directory) and CHUNK_NAME.fullmatch(text) and len(directory) == 4):
        return None
    return Digest(bytes.fromhex(text))


class ChunkStore:
    """Chunks by digest. Thread-safe; any number of processes may work on one store."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._inserting = tuple(threading.Lock() for _ in range(STRIPES))

    @property
    def backend(self) -> Backend:
        """Where they are."""
        return self._backend

    @staticmethod
    def name(digest: Digest) -> str:
        """`.chunks/0123/0123…`: the object of a chunk."""
        return f"{CHUNKS}/{name_below(digest)}"

    def read(self, digest: Digest, room: memoryview | None = None) -> Buffer:
        """The encoded chunk, unchecked. Raises ChunkMissing (absent or empty), BackendError.

        `room`: where it may go, to save fresh memory.
        """
        text = digest.hex()
        name = f"{CHUNKS}/{text[:4]}/{text}"
        try:
            raw = self._backend.read_into(name, room) if room else self._backend.read(name)
        except NotFound as error:
            raise ChunkMissing(f"chunk {text} is not in {self._backend.location}") from error
        if not raw:
            raise ChunkMissing(f"chunk {text} is empty in {self._backend.location}")
        return raw

    def copies(self, digest: Digest) -> Iterator[bytes]:
        """Other copies of the encoded chunk, for who found bad what `read` gave.

        That may be among them. A storage that has one of each has no others.
        """
        return self._backend.copies(self.name(digest))

    def repair(self, digest: Digest, good: Buffer) -> None:
        """Put a copy that was decoded wherever the storage has another or none."""
        self._backend.repair(self.name(digest), good)

    def insert(
        self, digest: Digest, header: Buffer, body: Buffer, *, durable: bool = False
    ) -> InsertResult:
        """Store an encoded chunk, as `encode_blob_parts` made it, unless a good one is there.

        A chunk that is there is touched, so that garbage collection keeps it; it is replaced when
        the new encoding of a plain chunk is smaller, or when it is empty. Contents are not
        compared: the digest vouches for them.

        Args:
            digest: its name; the caller has computed it from the plaintext.
            header: 12 or 44 bytes, starting with the magic.
            body: the rest.
            durable: on disk when this returns (sync level `file`).
        Raises:
            BackendError: the name is taken by something else than this kind of chunk.
            OutOfSpace, PermissionDenied.
        """
        name, parts, backend = self.name(digest), (header, body), self._backend
        size = len(header) + len(body)
        if backend.is_object_store:
            with suppress(AlreadyExists):  # one request where it is new, the usual case
                write_chunk(backend, name, parts, exclusive=True, durable=durable)
                return InsertResult(new=True, stored_size=size)
        with self._inserting[digest[-1] % STRIPES]:
            there = backend.stat(name)
            if there is not None and self._keeps(name, there, bytes(header[:MAGIC_SIZE]), size):
                if backend.is_object_store or backend.touch(name):
                    return InsertResult(new=False, stored_size=there.size)
                there = None  # collected between the two calls
            write_chunk(backend, name, parts, durable=durable)
            return InsertResult(new=not there or not there.size, stored_size=size)

    def _keeps(self, name: str, there: ObjectStat, magic: bytes, size: int) -> bool:
        """Whether the chunk that is there stays, by PBS's rules (spec 1.3). Raises BackendError."""
        if not there.is_regular:
            raise BackendError(f"{self._backend.location}/{name}: not a regular file")
        if there.size == size:
            return True
        if there.size == 0:
            return False
        if magic not in ENCRYPTED_MAGICS:
            return there.size < size
        found = self._backend.read_range(name, 0, MAGIC_SIZE)
        if found not in ENCRYPTED_MAGICS:
            raise BackendError(f"{self._backend.location}/{name}: not encrypted, its equal is")
        if found == magic == ENCRYPTED_BLOB_MAGIC_1_0:
            raise BackendError(
                f"{self._backend.location}/{name}: has {there.size} bytes, its equal has {size}"
            )
        return True

    def touch(self, digest: Digest) -> int | None:
        """Mark a chunk as in use for garbage collection.

        Its size in bytes, or None when absent (or empty).

        The one right existence check before a chunk is named by a new index.
        """
        return self._backend.touch(self.name(digest)) or None

    def stat(self, digest: Digest) -> ObjectStat | None:
        """Size and times of a chunk, without touching it; None when absent (or empty)."""
        found = self._backend.stat(self.name(digest))
        return found if found is not None and found.size else None

    def replace(
        self, digest: Digest, header: Buffer, body: Buffer, bad: Buffer, *, durable: bool = False
    ) -> InsertResult:
        """Store an encoded chunk over one that was read just now and is damaged: `bad`.

        That is kept beside it, under the first free of `<hex>.0.bad` to `<hex>.9.bad`; when none
        is, the last is overwritten. There is a chunk of this name all the time.
        Raises OutOfSpace, PermissionDenied, BackendError.
        """
        replace_bad(self._backend, self.name(digest), bad, (header, body), durable=durable)
        return InsertResult(new=True, stored_size=len(header) + len(body))

    def iterate(self) -> Iterator[Digest]:
        """All chunks, in order of digest, one of the 65,536 directories in memory at a time.

        Ignores foreign, bad and temporary files. What is stored or removed meanwhile may appear or
        not.
        """
        for found in self._backend.walk(CHUNKS):
            digest = digest_of(found.name)
            if digest is not None:
                yield digest
