"""Archives of small snapshots: random access, order, holes, and what is refused."""

import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.backends.memory import MemoryBackend
from store.datastore.archives import ChunkCache, IndexedStream, SnapshotReader
from store.datastore.memory import Memory
from store.datastore.workers import Workers
from store.errors import (
    ChunkMissing,
    FormatError,
    IntegrityError,
    KeyRequired,
    NotFound,
    WrongKey,
)
from store.format.blob import encode_blob, encode_blob_parts
from store.format.buffer import Buffer
from store.format.crypt import CryptConfig, chunk_digest
from store.format.manifest import CryptMode, FileInfo, Manifest
from store.names import Digest
from tests.fakes.datastores import MIB, ROOT, open_on, pattern, snapshot

KEY, OTHER_KEY = CryptConfig(bytes(range(32))), CryptConfig(bytes(32))
IV = bytes(16)
SIZES = [1, 5000, 70_000, 3, 100_000, 4096, 1]
CONTENT = b"".join(bytes([number + 1]) * size for number, size in enumerate(SIZES))


class Fixture:
    """A datastore with one snapshot that tests fill themselves."""

    def __init__(self, key: CryptConfig | None = None, mode: CryptMode = CryptMode.NONE) -> None:
        self.backend = MemoryBackend()
        self.backend.create()
        self.store = open_on(self.backend)
        self.key, self.mode = key, mode
        self.chunk_key = key if mode is CryptMode.ENCRYPT else None
        self.what = snapshot(1)
        self.writer = self.store.begin_snapshot(ROOT, self.what)
        self.files: list[FileInfo] = []

    def chunk(self, data: bytes) -> Digest:
        digest = chunk_digest(data, self.chunk_key)
        self.writer.insert_chunk(
            digest,
            *encode_blob_parts(data, self.chunk_key, iv=IV if self.chunk_key else None),
            len(data),
        )
        return digest

    def stream(self, filename: str, pieces: list[bytes]) -> None:
        index, end = self.writer.create_dynamic_index(filename), 0
        for piece in pieces:
            end += len(piece)
            index.add(end, self.chunk(piece))
        self.files.append(FileInfo(filename, self.mode, end, index.close()))

    def image(self, filename: str, blocks: list[bytes]) -> None:
        size = sum(len(block) for block in blocks)
        index = self.writer.create_fixed_index(filename, size)
        for number, block in enumerate(blocks):
            index.set(number, self.chunk(block))
        self.files.append(FileInfo(filename, self.mode, size, index.close()))

    def blob(self, filename: str, content: bytes, *, encrypt: bool | None = None) -> None:
        key = self.chunk_key if encrypt is not False else None
        raw = encode_blob(content, key, iv=IV if key else None)
        csum = self.writer.add_blob(filename, raw)
        if filename != "client.log.blob":
            self.files.append(FileInfo(filename, self.mode, len(raw), csum))

    def finish(self, change: Callable[[Manifest], Manifest] = lambda manifest: manifest) -> None:
        manifest = Manifest(self.what, tuple(self.files))
        self.writer.finish(change(manifest.signed(self.key) if self.key else manifest))

    def reader(self, key: CryptConfig | None = None, budget: int = 64 * MIB) -> SnapshotReader:
        return SnapshotReader(self.store, ROOT, self.what, key, ChunkCache(budget))


def pieces() -> list[bytes]:
    return [bytes([number + 1]) * size for number, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def stream() -> IndexedStream:
    made = Fixture()
    made.stream("x.pxar.didx", pieces())
    made.finish()
    return made.reader().open_streams("x.pxar")[0]


@given(st.integers(0, len(CONTENT)), st.integers(0, len(CONTENT)))
def test_any_range_reads_back(stream: IndexedStream, offset: int, size: int) -> None:
    size = min(size, len(CONTENT) - offset)
    assert stream.read(offset, size) == CONTENT[offset : offset + size]
    view = stream.peek(offset, size)
    assert view is not None
    assert bytes(view) == CONTENT[offset : offset + size]


@given(
    st.integers(0, len(CONTENT)),
    st.integers(0, len(CONTENT)),
    st.integers(1, 3),
    st.sampled_from([0, 1000, 40_000, 1 << 20]),
)
def test_any_range_in_order(
    stream: IndexedStream, one: int, other: int, threads: int, memory: int
) -> None:
    """With any number of threads, and in any memory."""
    start, end = sorted((one, other))
    small = IndexedStream(stream.index, stream.reader, Memory(memory))
    with Workers(stream.reader.backend, threads, "test") as workers:
        got = list(small.chunks(start, end, workers=workers))
    assert b"".join(got) == CONTENT[start:end]
    assert all(got)


class Noted(Workers):
    """Remembers what was queued."""

    def __init__(self, stream: IndexedStream, threads: int) -> None:
        super().__init__(stream.reader.backend, threads, "test")
        self.sizes: list[int] = []

    def submit(self, work: Any, /, *arguments: Any, **options: Any) -> Any:
        self.sizes.append(arguments[1])
        return super().submit(work, *arguments, **options)


@pytest.mark.parametrize(
    ("threads", "memory", "queued"),
    [
        (8, 1 << 30, 7),  # all of it
        (2, 1 << 30, 4),  # two for each thread
        (8, 4 * 70_000, 3),  # until so many bytes are on their way
        (8, 0, 1),  # one always
    ],
)
def test_how_far_it_reads_ahead(
    stream: IndexedStream, threads: int, memory: int, queued: int
) -> None:
    small = IndexedStream(stream.index, stream.reader, Memory(memory))
    with Noted(stream, threads) as workers:
        chunks = small.chunks(workers=workers)
        next(chunks)
        assert workers.sizes == SIZES[:queued]
        assert b"".join(chunks) == CONTENT[1:]
        assert workers.sizes == SIZES


def test_reads_past_the_end_are_refused(stream: IndexedStream) -> None:
    for offset, size in (
        (0, len(CONTENT) + 1),
        (len(CONTENT), 1),
        (-1, 1),
        (5, -1),
        (len(CONTENT) - 1, 2),
    ):
        with pytest.raises(FormatError, match=r"x\.pxar\.didx"):
            stream.read(offset, size)
        with pytest.raises(FormatError):
            list(stream.extents(offset, size))
    for offset, size in ((0, len(CONTENT) + 1), (len(CONTENT), 1), (-1, 1), (len(CONTENT) - 1, 2)):
        with pytest.raises(FormatError):
            peeked(stream, offset, size)


def peeked(stream: IndexedStream, offset: int, size: int) -> Buffer | None:
    stream.read(0, stream.size)
    return stream.peek(offset, size)


def test_peek_does_no_reading() -> None:
    made = Fixture()
    made.stream("x.pxar.didx", pieces())
    made.finish()
    opened = made.reader().open_streams("x.pxar")[0]
    assert opened.peek(0, 10) is None
    opened.read(0, 10)
    assert opened.peek(0, 10) == CONTENT[:10]
    assert opened.peek(0, 5002) is None
    opened.read(0, opened.size)
    view = opened.peek(5001, 100)
    assert isinstance(view, memoryview)
    assert view.readonly


def test_prefetch_brings_a_chunk_in() -> None:
    made = Fixture()
    made.stream("x.pxar.didx", pieces())
    made.finish()
    reader = made.reader()
    opened = reader.open_streams("x.pxar")[0]
    opened.prefetch(6000)
    opened.prefetch(10**9)
    pool = reader._cache._prefetchers
    assert pool is not None
    pool.shutdown(wait=True)
    assert opened.peek(6000, 10) == CONTENT[6000:6010]


def test_an_iterator_left_early_ends_its_threads(stream: IndexedStream) -> None:
    before = threading.active_count()
    with closing(stream.chunks()) as chunks:
        assert next(chunks)
        assert threading.active_count() > before
    assert threading.active_count() == before


def test_a_damaged_chunk_is_found_in_its_turn() -> None:
    made = Fixture()
    made.stream("x.pxar.didx", pieces())
    made.finish()
    third = chunk_digest(pieces()[2], None)
    name = made.store.chunks.name(third)
    made.backend.write(name, (encode_blob(pieces()[2][:-1] + b"!"),))
    opened = made.reader().open_streams("x.pxar")[0]
    chunks = opened.chunks()
    assert b"".join((next(chunks), next(chunks))) == CONTENT[:5001]
    with pytest.raises(IntegrityError, match=rf"host/web01/.*x\.pxar\.didx.*{third}"):
        next(chunks)
    made.backend.delete(name)
    with pytest.raises(ChunkMissing, match=rf"x\.pxar\.didx.*{third}"):
        opened.read(5000, 10)
    assert opened.read(80_000, 10) == CONTENT[80_000:80_010]


@pytest.mark.parametrize("mode", [CryptMode.NONE, CryptMode.ENCRYPT])
def test_extents(mode: CryptMode) -> None:
    made = Fixture(KEY if mode is CryptMode.ENCRYPT else None, mode)
    zero, data = bytes(4 * MIB), pattern(1, 4 * MIB)
    made.image("d.img.fidx", [zero, zero, data, zero, data, bytes(1000)])
    made.finish()
    opened = made.reader(made.key).open_image("d.img")
    assert list(opened.extents(0, opened.size)) == [
        (0, 8 * MIB, True),
        (8 * MIB, 4 * MIB, False),
        (12 * MIB, 4 * MIB, True),
        (16 * MIB, 4 * MIB, False),
        (20 * MIB, 1000, True),
    ]
    assert list(opened.extents(MIB, 2 * MIB)) == [(MIB, 2 * MIB, True)]
    assert list(opened.extents(9 * MIB, 4 * MIB)) == [
        (9 * MIB, 3 * MIB, False),
        (12 * MIB, MIB, True),
    ]
    assert list(opened.extents(5, 0)) == []
    assert len(list(opened.chunks())) == 6


def test_names_as_users_know_them() -> None:
    made = Fixture()
    for name in ("root.ppxar.didx", "root.mpxar.didx", "old.pxar.didx", "catalog.pcat1.didx"):
        made.stream(name, [b"x"])
    made.image("d.img.fidx", [b"y"])
    made.blob("qemu-server.conf.blob", b"cores: 2\n")
    made.blob("client.log.blob", b"done\n")
    made.finish()
    reader = made.reader()
    assert reader.archives == ["root.pxar", "old.pxar", "d.img", "qemu-server.conf", "client.log"]
    assert reader.read_blob("qemu-server.conf") == b"cores: 2\n"
    assert reader.read_blob("client.log") == b"done\n"
    assert [opened and opened.size for opened in reader.open_streams("root.pxar")] == [1, 1]
    assert reader.open_streams("old.pxar")[1] is None
    for wrong in (
        lambda: reader.open_image("old.pxar"),
        lambda: reader.open_tree("d.img"),
        lambda: reader.read_blob("index.json"),
    ):
        with pytest.raises(NotFound, match=r"root\.pxar"):
            wrong()


def test_keys() -> None:
    made = Fixture(KEY, CryptMode.ENCRYPT)
    made.image("d.img.fidx", [b"secret"])
    made.blob("a.conf.blob", b"secret too")
    made.blob("rsa-encrypted.key.blob", b"sealed", encrypt=False)
    made.finish()
    assert made.reader(KEY).open_image("d.img").read(0, 6) == b"secret"
    assert made.reader(KEY).read_blob("a.conf") == b"secret too"
    for key, error in ((None, KeyRequired), (OTHER_KEY, WrongKey)):
        reader = made.reader(key)
        assert reader.archives == ["d.img", "a.conf", "rsa-encrypted.key"]
        assert reader.read_blob("rsa-encrypted.key") == b"sealed"
        for ask in (
            lambda reader=reader: reader.open_image("d.img"),
            lambda reader=reader: reader.read_blob("a.conf"),
        ):
            with pytest.raises(error, match=str(KEY.fingerprint)) as caught:
                ask()
            assert key is None or str(key.fingerprint) in str(caught.value)


def test_a_signed_snapshot_is_readable_without_its_key_but_not_with_another() -> None:
    made = Fixture(KEY, CryptMode.SIGN_ONLY)
    made.image("d.img.fidx", [b"open"])
    made.finish()
    assert made.reader(KEY).open_image("d.img").read(0, 4) == b"open"
    assert made.reader(None).open_image("d.img").read(0, 4) == b"open"
    with pytest.raises(WrongKey):
        made.reader(OTHER_KEY).open_image("d.img")


def test_a_forged_manifest_is_found() -> None:
    made = Fixture(KEY, CryptMode.SIGN_ONLY)
    made.image("d.img.fidx", [b"open"])
    made.finish(
        lambda manifest: Manifest(
            manifest.snapshot, manifest.files, bytes(32), manifest.unprotected
        )
    )
    with pytest.raises(IntegrityError, match="signature"):
        made.reader(KEY)


def test_a_plain_chunk_in_an_encrypted_archive_is_refused() -> None:
    """Even when the very chunk is in the cache for a plain archive."""
    plain = Fixture()
    plain.image("d.img.fidx", [b"planted"])
    plain.finish()
    made = Fixture(KEY, CryptMode.ENCRYPT)
    made.store, made.backend = plain.store, plain.backend
    made.what = snapshot(2)
    made.writer = made.store.begin_snapshot(ROOT, made.what)
    index = made.writer.create_fixed_index("d.img.fidx", 7)
    index.set(0, chunk_digest(b"planted", None))
    made.files.append(FileInfo("d.img.fidx", CryptMode.ENCRYPT, 7, index.close()))
    made.blob("a.conf.blob", b"planted", encrypt=False)
    made.finish()
    cache = ChunkCache(MIB)
    SnapshotReader(plain.store, ROOT, plain.what, None, cache).open_image("d.img").read(0, 7)
    reader = SnapshotReader(made.store, ROOT, made.what, KEY, cache)
    opened = reader.open_image("d.img")
    assert opened.peek(0, 7) is None
    with pytest.raises(IntegrityError, match="plain"):
        opened.read(0, 7)
    with pytest.raises(IntegrityError, match="plain"):
        reader.read_blob("a.conf")


@pytest.mark.parametrize("damage", ["size", "csum", "short", "magic", "gone"])
def test_an_index_that_is_not_the_one_of_the_manifest(damage: str) -> None:
    made = Fixture()
    made.image("d.img.fidx", [pattern(1, 4 * MIB), b"tail"])
    made.finish()
    path = f"{made.what.path(ROOT)}/d.img.fidx"
    raw = bytearray(made.backend.read(path))
    match damage:
        case "size":
            raw[64] -= 1
        case "csum":
            raw[-1] ^= 1
        case "short":
            del raw[-1]
        case "magic":
            raw[0] ^= 1
    made.backend.write(path, (raw,))
    if damage == "gone":
        made.backend.delete(path)
    with pytest.raises((IntegrityError, FormatError), match=r"d\.img\.fidx"):
        made.reader().open_image("d.img")


def test_a_snapshot_forgotten_while_it_is_read_is_not_damaged() -> None:
    made = Fixture()
    made.image("d.img.fidx", [b"tail"])
    made.finish()
    reader = made.reader()
    made.store.forget_snapshot(ROOT, made.what)
    with pytest.raises(NotFound, match="does not exist"):
        reader.open_image("d.img")


@pytest.mark.expect_warnings
def test_the_manifest_of_another_snapshot(caplog: pytest.LogCaptureFixture) -> None:
    """A group renamed on disk stays readable; who swapped snapshots is not silent."""
    made = Fixture()
    made.blob("a.conf.blob", b"one")
    made.finish()
    other = snapshot(2)
    with made.store.begin_snapshot(ROOT, other) as writer:
        writer.finish(Manifest(other, ()))
    for name in ("a.conf.blob", "index.json.blob"):
        raw = made.backend.read(f"{made.what.path(ROOT)}/{name}")
        made.backend.write(f"{other.path(ROOT)}/{name}", (raw,))
    reader = SnapshotReader(made.store, ROOT, other, None, ChunkCache(MIB))
    assert reader.read_blob("a.conf") == b"one"
    assert caplog.messages == [f"{other} has the manifest of {made.what}: renamed, or swapped"]


def test_a_changed_blob_is_found() -> None:
    made = Fixture()
    made.blob("a.conf.blob", b"one")
    made.finish()
    made.backend.write(f"{made.what.path(ROOT)}/a.conf.blob", (encode_blob(b"two"),))
    with pytest.raises(IntegrityError, match=r"a\.conf\.blob"):
        made.reader().read_blob("a.conf")


def test_a_lying_index_cannot_make_a_chunk_pass_for_another_size() -> None:
    made = Fixture()
    made.stream("x.pxar.didx", [b"12345678"])
    index = made.writer.create_dynamic_index("y.pxar.didx")
    index.add(5, chunk_digest(b"12345678", None))
    made.files.append(FileInfo("y.pxar.didx", CryptMode.NONE, 5, index.close()))
    made.finish()
    reader = made.reader()
    assert reader.open_streams("x.pxar")[0].read(0, 8) == b"12345678"
    lying = reader.open_streams("y.pxar")[0]
    assert lying.peek(0, 5) is None
    with pytest.raises(IntegrityError):
        lying.read(0, 5)


def test_no_snapshot() -> None:
    made = Fixture()
    made.finish()
    with pytest.raises(NotFound):
        SnapshotReader(made.store, ROOT, snapshot(7), None, ChunkCache(0))
