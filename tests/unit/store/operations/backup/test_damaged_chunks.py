"""Chunks that a backup found damaged, and whose content it has: replaced, and never gone."""

import random
from collections.abc import Iterator, Sequence

import pytest

from store.backends.memory import MemoryBackend
from store.datastore.chunk_store import ChunkStore
from store.errors import OutOfSpace
from store.format.blob import decode_blob, encode_blob
from store.format.buffer import Buffer
from store.format.crypt import CryptConfig, chunk_digest
from store.operations.backup.chunks import ChunkWriter
from tests.fakes.datastores import ROOT, open_on, snapshot

PLAIN = b"metadata" * 500


class Storage(MemoryBackend):
    """Full when it is told so: for `full` names that end so, no write succeeds."""

    full: str | None = None

    def write(
        self, name: str, parts: Sequence[Buffer], *, exclusive: bool = False, durable: bool = False
    ) -> None:
        if self.full is not None and name.startswith(".chunks/") and name.endswith(self.full):
            raise OutOfSpace("full")
        super().write(name, parts, exclusive=exclusive, durable=durable)


@pytest.fixture
def storage() -> Storage:
    storage = Storage()
    storage.create()
    return storage


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def key(request: pytest.FixtureRequest) -> CryptConfig | None:
    return CryptConfig(bytes(range(32))) if request.param else None


@pytest.fixture
def name(storage: Storage, key: CryptConfig | None) -> str:
    """The damaged chunk."""
    name = ChunkStore.name(chunk_digest(PLAIN, key))
    storage.mkdir(name.rpartition("/")[0])
    storage.write(name, (encoded(key)[:-1] + b"?",))
    return name


@pytest.fixture
def chunks(storage: Storage, key: CryptConfig | None, name: str) -> Iterator[ChunkWriter]:
    """A writer that has found the damage."""
    datastore = open_on(storage)
    with datastore.begin_snapshot(ROOT, snapshot(1)) as writer:
        chunks = ChunkWriter(writer, datastore.chunks, key)
        chunks.distrust([chunk_digest(PLAIN, key)])
        yield chunks


def encoded(key: CryptConfig | None) -> bytes:
    return encode_blob(PLAIN, key, iv=bytes(16) if key else None)


def test_it_is_replaced_and_kept(
    storage: Storage, chunks: ChunkWriter, key: CryptConfig | None, name: str
) -> None:
    bad = storage.read(name)
    for _ in range(2):
        chunks.store(PLAIN)
    assert decode_blob(storage.read(name), key) == PLAIN
    assert storage.read(f"{name}.0.bad") == bad
    assert (chunks.new_chunks, chunks.known_chunks) == (1, 1)


@pytest.mark.parametrize("plain", [bytes(4096), random.Random(1).randbytes(4096)])
def test_what_is_encoded_may_change_before_it_is_sent(
    storage: Storage, chunks: ChunkWriter, key: CryptConfig | None, plain: bytes
) -> None:
    """Noise is stored as it is, if it is not encrypted: not from the reader's buffer."""
    buffer = bytearray(plain)
    chunk = chunks.encode(memoryview(buffer))
    buffer[:] = bytes([255]) * len(buffer)
    chunks.send(chunk)
    assert decode_blob(storage.read(ChunkStore.name(chunk.digest)), key) == plain


def test_one_that_is_good_by_now_stays(
    storage: Storage, chunks: ChunkWriter, key: CryptConfig | None, name: str
) -> None:
    """Another backup has replaced it, and has finished: the full storage is no harm to it."""
    good = encoded(key)
    storage.write(name, (good,))
    storage.full = ""
    chunks.store(PLAIN)
    assert storage.read(name) == good
    assert storage.stat(f"{name}.0.bad") is None
    assert (chunks.new_chunks, chunks.known_chunks) == (0, 1)


def test_one_that_is_gone_is_stored(
    storage: Storage, chunks: ChunkWriter, key: CryptConfig | None, name: str
) -> None:
    storage.delete(name)
    chunks.store(PLAIN)
    assert decode_blob(storage.read(name), key) == PLAIN
    assert storage.stat(f"{name}.0.bad") is None


@pytest.mark.parametrize("full", ["", ".bad", "0"], ids=["all", "copy", "chunk"])
def test_a_failure_leaves_what_was_there(
    storage: Storage, chunks: ChunkWriter, name: str, full: str
) -> None:
    """A damaged chunk is better than none: parts of it may be saved."""
    bad = storage.read(name)
    storage.full = name[-1] if full == "0" else full
    with pytest.raises(OutOfSpace):
        chunks.store(PLAIN)
    assert storage.read(name) == bad
    storage.full = None
    chunks.store(PLAIN)
    assert storage.read(name) != bad
