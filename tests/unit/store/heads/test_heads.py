"""Where heads are, who has them, and that nothing of them is to be read on the disk."""

import os
import stat
from pathlib import Path

import pytest

from store.datastore.datastore import Datastore
from store.datastore.snapshots import SyncLevel
from store.errors import Locked, NotFound, OutOfSpace, WrongKey
from store.format.crypt import CryptConfig
from store.heads import Heads, WouldWait, journal
from store.heads.control import SOCKET
from store.heads.head import OpenHead
from tests.fakes.datastores import GROUP, ROOT
from tests.unit.store.heads.conftest import KEY

PATTERN = b"the plaintext of a customer"
NAME = b"salaries-of-everybody.ods"


def test_one_writer(head: OpenHead, heads: Heads) -> None:
    with pytest.raises(Locked, match=f"by process {os.getpid()} on {os.uname().nodename}"):
        heads.open(ROOT, GROUP)
    (info,) = heads.list()
    assert info.holder == f"process {os.getpid()} on {os.uname().nodename}"


def test_a_stale_writer_fences_itself(head: OpenHead, heads: Heads) -> None:
    tree = head.create_tree("root.pxar")
    image = head.create_image("disk.img", 1 << 20)
    head.sync()
    (lock,) = (heads.directory / ".vaultway/locks").iterdir()
    lock.write_bytes(b"1 elsewhere 00\n")
    image.write(0, b"x")
    with pytest.raises(Locked, match="lost"):
        image.flush()
    with pytest.raises(Locked):
        tree.mkdir(tree.root, b"d", 0o755, 0, 0)
    with pytest.raises(Locked):
        head.sync()
    with pytest.raises(Locked):
        head.close()


def test_a_writer_whose_lock_file_was_removed_fences_itself(head: OpenHead, heads: Heads) -> None:
    image = head.create_image("disk.img", 1 << 20)
    head.sync()
    (lock,) = (heads.directory / ".vaultway/locks").iterdir()
    lock.unlink()
    with heads.open(ROOT, GROUP):
        image.write(0, b"x")
        with pytest.raises(Locked, match="lost"):
            image.flush()
        with pytest.raises(Locked):
            head.close()


def test_a_relative_directory_stays_where_it_is(
    datastore: Datastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount in the background goes to `/`."""
    monkeypatch.chdir(tmp_path)
    heads = Heads(datastore, "relative", sync_level=SyncLevel.NONE)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with heads.open(ROOT, GROUP) as head:
        head.create_image("disk.img", 1 << 20).flush()
    assert (tmp_path / "relative").is_dir()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_nothing_plain_is_on_the_disk(datastore: Datastore, heads: Heads, tmp_path: Path) -> None:
    secret = Heads(datastore, heads.directory, key=KEY, sync_level=SyncLevel.NONE)
    with secret.open(ROOT, GROUP) as head:
        tree = head.create_tree("root.pxar")
        number = tree.create(tree.root, NAME, 0o644, 0, 0).number
        tree.write(number, 0, PATTERN * 100)
        tree.setxattr(number, b"user.note", PATTERN)
        tree.symlink(tree.root, b"link", NAME, 0, 0)
        head.create_image("disk.img", 1 << 20).write(0, PATTERN * 100)
        head.write_blob("x.conf", PATTERN)
        head.sync()
        _check_nothing(tmp_path)
        head.seal()
        tree.rename(tree.root, NAME, tree.root, b"2" + NAME)
        head.sync()
        _check_nothing(tmp_path)
    _check_nothing(tmp_path)


def _check_nothing(place: Path) -> None:
    files = [path for path in place.rglob("*") if path.is_file()]
    assert any(path.suffix == ".sqlite" for path in files)
    for path in files:
        raw = path.read_bytes()
        assert PATTERN not in raw, path
        assert NAME not in raw, path


def test_no_nonce_comes_twice(datastore: Datastore, heads: Heads) -> None:
    """Neither in a segment nor after a crash; and no two segments have one key."""
    secret = Heads(datastore, heads.directory, key=KEY, sync_level=SyncLevel.NONE)
    for number in range(3):
        head = secret.open(ROOT, GROUP)
        if not number:
            head.create_image("disk.img", 1 << 20)
        for block in range(50):
            head.image("disk.img").write((number * 50 + block) * 4096, PATTERN)
        head.image("disk.img").flush()
        head.abandon()
    salts, nonces = [], []
    for path in sorted(heads.directory.rglob("*.seg")):
        raw = path.read_bytes()
        salts.append(raw[32:48])
        position = 64
        while position < len(raw):
            nonces.append(raw[position + 36 : position + 48])
            position += 64 + int.from_bytes(raw[position + 8 : position + 12], "little")
    assert len(salts) == len(set(salts)) == 3
    assert len(nonces) == len(set(nonces)) == 150


def test_another_key(datastore: Datastore, heads: Heads) -> None:
    Heads(datastore, heads.directory, key=KEY, sync_level=SyncLevel.NONE).open(ROOT, GROUP).close()
    other = Heads(datastore, heads.directory, key=CryptConfig(bytes(32)))
    with pytest.raises(WrongKey, match="needs the key"):
        other.open(ROOT, GROUP)
    Heads(datastore, heads.directory, key=KEY, sync_level=SyncLevel.NONE).open(
        ROOT, GROUP
    ).close()  # its lock was given back


def test_discard(datastore: Datastore, heads: Heads) -> None:
    with heads.open(ROOT, GROUP) as head:
        head.create_tree("root.pxar")
        with pytest.raises(Locked):
            heads.discard(ROOT, GROUP)
    assert [info.archives for info in heads.list()] == [("root.pxar",)]
    heads.discard(ROOT, GROUP)
    assert list(heads.list()) == []
    with pytest.raises(NotFound):
        heads.discard(ROOT, GROUP)


def test_clones(datastore: Datastore, heads: Heads) -> None:
    with heads.open(ROOT, GROUP) as head:
        head.create_image("disk.img", 1 << 20).write(0, b"as it was")
        snapshot = head.seal()
        with heads.clone(ROOT, snapshot) as one, heads.clone(ROOT, snapshot) as two:
            one.image("disk.img").write(0, b"one")
            assert two.image("disk.img").read(0, 9) == b"as it was"
            assert len({info.label for info in heads.list()}) == 3
        assert [info.label for info in heads.list()] == [""]
        assert head.image("disk.img").read(0, 9) == b"as it was"


def test_at_once_does_nothing_that_waits(head: OpenHead) -> None:
    tree = head.create_tree("root.pxar")
    for number in range(3):
        file = tree.create(tree.root, b"%d" % number, 0o644, 0, 0).number
        tree.write(file, 0, bytes(100))
    head.seal()
    head.cache.clear()
    with pytest.raises(WouldWait):
        tree.at_once(tree.lookup, tree.root, b"1")
    found = tree.lookup(tree.root, b"1")
    assert tree.at_once(tree.getattr, found.number) is found
    with pytest.raises(WouldWait):
        tree.at_once(tree.sync)


def test_a_disk_that_is_full(head: OpenHead, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = head.create_tree("root.pxar")
    file = tree.create(tree.root, b"f", 0o644, 0, 0).number
    original = os.pwritev

    def full(descriptor: int, parts: list[bytes], position: int) -> int:
        return original(descriptor, (parts[0],), position)  # a part of it

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        with pytest.raises(OutOfSpace) as error:
            tree.write(file, 0, b"x" * 1000)
    assert error.value.errno == 28
    assert tree.getattr(file).size == 0
    tree.write(file, 0, b"y" * 1000)
    assert tree.read(file, 0, 2000) == b"y" * 1000


def test_what_frees_room_goes_on_when_the_disk_is_full(
    head: OpenHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = head.create_tree("root.pxar")
    for name in (b"a", b"b"):
        tree.write(tree.create(tree.root, name, 0o644, 0, 0).number, 0, bytes(1000))
    space = os.statvfs(head.directory)
    full = os.statvfs_result((*space[:4], 100, *space[5:]))
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda _: full)
        head.journal._unlooked = journal.LOOK_AT_SPACE
        with pytest.raises(OutOfSpace):
            tree.mkdir(tree.root, b"d", 0o755, 0, 0)
        tree.unlink(tree.root, b"a")
        tree.setattr(tree.lookup(tree.root, b"b").number, size=10)
        tree.sync()
    tree.mkdir(tree.root, b"d", 0o755, 0, 0)
    assert {entry.name for entry in tree.iterate(tree.root)} == {b"b", b"d"}


def test_what_nobody_has_open_is_gone_after_a_crash(heads: Heads) -> None:
    head = heads.open(ROOT, GROUP)
    tree = head.create_tree("root.pxar")
    file = tree.create_unlinked(tree.root, 0o600, 0, 0).number
    tree.write(file, 0, bytes(1000))
    head.sync()
    head.abandon()
    with heads.open(ROOT, GROUP) as head:
        assert head.journal.rows.fetch("SELECT count(*) FROM inode")[0][0] == 2  # removed at flush
        head.sync()
        assert head.journal.rows.fetch("SELECT count(*) FROM inode")[0][0] == 1


def test_a_damaged_record_is_found(heads: Heads) -> None:
    with heads.open(ROOT, GROUP) as head:
        tree = head.create_tree("root.pxar")
        file = tree.create(tree.root, b"f", 0o644, 0, 0).number
        tree.write(file, 0, b"some content")
    (segment,) = heads.directory.rglob("*.seg")
    raw = bytearray(segment.read_bytes())
    raw[-1] ^= 1
    segment.write_bytes(raw)
    with heads.open(ROOT, GROUP) as head:
        tree = head.tree("root.pxar")
        with pytest.raises(Exception, match="checksum"):
            tree.read(tree.lookup(tree.root, b"f").number, 0, 100)


def test_a_killed_process_leaves_a_socket(head: OpenHead, heads: Heads) -> None:
    """Which goes with the head."""
    head.close()
    os.mknod(f"{head.directory}/{SOCKET}", stat.S_IFSOCK | 0o600)
    heads.discard(ROOT, GROUP)
    assert not os.path.exists(head.directory)
