"""A journal that fills up: what it has moves to the datastore, and is as safe there."""

import errno
import logging
import random
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from store.datastore.archives import ChunkCache
from store.datastore.datastore import Datastore
from store.datastore.snapshots import SyncLevel
from store.errors import ChunkMissing, OutOfSpace, StoreError
from store.format.crypt import CryptConfig, chunk_digest
from store.heads import Heads
from store.heads.head import OpenHead
from store.heads.moving import Pins
from store.names import BackupGroup, Digest
from tests.fakes.datastores import GROUP, ROOT, bare_backend
from tests.fakes.heads import move_all, write_past_the_budget
from tests.unit.store.heads.conftest import KEY, chunks, reader
from tests.unit.store.heads.test_failures import Faulty

MIB = 1 << 20
SIZE = 9 * MIB + 512
SMALL = {b"f%03d" % number: bytes([number]) * (number * 37) for number in range(200)}
LARGE = random.Random(1).randbytes(9 * MIB)
DISK = random.Random(2).randbytes(SIZE)


def pin_groups(datastore: Datastore) -> list[BackupGroup]:
    return [group for group in datastore.list_groups(ROOT) if "vaultway-head" in group.id]


def pinned(datastore: Datastore) -> set[Digest]:
    """What the one pin there is names: prune and garbage collection let it be."""
    (group,) = pin_groups(datastore)
    (snapshot,) = datastore.list_snapshots(ROOT, group)
    assert datastore.is_protected(ROOT, snapshot)
    files = [info.filename for info in datastore.read_manifest(ROOT, snapshot).files]
    assert files == ["moved.didx"]
    return set(datastore.dynamic_index(ROOT, snapshot, "moved.didx").digests())


def collect_garbage(datastore: Datastore) -> int:
    """The hardest one there could be: whatever no index file names goes at once."""
    named: set[Digest] = set()
    for group in datastore.list_groups(ROOT):
        for snapshot in datastore.list_snapshots(ROOT, group):
            for name in datastore.list_files(ROOT, snapshot):
                if name.endswith(".fidx"):
                    named |= set(datastore.fixed_index(ROOT, snapshot, name).digests())
                elif name.endswith(".didx"):
                    named |= set(datastore.dynamic_index(ROOT, snapshot, name).digests())
    garbage = set(datastore.chunks.iterate()) - named
    for digest in garbage:
        datastore.backend.delete(datastore.chunks.name(digest))
    return len(garbage)


def fill(head: OpenHead) -> None:
    """An image, a large file and many small ones."""
    head.create_image("disk.img", SIZE).write(0, DISK)
    tree = head.create_tree("root.pxar")
    for name, content in {**SMALL, b"large": LARGE}.items():
        tree.write(tree.create(tree.root, name, 0o644, 0, 0).number, 0, content)


def check(head: OpenHead) -> None:
    """What `fill` has written is there."""
    assert head.image("disk.img").read(0, SIZE) == DISK
    tree = head.tree("root.pxar")
    for name, content in {**SMALL, b"large": LARGE}.items():
        number = tree.lookup(tree.root, name).number
        assert tree.read(number, 0, len(LARGE)) == content, name


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_what_moved_is_safe_and_sealed_by_name(
    datastore: Datastore, heads: Heads, key: CryptConfig | None, tmp_path: Path
) -> None:
    """Its room in the journal is free, garbage collection keeps it, the seal stores it no more."""
    mine = Heads(datastore, heads.directory, key=key, sync_level=SyncLevel.NONE)
    with mine.open(ROOT, GROUP) as head:
        fill(head)
        assert move_all(head) >= 2 * len(LARGE)
        assert head.journal.segments.total_bytes == 0
        check(head)
    if key is not None:
        raw = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        assert not [file for file in raw if LARGE[:32] in file or b"f100" in file]
    assert pinned(datastore) == set(datastore.chunks.iterate())
    assert collect_garbage(datastore) == 0
    before = chunks(datastore)
    mine.cache.clear()
    with mine.open(ROOT, GROUP) as head:
        check(head)
        snapshot = head.seal()
        assert not pin_groups(datastore)
        check(head)
    new = chunks(datastore).keys() - before.keys()
    sizes = [chunks(datastore)[digest] for digest in new]
    index = datastore.fixed_index(ROOT, snapshot, "disk.img.fidx")
    assert {index.digest(0).hex(), index.digest(1).hex()} <= before.keys()
    payload = datastore.dynamic_index(ROOT, snapshot, "root.ppxar.didx")
    regions = [LARGE[start : start + 4 * MIB] for start in (0, 4 * MIB)]
    assert {chunk_digest(region, key) for region in regions} <= set(payload.digests())
    assert sum(sizes) < 4 * MIB, sizes
    collect_garbage(datastore)
    mine.cache.clear()
    opened = reader(datastore, snapshot, key)
    assert opened.open_image("disk.img").read(0, SIZE) == DISK
    accessor = opened.open_tree("root.pxar")
    for name, content in {**SMALL, b"large": LARGE}.items():
        assert accessor.read(accessor.resolve(name), 0, len(LARGE)) == content


def test_what_moved_is_dirty_still(heads: Heads) -> None:
    """And what was replaced since is not any more, nor what was sealed."""
    with heads.open(ROOT, GROUP) as head:
        fill(head)
        move_all(head)
        head.image("disk.img").write(0, DISK[: 4 * MIB])
        head.sync()
        moved = SIZE + len(LARGE) + sum(map(len, SMALL.values())) - 4 * MIB
        (info,) = heads.list()
        assert info.moved_bytes == moved
        assert head.dirty_bytes == info.dirty_bytes
        assert moved + 4 * MIB < info.dirty_bytes < moved + 5 * MIB
    (info,) = heads.list()
    assert info.moved_bytes == moved
    with heads.open(ROOT, GROUP) as head:
        assert head.dirty_bytes > moved + 4 * MIB
        head.seal()
        assert head.dirty_bytes == 0
        (info,) = heads.list()
        assert (info.dirty_bytes, info.moved_bytes) == (0, 0)
        head.image("disk.img").write(0, b"x")
        head.sync()
        (info,) = heads.list()
        assert info.moved_bytes == 0
        assert 0 < info.dirty_bytes < MIB


def test_a_full_journal_moves_and_goes_on(datastore: Datastore, heads: Heads) -> None:
    """Nobody fails, and no snapshot is made."""
    small = Heads(datastore, heads.directory, budget_bytes=3 * MIB, sync_level=SyncLevel.NONE)
    with small.open(ROOT, GROUP) as head:
        write_past_the_budget(head)
    assert not datastore.list_snapshots(ROOT, GROUP)
    assert pinned(datastore)


def test_what_is_written_meanwhile_wins(head: OpenHead, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(head)
    tree, image = head.tree("root.pxar"), head.image("disk.img")
    number = tree.lookup(tree.root, b"f100").number
    finish = Pins.finish

    def change_before(pins: Pins, *arguments: Any) -> Any:
        image.write(MIB, b"new" * 100)
        tree.write(number, 5, b"new")
        tree.unlink(tree.root, b"f101")
        tree.setattr(tree.lookup(tree.root, b"large").number, size=MIB)
        return finish(pins, *arguments)

    monkeypatch.setattr(Pins, "finish", change_before)
    move_all(head)
    monkeypatch.undo()
    assert image.read(MIB, 300) == b"new" * 100
    assert image.read(MIB + 300, MIB) == DISK[MIB + 300 : 2 * MIB + 300]
    assert tree.read(number, 0, 10) == SMALL[b"f100"][:5] + b"new" + SMALL[b"f100"][8:10]
    large = tree.lookup(tree.root, b"large").number
    assert tree.read(large, 0, SIZE) == LARGE[:MIB]
    with pytest.raises(FileNotFoundError):
        tree.lookup(tree.root, b"f101")


def test_what_is_not_used_is_not_pinned_any_longer(datastore: Datastore, head: OpenHead) -> None:
    """The next pin names what the head has then; the one before is gone."""
    fill(head)
    move_all(head)
    first = pinned(datastore)
    head.image("disk.img").write(0, b"other" * MIB)
    tree = head.tree("root.pxar")
    tree.unlink(tree.root, b"large")
    move_all(head)
    second = pinned(datastore)
    assert first - second
    assert second - first
    assert first & second


def test_a_discarded_head_lets_go(datastore: Datastore, heads: Heads) -> None:
    with heads.open(ROOT, GROUP) as head:
        fill(head)
        move_all(head)
    assert pin_groups(datastore)
    heads.discard(ROOT, GROUP)
    assert not datastore.list_groups(ROOT, empty=True)


@pytest.mark.expect_warnings
def test_a_damaged_head_can_be_discarded(heads: Heads, datastore: Datastore) -> None:
    with heads.open(ROOT, GROUP) as head:
        path = Path(head.directory)
    (path / "journal.sqlite").write_bytes(b"")
    heads.discard(ROOT, GROUP)
    assert not heads.exists(ROOT, GROUP)


def test_a_file_without_a_name_keeps_what_moved(datastore: Datastore, heads: Heads) -> None:
    """Over seals, for as long as somebody has it open; then its pin goes."""
    with heads.open(ROOT, GROUP) as head:
        fill(head)
        tree = head.tree("root.pxar")
        number = tree.lookup(tree.root, b"large").number
        tree.hold(number)
        move_all(head)
        tree.unlink(tree.root, b"large")
        for _ in range(2):
            tree.create(tree.root, b"%d" % time.monotonic_ns(), 0o644, 0, 0)
            head.seal()
            assert len(pinned(datastore)) >= 3
            collect_garbage(datastore)
            heads.cache.clear()
            assert tree.read(number, 0, SIZE) == LARGE
        tree.release(number)
        tree.create(tree.root, b"last", 0o644, 0, 0)
        head.seal()
        assert not pin_groups(datastore)


@pytest.mark.expect_warnings
def test_a_pin_that_was_removed_is_made_again(
    datastore: Datastore, heads: Heads, caplog: pytest.LogCaptureFixture
) -> None:
    """What went with it is told, and is EIO; the rest is as it was."""
    with heads.open(ROOT, GROUP) as head:
        fill(head)
        move_all(head)
        lost = head.journal.moved.all()[0].digest
    (group,) = pin_groups(datastore)
    (snapshot,) = datastore.list_snapshots(ROOT, group)
    datastore.set_protected(ROOT, snapshot, False)
    datastore.forget_snapshot(ROOT, snapshot)
    datastore.backend.delete(datastore.chunks.name(lost))
    heads.cache.clear()
    with heads.open(ROOT, GROUP) as head:
        assert lost not in pinned(datastore)
        tree = head.tree("root.pxar")
        assert tree.read(tree.lookup(tree.root, b"f100").number, 0, SIZE) == SMALL[b"f100"]
        with pytest.raises(ChunkMissing):
            head.image("disk.img").read(0, 10)
        assert head.image("disk.img").read(8 * MIB, MIB) == DISK[8 * MIB : 9 * MIB]
        with pytest.raises(ChunkMissing):
            head.seal()
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [str(lost) in record.getMessage() for record in errors] == [True]


@pytest.mark.expect_warnings
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_move_that_fails_at_any_call(tmp_path: Path, after: bool) -> None:
    """Nothing is lost, here or after a crash; the next one works, and leaves one pin."""
    backend = Faulty(bare_backend(tmp_path / "vault"), after=after)
    datastore = Datastore("vault", backend)
    heads = Heads(
        datastore, tmp_path / "heads", sync_level=SyncLevel.NONE, cache=ChunkCache(1 << 20)
    )
    head = heads.open(ROOT, GROUP)
    fill(head)
    number = 0
    while True:
        number += 1
        backend.calls, backend.fail_at = 0, number - 1
        with suppress(StoreError):
            move_all(head)
        is_over = backend.calls < number
        backend.fail_at = -1
        check(head)
        if number % 2:
            head.abandon()
            head = heads.open(ROOT, GROUP)
            check(head)
        if is_over:
            break
        head.image("disk.img").write(0, DISK[:4096])
        move_all(head)
        collect_garbage(datastore)
        assert len(pinned(datastore)) > 3
        for name, content in {**SMALL, b"large": LARGE}.items():  # for the next round
            tree = head.tree("root.pxar")
            tree.write(tree.lookup(tree.root, name).number, 0, content)
    assert number > 20
    head.close()


def test_a_seal_does_not_wait_for_a_move(datastore: Datastore, heads: Heads) -> None:
    """A thread that moves ends for it."""
    small = Heads(datastore, heads.directory, budget_bytes=48 * MIB, sync_level=SyncLevel.NONE)
    with small.open(ROOT, GROUP) as head:
        fill(head)
        tree = head.tree("root.pxar")
        for number in range(4):
            file = tree.create(tree.root, b"more%d" % number, 0o644, 0, 0).number
            tree.write(file, 0, LARGE)
        snapshot = head.seal()
        assert datastore.list_snapshots(ROOT, GROUP) == [snapshot]
        check(head)


@pytest.mark.expect_warnings
def test_a_full_journal_without_a_datastore(tmp_path: Path) -> None:
    """After a while there is no space; nothing of before is lost, and later it goes on."""
    vault, away = tmp_path / "vault", tmp_path / "away"
    datastore = Datastore("vault", bare_backend(vault))
    heads = Heads(datastore, tmp_path / "heads", budget_bytes=4 * MIB, sync_level=SyncLevel.NONE)
    with heads.open(ROOT, GROUP) as head:
        head.journal.patience_s = 0.5
        image = head.create_image("disk.img", SIZE)
        vault.rename(away)
        written = 0

        def fill_up() -> None:
            nonlocal written
            while written < 9:
                image.write(written * MIB, DISK[written * MIB : (written + 1) * MIB])
                written += 1

        with pytest.raises(OutOfSpace) as caught:
            fill_up()
        assert caught.value.errno == errno.ENOSPC
        assert written >= 3
        image.flush()
        assert image.read(0, written * MIB) == DISK[: written * MIB]
        away.rename(vault)
        image.write(written * MIB, DISK[written * MIB :])
        assert image.read(0, SIZE) == DISK
