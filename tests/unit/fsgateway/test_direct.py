"""Requests answered without an event loop: what is told, counted and held, and who answers else."""

import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsgateway.attributes import IMMUTABLE_S
from fsgateway.handles import HandleTable
from fsgateway.writing.direct import NO_SUCH_NAME, SHOWN, DirectHandlers, failed
from fsgateway.writing.files import FIRST_HANDLE, WritableFile
from fsgateway.writing.open_heads import OpenHeads, SealPolicy
from fsgateway.writing.trees import HeadTrees
from store.datastore.archives import ChunkCache, SnapshotReader
from store.datastore.snapshots import SyncLevel
from store.errors import BackendError
from store.heads import DEFAULT_ACL, Heads, Tree, WouldWait
from store.heads.tree import HeadTree
from tests.fakes.datastores import GROUP, ROOT, local_datastore

ACL = bytes.fromhex("02000000010007000000000004000500000000002000050000000000")


class Mount:
    """What a mount has of one tree."""

    def __init__(self, tree: Tree) -> None:
        assert isinstance(tree, HeadTree)
        self.tree = tree
        self.trees = HeadTrees(None)  # type: ignore[arg-type] - nobody is presented here
        self.files: HandleTable[WritableFile] = HandleTable(FIRST_HANDLE)
        self.direct = DirectHandlers(self.trees, self.files, lambda *asked: repr(asked).encode())
        self.root = self.trees.root(tree)

    def create(self, name: bytes = b"f") -> tuple[int, int, int]:
        """Its inode, its handle, and how much may be collected."""
        made = self.direct.create(self.root, name, 0o100666, 0o22, 1, 2)
        assert isinstance(made, tuple)
        return inode_of(made[0]), made[1], made[2]

    @property
    def held(self) -> dict[int, int]:
        return self.tree.table.held


def inode_of(shown: object) -> int:
    assert isinstance(shown, bytes)
    inode: int = SHOWN.unpack(shown)[0]
    return inode


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    heads = Heads(
        local_datastore(tmp_path / "vault"), tmp_path / "heads", sync_level=SyncLevel.NONE
    )
    with heads.open(ROOT, GROUP) as head:
        yield Mount(head.create_tree("root.pxar"))


def test_what_is_told(mount: Mount) -> None:
    inode, _, _ = mount.create()
    mount.direct.setattr(inode, 0o640, None, 7, 1025, 1, 2, 3)
    found = mount.direct.getattr(inode)
    assert isinstance(found, bytes)
    assert SHOWN.unpack(found) == (inode, 0o100640, 1, 1, 7, 0, 1025, 0, 1, 2, 3, IMMUTABLE_S)


def test_each_telling_is_counted_and_holds(mount: Mount) -> None:
    inode, handle, _ = mount.create()
    assert inode_of(mount.direct.lookup(mount.root, b"f")) == inode
    number = inode & (1 << 46) - 1
    assert mount.held[number] == 2  # by the kernel, and as an open file
    mount.direct.release(handle)
    assert len(mount.files) == 0
    mount.direct.unlink(mount.root, b"f")
    mount.trees.forget(inode, 1)
    assert mount.direct.getattr(inode) is not None  # it was told twice
    mount.trees.forget(inode, 1)
    assert not mount.held
    assert not mount.trees.bare
    with pytest.raises(OSError, match="Stale"):
        mount.tree.getattr(number)


def test_no_such_name_is_kept(mount: Mount) -> None:
    assert mount.direct.lookup(mount.root, b"no") == NO_SUCH_NAME
    assert mount.held == {}


def test_what_was_collected_is_done(mount: Mount) -> None:
    inode, handle, room = mount.create()
    assert room >= 3
    mount.direct.complete(handle, True, memoryview(b"abc"), 0o104751, 5, 6, 10, 20, 30)
    found = mount.direct.getattr(inode)
    assert isinstance(found, bytes)
    assert SHOWN.unpack(found)[:-1] == (inode, 0o104751, 1, 5, 6, 0, 3, 1, 10, 20, 30)
    assert mount.tree.read(inode & (1 << 46) - 1, 0, 10) == b"abc"
    assert len(mount.files) == 0
    assert list(mount.held.values()) == [1]  # by the kernel


def test_a_default_acl_stands_in_for_the_umask_and_nothing_is_collected(mount: Mount) -> None:
    mount.tree.setxattr(mount.tree.root, DEFAULT_ACL, ACL[:-4] + bytes(4))
    named = ACL[:4] + ACL[4:12] + bytes.fromhex("0200060009000000") + ACL[12:20]
    named += bytes.fromhex("1000070000000000") + ACL[20:]
    mount.tree.setxattr(mount.tree.root, DEFAULT_ACL, named)
    inode, _, room = mount.create()
    assert mount.tree.getattr(inode & (1 << 46) - 1).mode == 0o100664
    assert room == 0


def test_each_file_is_read_by_those_who_opened_it(mount: Mount) -> None:
    _, handle, _ = mount.create()
    mount.direct.write(handle, 0, b"abc")
    assert mount.direct.read(handle, 1, 9) == b"bc"
    assert mount.direct.read(7, 1, 9) == b"(7, 1, 9)"


def test_what_has_to_wait_is_not_done(mount: Mount) -> None:
    """Another thread has the lock: the handler that can wait is called."""
    has_it, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with mount.tree.journal.lock:
            has_it.set()
            may_end.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    has_it.wait()
    try:
        with pytest.raises(WouldWait):
            mount.direct.create(mount.root, b"f", 0o100644, 0, 0, 0)
        with pytest.raises(WouldWait):
            mount.direct.lookup(mount.root, b"f")
    finally:
        may_end.set()
        holder.join()
    assert len(mount.files) == 0
    assert mount.held == {}


def test_a_seal_has_what_was_collected_before(tmp_path: Path) -> None:
    """It waits for that, and meanwhile nothing is collected anew."""
    datastore = local_datastore(tmp_path / "vault")
    made = Heads(datastore, tmp_path / "heads", sync_level=SyncLevel.NONE)
    heads = OpenHeads(made, SealPolicy.parse("manual"))
    mounted = heads.get(ROOT, GROUP)
    mount = Mount(mounted.head.create_tree("root.pxar"))
    _, handle, _ = mount.create()

    def settle() -> None:
        assert mount.tree.room() == 0
        mount.direct.complete(handle, False, memoryview(b"abc"), 0o100644, 0, 0, 1, 2, 3)

    heads.settle = settle
    snapshot = mounted.seal()
    assert mount.tree.room()
    reader = SnapshotReader(datastore, ROOT, snapshot, None, ChunkCache(32 << 20))
    tree = reader.open_tree("root.pxar")
    assert [tree.read(entry, 0, 9) for entry in tree.list(tree.root())] == [b"abc"]
    heads.close()


@pytest.mark.expect_warnings
def test_errors() -> None:
    assert failed(WouldWait()) is None
    assert failed(FileExistsError(errno.EEXIST, "there")) == errno.EEXIST
    assert failed(BackendError("gone")) == BackendError.errno
    assert failed(ValueError("injected")) == errno.EIO
