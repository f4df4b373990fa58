"""Backups to an object store: few requests, no missing chunk overlooked, ended at once."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from store.datastore.chunk_store import ChunkStore
from store.datastore.digest_hints import HintFile
from store.datastore.memory import Memory
from store.datastore.workers import worker_count
from store.format.chunker import AVERAGE
from store.names import Digest
from store.operations.backup import BackupResult
from tests.fakes.datastores import ROOT, open_on
from tests.fakes.object_store import ObjectStore, SlowStore, StuckStore
from tests.unit.store.operations.backup.conftest import (
    DATA,
    LEGACY,
    METADATA,
    MIB,
    Vault,
    contents,
    noise,
)

Sources = dict[str, tuple[str, dict[str, object]]]
KINDS = ["image", "legacy", "data", "metadata"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def sources(source: Path) -> Sources:
    """By kind: what to back up, and how."""
    (source / "d").mkdir()
    for number in range(8):
        (source / f"d/{number}").write_bytes(noise(number, 200_000))
    (source / "disk").write_bytes(noise(99, 10 * MIB))
    tree = f"root.pxar:{source}"
    return {
        "image": (f"disk.img:{source}/disk", {}),
        "legacy": (tree, {"change_detection_mode": LEGACY}),
        "data": (tree, {"change_detection_mode": DATA}),
        "metadata": (tree, {"change_detection_mode": METADATA}),
    }


class Bucket(Vault):
    """Backups to an object store, each by a program of its own."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(open_on(store))
        self.store = store

    def run(self, kind: tuple[str, dict[str, object]], **options: object) -> BackupResult:
        """Back up, counting requests from the opening to the released locks."""
        self.store.forget()
        self.datastore = self.store.open()
        return self.backup(kind[0], **kind[1] | options)  # type: ignore[arg-type]

    def fill(self, count: int) -> None:
        """Put chunks of others there."""
        self.store.inner.mkdir(".chunks")
        for number in range(count):
            name = ChunkStore.name(Digest(noise(number, 32)))
            self.store.inner.mkdir(name.rpartition("/")[0])
            self.store.inner.write(name, (b"x",))

    def lose(self, digest: Digest) -> None:
        self.store.inner.delete(ChunkStore.name(digest))


@pytest.fixture
def bucket() -> Bucket:
    return Bucket(ObjectStore())


def indexes(result: BackupResult) -> int:
    return sum(info.filename.endswith((".fidx", ".didx")) for info in result.files)


@pytest.mark.parametrize("hints", [True, False], ids=["hints", "no-hints"])
@pytest.mark.parametrize("others", [0, 3000])
@pytest.mark.parametrize("kind", KINDS)
def test_an_unchanged_backup_makes_few_requests(
    bucket: Bucket, sources: Sources, cache: Path, kind: str, others: int, hints: bool
) -> None:
    """Fewer than twenty, and one for each index; pages of a larger store come on top."""
    bucket.fill(others)
    bucket.run(sources[kind])
    if not hints:
        shutil.rmtree(cache)
    result = bucket.run(sources[kind])
    assert (result.new_chunks, bucket.warnings) == (0, [])
    pages = others // 900
    assert bucket.store.total - pages < 20 + indexes(result)
    assert len(set(bucket.store.log)) >= bucket.store.total - 2 * pages - 4  # none fetched twice
    fetched = [name for call, name in bucket.store.log if call == "read"]
    assert len(set(fetched)) == len(fetched)


def test_a_first_backup_puts_each_chunk_with_one_request(bucket: Bucket, sources: Sources) -> None:
    bucket.fill(3000)
    result = bucket.run(sources["image"])
    assert result.new_chunks == 3
    calls = [call for call, name in bucket.store.log if name.startswith(".chunks/")]
    assert calls == ["write"] * 3
    assert bucket.store.requests["list"] <= 3


@pytest.mark.parametrize("others", [0, 3000])
@pytest.mark.parametrize("kind", KINDS)
def test_a_chunk_that_vanished_is_stored_again(
    bucket: Bucket, sources: Sources, source: Path, kind: str, others: int
) -> None:
    """Deleted behind our back: hints and the previous snapshot name it, and are not believed."""
    bucket.fill(others)
    before = bucket.chunks
    first = bucket.run(sources[kind])
    ours = sorted(bucket.chunks - before)
    for lost in ours[:: max(1, len(ours) // 4)]:
        bucket.lose(Digest(bytes.fromhex(lost)))
    result = bucket.run(sources[kind])
    assert result.new_chunks > 0
    if kind == "image":
        stream = bucket.reader(result.snapshot).open_image("disk.img")
        assert stream.read(0, stream.size) == (source / "disk").read_bytes()
    else:
        assert bucket.open(result.snapshot).contents == contents(source)
    assert first.snapshot != result.snapshot


def test_an_empty_chunk_is_stored_again(bucket: Bucket, sources: Sources, source: Path) -> None:
    bucket.run(sources["image"])
    names = [found.name for found in bucket.store.inner.walk(".chunks")]
    bucket.store.inner.write(f".chunks/{names[1]}", ())
    result = bucket.run(sources["image"])
    assert result.new_chunks == 1
    stream = bucket.reader(result.snapshot).open_image("disk.img")
    assert stream.read(0, stream.size) == (source / "disk").read_bytes()


def test_hints_of_another_datastore_cost_pages_and_nothing_else(
    bucket: Bucket, sources: Sources, source: Path
) -> None:
    """The file says that everything is there, and nothing is."""
    other = Bucket(ObjectStore())
    other.run(sources["image"])
    assert len(HintFile(bucket.store.location).read()) == 3
    bucket.fill(3000)
    result = bucket.run(sources["image"])
    assert result.new_chunks == 3
    stream = bucket.reader(result.snapshot).open_image("disk.img")
    assert stream.read(0, stream.size) == (source / "disk").read_bytes()


@pytest.mark.parametrize("kind", ["image", "metadata"])
def test_a_previous_index_that_is_damaged(bucket: Bucket, sources: Sources, kind: str) -> None:
    first = bucket.run(sources[kind])
    for info in first.files:
        bucket.store.inner.write(f"{first.snapshot.path(ROOT)}/{info.filename}", (b"damaged",))
    bucket.fill(3000)
    result = bucket.run(sources[kind])
    assert bucket.store.requests["write"] >= indexes(result) + 1
    assert result.snapshot in bucket.snapshots


def test_chunks_that_another_host_stored_are_met(
    bucket: Bucket, sources: Sources, cache: Path
) -> None:
    """No hints and no previous snapshot: storing them says that they are there."""
    bucket.fill(3000)
    first = bucket.run(sources["image"])
    shutil.rmtree(cache)
    bucket.store.inner.remove_tree(first.snapshot.path(ROOT))
    result = bucket.run(sources["image"])
    assert (result.new_chunks, result.known_chunks) == (0, 3)


def test_a_local_datastore_leaves_no_hints(vault: Vault, sources: Sources, cache: Path) -> None:
    vault.backup(sources["image"][0])
    assert not cache.exists()


def test_a_datastore_without_a_home(
    bucket: Bucket, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert bucket.run(sources["image"]).new_chunks == 3


# At full speed


class Together(ObjectStore):
    """The first calls of one kind wait until so many are there at once."""

    def wait_for(self, kind: str, calls: int) -> None:
        self._kind, self._missing = kind, threading.Semaphore(calls - 1)
        self._all_here = threading.Event()

    def count(self, kind: str, name: str, number: int = 1) -> None:
        super().count(kind, name, number)
        if kind == self._kind and name.startswith(".chunks/"):
            if not self._missing.acquire(blocking=False):
                self._all_here.set()
            assert self._all_here.wait(10)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["image", "legacy"])
def test_many_calls_at_once(sources: Sources, source: Path, tmp_path: Path, kind: str) -> None:
    """Eight writes, then eight reads."""
    (source / "disk").write_bytes(noise(7, 32 * MIB))
    options = {"chunk_size": 1 << 21} if kind == "legacy" else {}
    store = Together()
    store.wait_for("write", 8)
    bucket = Bucket(store)
    result = bucket.run(sources[kind], **options)
    store.wait_for("read", 8)
    archive = "disk.img" if kind == "image" else "root.pxar"
    bucket.restore(result.snapshot, tmp_path / "restored", archive)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS[:3])
def test_latency_costs_less_than_a_third(
    sources: Sources, source: Path, tmp_path: Path, kind: str
) -> None:
    """50 ms more for each read and write. The best of three: others use this machine, too."""
    (source / "disk").write_bytes(noise(7, 300 * MIB))
    archive = "disk.img" if kind == "image" else "root.pxar"
    seconds: dict[tuple[str, float], float] = {}
    for turn in range(3):
        for delay_s in (0.0, 0.05):
            bucket = Bucket(SlowStore(delay_s))
            started = time.monotonic()
            result = bucket.run(sources[kind], chunk_size=1 << 22)
            between = time.monotonic()
            target = bucket.restore(result.snapshot, tmp_path / f"{turn}-{delay_s}", archive)
            ended = time.monotonic()
            (shutil.rmtree if target.is_dir() else os.unlink)(target)
            for what, took in (("backup", between - started), ("restore", ended - between)):
                seconds[what, delay_s] = min(took, seconds.get((what, delay_s), took))
    for what in ("backup", "restore"):
        assert seconds[what, 0.0] / seconds[what, 0.05] >= 0.7, (what, seconds)


# Ended at once


@pytest.fixture
def stuck() -> Iterator[Bucket]:
    before = len(os.listdir("/proc/self/fd"))
    yield Bucket(StuckStore())
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("chunk", "image", "read-ahead"))]
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def interrupt_when_stuck(store: StuckStore, calls: int) -> Callable[[], float]:
    """Send SIGINT when so many calls are stuck; returns what tells how long that is ago."""
    sent: list[float] = []
    main = threading.main_thread().ident
    assert main is not None

    def watch() -> None:
        for _ in range(calls):
            store.stuck.acquire()
        sent.append(time.monotonic())
        signal.pthread_kill(main, signal.SIGINT)

    watcher = threading.Thread(target=watch)
    watcher.start()

    def ago() -> float:
        watcher.join()
        return time.monotonic() - sent[0]

    return ago


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_ends_a_backup_at_once(
    stuck: Bucket, sources: Sources, source: Path, kind: str
) -> None:
    """All workers wait in writes that never end."""
    (source / "disk").write_bytes(noise(7, 80 * MIB))
    store = stuck.store
    assert isinstance(store, StuckStore)
    store.stick("write")
    workers = worker_count(store, Memory(), AVERAGE)
    assert workers > 8
    ago = interrupt_when_stuck(store, workers)
    with pytest.raises(KeyboardInterrupt):
        stuck.run(sources[kind])
    assert ago() < 1
    store.stick()
    assert (stuck.snapshots, stuck.leftovers) == ([], [])
    assert stuck.datastore.list_groups(ROOT, empty=True) == []
    with store.lock_store(exclusive=True):
        pass
    assert stuck.run(sources[kind]).new_chunks > 0


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_ends_a_restore_at_once(
    stuck: Bucket, sources: Sources, source: Path, tmp_path: Path, kind: str
) -> None:
    (source / "disk").write_bytes(noise(7, 40 * MIB))
    result = stuck.run(sources[kind])
    store = stuck.store
    assert isinstance(store, StuckStore)
    store.stick("read", after=0 if kind in ("image", "legacy") else 1)  # 1: the metadata
    ago = interrupt_when_stuck(store, 8)
    archive = "disk.img" if kind == "image" else "root.pxar"
    with pytest.raises(KeyboardInterrupt):
        stuck.restore(result.snapshot, tmp_path / "restored", archive)
    assert ago() < 1
    assert not (tmp_path / "restored").is_file()
    store.stick()
    stuck.restore(result.snapshot, tmp_path / "again", archive)
