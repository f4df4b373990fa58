"""What a seal stores, and what it leaves."""

import os

import pytest

from store.datastore.datastore import Datastore
from store.datastore.snapshots import SyncLevel
from store.errors import AlreadyExists, Locked, NotFound, StoreError
from store.heads import Heads
from store.heads.head import OpenHead
from store.heads.sealing import run as sealing_run
from store.names import Snapshot
from tests.fakes.datastores import GROUP, ROOT
from tests.fakes.heads import write_past_the_budget
from tests.unit.store.heads.conftest import KEY, chunks, reader

MIB = 1 << 20


def filled(head: OpenHead, files: int = 50, size: int = 300_000) -> list[int]:
    tree = head.create_tree("root.pxar")
    numbers = []
    for i in range(files):
        number = tree.create(tree.root, b"f%02d" % i, 0o644, 0, 0).number
        tree.write(number, 0, os.urandom(size))
        numbers.append(number)
    return numbers


def test_nothing_to_seal(head: OpenHead) -> None:
    with pytest.raises(NotFound, match="is empty"):
        head.seal()
    filled(head, 1)
    snapshot = head.seal()
    assert head.seal() == snapshot
    assert head.dirty_bytes == 0


def test_what_takes_no_room_is_dirty_too(head: OpenHead, heads: Heads) -> None:
    """Who seals at the end of a mount asks whether there is anything."""
    tree = head.create_tree("root.pxar")
    head.seal()
    tree.mkdir(tree.root, b"d", 0o755, 0, 0)
    assert head.dirty_bytes > 0
    (info,) = heads.list()
    assert info.dirty_bytes > 0


def test_a_change_of_metadata_stores_no_payload(head: OpenHead, datastore: Datastore) -> None:
    numbers = filled(head)
    head.seal()
    before = chunks(datastore)
    for number in numbers:
        head.tree("root.pxar").setattr(number, mode=0o600, uid=1000)
    snapshot = head.seal()
    new = {name: size for name, size in chunks(datastore).items() if name not in before}
    assert sum(new.values()) < 10_000
    accessor = reader(datastore, snapshot, None).open_tree("root.pxar")
    assert accessor.resolve(b"f07").metadata.uid == 1000


def test_a_move_stores_no_payload(head: OpenHead, datastore: Datastore) -> None:
    tree = head.create_tree("root.pxar")
    contents = {}
    for name in (b"a", b"b", b"c"):
        directory = tree.mkdir(tree.root, name, 0o755, 0, 0).number
        for i in range(20):
            number = tree.create(directory, b"f%02d" % i, 0o644, 0, 0).number
            contents[name, i] = os.urandom(300_000)
            tree.write(number, 0, contents[name, i])
    head.seal()
    before = chunks(datastore)
    tree.rename(tree.root, b"a", tree.root, b"z")
    snapshot = head.seal()
    new = {name: size for name, size in chunks(datastore).items() if name not in before}
    assert sum(new.values()) < 2_000_000  # the files at the ends of moved chunks
    accessor = reader(datastore, snapshot, None).open_tree("root.pxar")
    for (name, i), content in contents.items():
        entry = accessor.resolve((b"z" if name == b"a" else name) + b"/f%02d" % i)
        assert accessor.read(entry, 0, 300_000) == content


def test_a_seal_stores_in_proportion_to_the_change(head: OpenHead, datastore: Datastore) -> None:
    numbers = filled(head, 100)
    head.seal()
    before = chunks(datastore)
    head.tree("root.pxar").write(numbers[50], 0, os.urandom(300_000))
    snapshot = head.seal()
    new = {name: size for name, size in chunks(datastore).items() if name not in before}
    assert sum(new.values()) < 3 * 300_000
    accessor = reader(datastore, snapshot, None).open_tree("root.pxar")
    for i in (0, 49, 50, 51, 99):
        entry = accessor.resolve(b"f%02d" % i)
        content = head.tree("root.pxar").read(numbers[i], 0, 300_000)
        assert accessor.read(entry, 0, 300_000) == content


def test_a_large_file_that_changed_in_part(head: OpenHead, datastore: Datastore) -> None:
    tree = head.create_tree("root.pxar")
    number = tree.create(tree.root, b"large", 0o644, 0, 0).number
    content = bytearray(os.urandom(64 * MIB))
    for start in range(0, len(content), MIB):
        tree.write(number, start, content[start : start + MIB])
    head.seal()
    before = chunks(datastore)
    for offset in (30 * MIB, 63 * MIB):
        tree.write(number, offset, b"changed")
        content[offset : offset + 7] = b"changed"
    tree.write(number, len(content), b"and longer")
    content += b"and longer"
    for _ in range(2):  # the second time over what the first one patched
        snapshot = head.seal()
        new = {name: size for name, size in chunks(datastore).items() if name not in before}
        assert sum(new.values()) < 36 * MIB  # some 4 MiB for each place, at most 16
        accessor = reader(datastore, snapshot, None).open_tree("root.pxar")
        assert accessor.read(accessor.resolve(b"large"), 0, 65 * MIB) == content
        assert tree.read(number, 0, 65 * MIB) == content
        before = chunks(datastore)
        tree.write(number, 5 * MIB, b"again")
        content[5 * MIB : 5 * MIB + 5] = b"again"
    head.seal()
    tree.setattr(number, size=20 * MIB)
    snapshot = head.seal()
    accessor = reader(datastore, snapshot, None).open_tree("root.pxar")
    assert accessor.read(accessor.resolve(b"large"), 0, 65 * MIB) == content[: 20 * MIB]


def test_only_dirty_chunks_of_an_image_are_stored(head: OpenHead, datastore: Datastore) -> None:
    image = head.create_image("disk.img", 40 * MIB)
    for number in range(10):
        image.write(number * 4 * MIB, os.urandom(MIB))
    head.seal()
    before = chunks(datastore)
    image.write(17 * MIB, b"changed")
    head.seal()
    assert len(set(chunks(datastore)) - set(before)) == 1


def test_an_archive_that_did_not_change_is_named_again(
    head: OpenHead, datastore: Datastore
) -> None:
    filled(head)
    image = head.create_image("disk.img", 8 * MIB)
    first = head.seal()
    image.write(0, b"x")
    second = head.seal()
    indexes = [
        datastore.dynamic_index(ROOT, snapshot, "root.ppxar.didx").csum()
        for snapshot in (first, second)
    ]
    assert indexes[0] == indexes[1]


@pytest.mark.expect_warnings
def test_a_foreign_snapshot_meanwhile(
    head: OpenHead, datastore: Datastore, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = filled(head, 2)
    base = head.seal()
    foreign = Snapshot(GROUP, base.time + 1000)
    other = Heads(datastore, head.directory + "-other", sync_level=SyncLevel.NONE)
    with other.open(ROOT, GROUP) as second:
        second.write_blob("note.conf", b"theirs")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("time.time", lambda: float(foreign.time))
            assert second.seal() == foreign
    head.tree("root.pxar").unlink(1, b"f00")
    with pytest.raises(AlreadyExists, match=str(foreign)):
        head.seal(strict=True)
    sealed = head.seal()
    assert sealed.time == foreign.time + 1  # our clock is behind
    assert str(foreign) in caplog.text
    assert str(base) in caplog.text
    assert head.tree("root.pxar").read(numbers[1], 0, 10)


def test_a_clean_head_moves_on(heads: Heads, datastore: Datastore) -> None:
    with heads.open(ROOT, GROUP) as head:
        filled(head, 1)
        head.seal()
    with Heads(datastore, heads.directory / "other", sync_level=SyncLevel.NONE).open(
        ROOT, GROUP
    ) as other:
        other.write_blob("note.conf", b"theirs")
        newest = other.seal()
    with heads.open(ROOT, GROUP) as head:
        assert head.base == newest
        assert head.read_blob("note.conf") == b"theirs"


def test_two_seals_at_once(head: OpenHead) -> None:
    filled(head, 1)
    with head.sealing(), pytest.raises(Locked, match="being sealed"):
        head.seal()


def test_a_seal_that_fails_can_be_done_again(
    head: OpenHead, datastore: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = filled(head, 3)
    tree = head.tree("root.pxar")

    def fail(_: object) -> None:
        tree.unlink(tree.root, b"f00")  # meanwhile
        raise StoreError("the network is away")

    with monkeypatch.context() as patch:
        patch.setattr(sealing_run._Seal, "_verify", fail)
        with pytest.raises(StoreError, match="network"):
            head.seal()
    assert datastore.list_snapshots(ROOT, GROUP) == []
    snapshot = head.seal()
    accessor = reader(datastore, snapshot, None).open_tree("root.pxar")
    assert [entry.name for entry in accessor.list(accessor.root())] == [b"f01", b"f02"]
    assert tree.read(numbers[1], 0, 5)


def test_hard_links(head: OpenHead, datastore: Datastore) -> None:
    numbers = filled(head, 2)
    tree = head.tree("root.pxar")
    tree.link(numbers[0], tree.root, b"z")
    head.seal()
    assert tree.lookup(tree.root, b"z").number == numbers[0]
    assert tree.getattr(numbers[0]).nlink == 2
    tree.unlink(tree.root, b"f00")
    snapshot = head.seal()
    assert tree.getattr(numbers[0]).nlink == 1
    accessor = reader(datastore, snapshot, None).open_tree("root.pxar")
    assert accessor.resolve(b"z").size == 300_000


def test_links_that_a_snapshot_does_not_keep(head: OpenHead) -> None:
    tree = head.create_tree("root.pxar")
    number = tree.symlink(tree.root, b"a", b"nowhere", 0, 0).number
    for name in (b"b", b"c"):
        tree.link(number, tree.root, name)
    head.seal()
    found = [tree.lookup(tree.root, name) for name in (b"a", b"b", b"c")]
    assert found[0].number == number
    assert len({inode.number for inode in found}) == 3
    assert [inode.nlink for inode in found] == [1, 1, 1]
    tree.unlink(tree.root, b"b")
    head.seal()
    assert tree.readlink(tree.lookup(tree.root, b"c").number) == b"nowhere"


@pytest.mark.expect_warnings
def test_a_full_journal_that_can_not_be_moved_seals_and_goes_on(
    datastore: Datastore, heads: Heads
) -> None:
    """One that was made without a key: its chunks would be other than its snapshots'."""
    small = Heads(
        datastore, heads.directory, key=KEY, budget_bytes=3 * MIB, sync_level=SyncLevel.NONE
    )
    heads.open(ROOT, GROUP).close()
    with small.open(ROOT, GROUP) as head:
        write_past_the_budget(head)
    assert len(datastore.list_snapshots(ROOT, GROUP)) > 3


def test_an_orphan_keeps_its_content_over_a_seal(head: OpenHead) -> None:
    numbers = filled(head, 3)
    tree = head.tree("root.pxar")
    head.seal()
    content = tree.read(numbers[0], 0, 300_000)
    tree.hold(numbers[0])
    tree.unlink(tree.root, b"f00")
    tree.write(numbers[0], 5, b"more")
    head.seal()
    head.seal()
    assert tree.read(numbers[0], 0, 300_000) == content[:5] + b"more" + content[9:]
    tree.release(numbers[0])
    with pytest.raises(OSError, match="Stale"):
        tree.getattr(numbers[0])


def test_an_encrypted_head_makes_an_encrypted_snapshot(heads: Heads, datastore: Datastore) -> None:
    with Heads(datastore, heads.directory, key=KEY, sync_level=SyncLevel.NONE).open(
        ROOT, GROUP
    ) as head:
        filled(head, 2)
        head.write_blob("x.conf", b"secret")
        snapshot = head.seal()
    manifest = datastore.read_manifest(ROOT, snapshot)
    manifest.verify(KEY)
    assert manifest.signature is not None
    assert {str(info.crypt_mode) for info in manifest.files} == {"encrypt"}
    assert reader(datastore, snapshot, KEY).read_blob("x.conf") == b"secret"
