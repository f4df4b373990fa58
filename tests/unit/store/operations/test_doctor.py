"""What could not be restored today: missing keys, damage, and what each look costs."""

from collections.abc import Iterator

import pytest

from store.backends.memory import MemoryBackend
from store.backends.wrappers.wrapper import Wrapper
from store.datastore.chunk_store import ChunkStore
from store.datastore.datastore import Datastore
from store.errors import BackendError, FormatError, WrongKey
from store.format.blob import encode_blob
from store.format.crypt import CryptConfig, chunk_digest
from store.format.manifest import CryptMode, FileInfo
from store.names import Namespace
from store.operations.doctor import Diagnosis, HeldKeys, examine
from tests.fakes.archives import IMAGE_CHUNK, snapshot
from tests.fakes.datastores import open_on

ROOT = Namespace()
PROD = Namespace.parse("prod/web")
OURS, THEIRS = CryptConfig(b"o" * 32), CryptConfig(b"t" * 32)
WORDS = b"the content of a disk, " * 300_000
FIRST = "host/web01/2025-01-01T00:00:00Z"
SECOND = "host/web01/2025-01-02T00:00:00Z"


class Counting(Wrapper):
    """Counts the chunks that are read, and fails where it is told to."""

    def __init__(self, inner: MemoryBackend) -> None:
        super().__init__(inner)
        self.chunks: list[str] = []
        self.errors: dict[str, BackendError] = {}

    def read(self, name: str) -> bytes:
        if name.startswith(".chunks/"):
            self.chunks.append(name)
        for part, error in self.errors.items():
            if part in name:
                raise error
        return super().read(name)


@pytest.fixture
def storage() -> Counting:
    memory = MemoryBackend()
    memory.create()
    return Counting(memory)


@pytest.fixture
def datastore(storage: Counting) -> Iterator[Datastore]:
    with open_on(storage) as opened:
        yield opened


def held(*keys: CryptConfig) -> HeldKeys:
    return HeldKeys({key.fingerprint: key for key in keys})


def facts(diagnosis: Diagnosis) -> list[tuple[str, str, int]]:
    return [(str(one.snapshot), one.archive, one.exit_code) for one in diagnosis.findings]


def test_all_opens_and_shared_chunks_are_opened_once(
    datastore: Datastore, storage: Counting
) -> None:
    for name in (FIRST, SECOND):
        with snapshot(datastore, name) as made:
            made.image("disk.img", WORDS)
            made.blob("qemu-server.conf", b"memory: 2048\n")
    datastore.create_namespace(Namespace.parse("prod"))
    datastore.create_namespace(PROD)
    with snapshot(datastore, FIRST, OURS, PROD) as made:
        made.image("disk.img", WORDS)
        made.stream("root.pxar.didx", WORDS)
    diagnosis = examine(datastore, ROOT, held(THEIRS, OURS))
    assert (diagnosis.snapshots, diagnosis.chunks, diagnosis.findings) == (3, 3, ())
    assert diagnosis.exit_code == 0
    assert len(storage.chunks) == len(set(storage.chunks)) == 3
    assert examine(datastore, PROD, held(OURS)).snapshots == 1


def test_the_first_chunk_that_is_not_zeros_is_opened(
    datastore: Datastore, storage: Counting
) -> None:
    with snapshot(datastore, FIRST) as made:
        made.image("disk.img", bytes(2 * IMAGE_CHUNK) + b"boot" + bytes(IMAGE_CHUNK))
        made.image("empty.img", bytes(IMAGE_CHUNK))
    examine(datastore, ROOT, held())
    boot = chunk_digest(b"boot" + bytes(IMAGE_CHUNK - 4), None)
    zeros = chunk_digest(bytes(IMAGE_CHUNK), None)
    assert sorted(storage.chunks) == sorted(map(ChunkStore.name, (boot, zeros)))


def test_a_missing_key_is_named(datastore: Datastore, storage: Counting) -> None:
    with snapshot(datastore, FIRST, OURS) as made:
        made.image("disk.img", WORDS)
    known = HeldKeys(
        {THEIRS.fingerprint: THEIRS}, {OURS.fingerprint: "/root/ours.json, which was not opened"}
    )
    for keys, words in ((held(THEIRS), "no key file"), (known, "its key file is /root/ours.json")):
        diagnosis = examine(datastore, ROOT, keys)
        assert facts(diagnosis) == [(FIRST, "", 13)]
        [finding] = diagnosis.findings
        assert finding.fingerprint == OURS.fingerprint
        assert finding.reason.startswith(f"needs the key {OURS.fingerprint.short}; ")
        assert words in finding.reason
        assert not finding.has_wrapped_key
    assert storage.chunks == []


def add_wrapped_key(datastore: Datastore, content: bytes) -> None:
    with snapshot(datastore, FIRST, OURS) as made:
        made.image("disk.img", WORDS)
        raw = encode_blob(content, compress=False)
        csum = made.writer.add_blob("rsa-encrypted.key.blob", raw)
        made.files.append(FileInfo("rsa-encrypted.key.blob", CryptMode.NONE, len(raw), csum))


def test_a_wrapped_key_is_told_of_and_used(datastore: Datastore, storage: Counting) -> None:
    add_wrapped_key(datastore, b"wrapped")

    def unwrap(wrapped: bytes) -> CryptConfig:
        assert wrapped == b"wrapped"
        return OURS

    def fail(_: bytes) -> CryptConfig:
        raise WrongKey("another master key")

    [finding] = examine(datastore, ROOT, held()).findings
    assert finding.has_wrapped_key
    assert "private master key gets it out" in finding.reason
    for other in (fail, lambda _: THEIRS):
        [finding] = examine(datastore, ROOT, HeldKeys(unwrap=other)).findings
        assert "for another master key" in finding.reason
        assert finding.exit_code == 13
    assert storage.chunks == []
    assert examine(datastore, ROOT, HeldKeys(unwrap=unwrap)).findings == ()
    assert len(storage.chunks) == 1


def test_a_damaged_wrapped_key_is_no_way_out(datastore: Datastore, storage: Counting) -> None:
    add_wrapped_key(datastore, b"wrapped")
    name = f"{FIRST}/rsa-encrypted.key.blob"
    storage.write(name, (storage.read(name)[:-1] + b"x",))
    [finding] = examine(datastore, ROOT, held()).findings
    assert not finding.has_wrapped_key
    assert "rsa-encrypted.key can't be read" in finding.reason


def test_damage_is_told_of_every_snapshot_that_has_it(
    datastore: Datastore, storage: Counting
) -> None:
    for name in (FIRST, SECOND):
        with snapshot(datastore, name) as made:
            made.image("disk.img", WORDS)
            made.blob("qemu-server.conf", name.encode())
    digest = chunk_digest(WORDS[:IMAGE_CHUNK], None)
    storage.delete(ChunkStore.name(digest))
    storage.chunks.clear()
    diagnosis = examine(datastore, ROOT, held())
    assert facts(diagnosis) == [(FIRST, "disk.img.fidx", 15), (SECOND, "disk.img.fidx", 15)]
    assert {one.reason for one in diagnosis.findings} == {f"chunk {digest} is not in memory"}
    assert len(storage.chunks) == 1
    storage.delete(f"{SECOND}/disk.img.fidx")
    storage.write(f"{SECOND}/qemu-server.conf.blob", (b"rot",))
    storage.write(f"{FIRST}/index.json.blob", (b"rot",))
    diagnosis = examine(datastore, ROOT, held())
    assert facts(diagnosis) == [
        (FIRST, "index.json.blob", 15),
        (SECOND, "disk.img.fidx", 15),
        (SECOND, "qemu-server.conf.blob", 15),
    ]
    assert diagnosis.exit_code == 15


def test_damage_weighs_more_than_a_missing_key(datastore: Datastore, storage: Counting) -> None:
    with snapshot(datastore, FIRST, OURS) as made:
        made.image("disk.img", WORDS)
    with snapshot(datastore, SECOND) as made:
        made.image("disk.img", WORDS)
    digest = chunk_digest(WORDS[:IMAGE_CHUNK], None)
    storage.write(ChunkStore.name(digest), (b"rot, and more of it",))
    diagnosis = examine(datastore, ROOT, held())
    assert facts(diagnosis) == [(FIRST, "", 13), (SECOND, "disk.img.fidx", 15)]
    assert diagnosis.exit_code == 15
    assert str(digest) in diagnosis.findings[1].reason


def test_a_storage_that_fails(datastore: Datastore, storage: Counting) -> None:
    with snapshot(datastore, FIRST) as made:
        made.image("disk.img", WORDS)
    storage.errors[".chunks"] = BackendError("input/output error")
    assert facts(examine(datastore, ROOT, held())) == [(FIRST, "disk.img.fidx", 16)]
    storage.errors = {"index.json": BackendError("no route", retryable=True)}
    with pytest.raises(BackendError, match="no route"):
        examine(datastore, ROOT, held())


def test_a_snapshot_removed_meanwhile_is_no_finding(
    datastore: Datastore, storage: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    with snapshot(datastore, FIRST) as made:
        made.image("disk.img", WORDS)
    found = datastore.list_snapshots
    monkeypatch.setattr(
        datastore,
        "list_snapshots",
        lambda *place: [*found(*place), *map(type(made.snapshot).parse, [SECOND])],
    )
    assert examine(datastore, ROOT, held()).findings == ()


def test_an_index_that_is_none(datastore: Datastore, storage: Counting) -> None:
    with snapshot(datastore, FIRST) as made:
        made.stream("root.pxar.didx", WORDS)
    storage.write(f"{FIRST}/root.pxar.didx", (b"rot",))
    [finding] = examine(datastore, ROOT, held()).findings
    assert (finding.archive, finding.exit_code) == ("root.pxar.didx", 15)
    assert FormatError.exit_code == 14  # damage here, whatever the class
