"""The chunk store: PBS's rules of insertion, existence and iteration."""

import os
import threading
import time
from pathlib import Path

import pytest

from store.backends.memory import MemoryBackend
from store.datastore.chunk_store import ChunkStore, InsertResult
from store.errors import BackendError, ChunkMissing
from store.format.blob import (
    COMPRESSED_BLOB_MAGIC_1_0,
    ENCR_COMPR_BLOB_MAGIC_1_0,
    ENCRYPTED_BLOB_MAGIC_1_0,
    UNCOMPRESSED_BLOB_MAGIC_1_0,
)
from store.names import Digest
from tests.fakes.datastores import bare_backend

DIGEST = Digest(bytes.fromhex("0123" + "ab" * 30))
PLAIN, ZSTD = UNCOMPRESSED_BLOB_MAGIC_1_0, COMPRESSED_BLOB_MAGIC_1_0
ENCRYPTED, ENCRYPTED_ZSTD = ENCRYPTED_BLOB_MAGIC_1_0, ENCR_COMPR_BLOB_MAGIC_1_0


@pytest.fixture
def backend() -> MemoryBackend:
    backend = MemoryBackend()
    backend.create()
    return backend


@pytest.fixture
def chunks(backend: MemoryBackend) -> ChunkStore:
    return ChunkStore(backend)


def header(magic: bytes) -> bytes:
    return magic + bytes(36 if magic in (ENCRYPTED, ENCRYPTED_ZSTD) else 4)


def test_insert_makes_its_directory_and_reads_back(
    chunks: ChunkStore, backend: MemoryBackend
) -> None:
    assert chunks.insert(DIGEST, header(PLAIN), b"x" * 10) == InsertResult(True, 22)
    assert chunks.read(DIGEST) == header(PLAIN) + b"x" * 10
    assert backend.stat(f".chunks/0123/{DIGEST}") is not None


@pytest.mark.parametrize(
    ("there", "incoming", "kept"),
    [
        ((PLAIN, 50), (PLAIN, 50), True),
        ((PLAIN, 50), (ZSTD, 50), True),
        ((ZSTD, 20), (PLAIN, 50), True),
        ((PLAIN, 50), (ZSTD, 20), False),
        ((ENCRYPTED_ZSTD, 50), (ENCRYPTED_ZSTD, 20), True),
        ((ENCRYPTED_ZSTD, 20), (ENCRYPTED, 50), True),
        ((ENCRYPTED, 50), (ENCRYPTED_ZSTD, 20), True),
    ],
)
def test_a_duplicate_is_kept_or_replaced(
    chunks: ChunkStore,
    backend: MemoryBackend,
    there: tuple[bytes, int],
    incoming: tuple[bytes, int],
    kept: bool,
) -> None:
    old, new = header(there[0]) + b"o" * there[1], header(incoming[0]) + b"n" * incoming[1]
    chunks.insert(DIGEST, old[:12], old[12:])
    before = time.time_ns()
    result = chunks.insert(DIGEST, header(incoming[0]), b"n" * incoming[1])
    assert result == InsertResult(False, len(old) if kept else len(new))
    assert chunks.read(DIGEST) == (old if kept else new)
    found = backend.stat(chunks.name(DIGEST))
    assert found is not None
    assert found.atime_ns >= before


@pytest.mark.parametrize(
    ("there", "incoming"), [((PLAIN, 50), (ENCRYPTED, 60)), ((ENCRYPTED, 50), (ENCRYPTED, 60))]
)
def test_a_duplicate_that_cannot_be(
    chunks: ChunkStore, there: tuple[bytes, int], incoming: tuple[bytes, int]
) -> None:
    chunks.insert(DIGEST, header(there[0]), bytes(there[1]))
    with pytest.raises(BackendError, match=str(DIGEST)):
        chunks.insert(DIGEST, header(incoming[0]), bytes(incoming[1]))


def test_an_empty_file_is_no_chunk(chunks: ChunkStore, backend: MemoryBackend) -> None:
    backend.mkdir(".chunks/0123")
    backend.write(chunks.name(DIGEST), ())
    assert chunks.touch(DIGEST) is None
    assert chunks.stat(DIGEST) is None
    with pytest.raises(ChunkMissing):
        chunks.read(DIGEST)
    assert chunks.insert(DIGEST, header(PLAIN), b"x").new
    assert chunks.touch(DIGEST) == 13


def test_a_directory_in_place_of_a_chunk(chunks: ChunkStore, backend: MemoryBackend) -> None:
    backend.mkdir(chunks.name(DIGEST))
    with pytest.raises(BackendError):
        chunks.insert(DIGEST, header(PLAIN), b"x")


def test_a_missing_chunk_is_named(chunks: ChunkStore) -> None:
    assert chunks.touch(DIGEST) is None
    with pytest.raises(ChunkMissing, match=str(DIGEST)):
        chunks.read(DIGEST)


def test_what_is_replaced_is_kept_under_the_first_free_name(
    chunks: ChunkStore, backend: MemoryBackend
) -> None:
    backend.mkdir(".chunks/0123")
    for number in [*range(10), 9]:
        bad = b"bad %d" % number
        assert chunks.replace(DIGEST, header(PLAIN), b"good", bad) == InsertResult(True, 16)
        assert backend.read(f"{chunks.name(DIGEST)}.{number}.bad") == bad
        assert chunks.read(DIGEST) == header(PLAIN) + b"good"
    assert len(backend.scan(".chunks/0123")) == 11


def test_iterate_sees_chunks_only(chunks: ChunkStore, backend: MemoryBackend) -> None:
    digests = sorted(Digest(os.urandom(32)) for _ in range(20))
    for digest in digests:
        chunks.insert(digest, header(PLAIN), b"x")
    backend.mkdir(".chunks/0123")
    for end in (".0.bad", ".using", ".tmp_abcdef"):
        backend.write(f".chunks/0123/{DIGEST}{end}", (b"x",))
    for name in ("0123", f"{'ff' * 32}"):
        backend.write(f".chunks/0123/{name}", (b"x",))
    assert list(chunks.iterate()) == digests


def test_chunk_that_vanishes_between_look_and_touch(
    chunks: ChunkStore, backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk that is swept between our two calls is stored again."""
    chunks.insert(DIGEST, header(PLAIN), b"x")

    def swept(name: str) -> None:
        backend.delete(name)

    monkeypatch.setattr(backend, "touch", swept)
    assert chunks.insert(DIGEST, header(PLAIN), b"x").new
    assert chunks.read(DIGEST)


def test_many_threads_insert_one_chunk_once(tmp_path: Path) -> None:
    chunks = ChunkStore(bare_backend(tmp_path / "store"))
    results: list[InsertResult] = []
    threads = [
        threading.Thread(
            target=lambda: results.append(chunks.insert(DIGEST, header(PLAIN), b"x" * 4096))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.new for result in results) == [False] * 7 + [True]
    assert [path.name for path in (tmp_path / "store/.chunks/0123").iterdir()] == [str(DIGEST)]
