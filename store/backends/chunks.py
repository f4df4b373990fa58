"""What backends know of chunks: their names, when a copy is sound, how a bad one is set aside."""

import re
from collections.abc import Sequence

from store.backends.base import MAX_READ, Backend
from store.errors import FormatError, IntegrityError, NotFound
from store.format.blob import (
    ENCRYPTED_HEADER,
    MAX_CHUNK_SIZE,
    check_blob,
    decode_blob,
    is_encrypted,
)
from store.format.buffer import Buffer
from store.format.crypt import CIPHER_SLACK, chunk_digest

CHUNKS = ".chunks"
CHUNK_PATH = re.compile(r"\.chunks/([0-9a-f]{4})/\1[0-9a-f]{60}")
BAD_NAMES = 10
MAX_CHUNK_BYTES = MAX_CHUNK_SIZE + ENCRYPTED_HEADER.size + CIPHER_SLACK
"""Of an encoded chunk: the largest plain one, not compressed, encrypted."""


def is_chunk(name: str) -> bool:
    """Whether an object is a chunk: `.chunks/0123/0123…`; bad and temporary ones are not."""
    return CHUNK_PATH.fullmatch(name) is not None


def max_read(name: str) -> int:
    """How many bytes an object may have that is read whole; more is damage, or an attack."""
    return MAX_CHUNK_BYTES if name.startswith(f"{CHUNKS}/") else MAX_READ


def read_sound(backend: Backend, name: str) -> bytes:
    """A chunk whose magic and CRC are good: all that can be seen without its key.

    Raises:
        NotFound: absent, or empty.
        FormatError, IntegrityError: it is bad; the message says how, not where.
        BackendError, PermissionDenied: it can't be read, which says nothing about it.
    """
    raw = backend.read(name)
    if not raw:
        raise NotFound(f"{backend.location}/{name}: empty")
    check_blob(raw)
    return raw


def is_contradicted(name: str, raw: Buffer) -> bool:
    """Whether a sound copy of a plain chunk has not the content its name says.

    An encrypted one is given the benefit of the doubt: only its key's holder can tell.
    """
    if is_encrypted(raw):
        return False
    try:
        plain = decode_blob(raw, max_size=MAX_CHUNK_SIZE)
    except (FormatError, IntegrityError):
        return True
    return chunk_digest(plain, None).hex() != name.rpartition("/")[2]


def set_aside(backend: Backend, name: str) -> str:
    """Rename a bad chunk, so that a good one can take its place; its new name.

    The first free of `<hex>.0.bad` to `<hex>.9.bad`; when none is, the last is overwritten.
    Raises NotFound, PermissionDenied, BackendError.
    """
    free = _free_name(backend, name)
    backend.rename(name, free)
    return free


def replace_bad(
    backend: Backend, name: str, bad: Buffer, parts: Sequence[Buffer], *, durable: bool = False
) -> None:
    """Write a good chunk over a bad one, of which a copy is kept, named as by `set_aside`.

    The name is never empty: if anything fails the chunk is what it was, and of two who do so at
    once none takes away what the other has written.
    """
    backend.write(_free_name(backend, name), (bad,), durable=durable)
    write_chunk(backend, name, parts, durable=durable)


def _free_name(backend: Backend, name: str) -> str:
    names = [f"{name}.{number}.bad" for number in range(BAD_NAMES)]
    return next((bad for bad in names if backend.stat(bad) is None), names[-1])


def write_chunk(
    backend: Backend,
    name: str,
    parts: Sequence[Buffer],
    *,
    exclusive: bool = False,
    durable: bool = False,
) -> None:
    """`Backend.write` of a chunk, making its directory if need be.

    Raises NotFound where there is no datastore: that may be the mount point of a disk that is not
    there.
    """
    try:
        backend.write(name, parts, exclusive=exclusive, durable=durable)
    except NotFound:
        if backend.stat(CHUNKS) is None:
            raise
        backend.mkdir(name.rpartition("/")[0], durable=durable)
        backend.write(name, parts, exclusive=exclusive, durable=durable)
