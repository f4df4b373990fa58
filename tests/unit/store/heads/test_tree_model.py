"""A head's tree does what a directory of this machine does: same results, same error numbers."""

import ctypes
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from store.datastore.archives import ChunkCache, SnapshotReader
from store.datastore.snapshots import SyncLevel
from store.format.crypt import CryptConfig
from store.format.manifest import CryptMode
from store.heads import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Heads,
)
from store.operations.backup import (
    BackupRequest,
    BackupSource,
    ChangeDetectionMode,
    run_backup,
)
from store.operations.restore import restore_archive
from store.progress import SilentProgress
from tests.fakes.datastores import GROUP, ROOT, local_datastore
from tests.fakes.heads import move_all

LIBC = ctypes.CDLL(None, use_errno=True)
NAMES = st.sampled_from([b"a", b"b", b"c", b"long" * 20, b"\xff"])
PATHS = st.lists(NAMES, min_size=1, max_size=3)
DATA = st.binary(min_size=1, max_size=3000)
OFFSETS = st.one_of(st.integers(0, 5000), st.sampled_from([4 << 20, (4 << 20) - 100]))
MODES = st.sampled_from([0o644, 0o600, 0o755, 0o4711])
KEY = CryptConfig(bytes(range(32)))

Answer = tuple[str, Any]


def answer(function: Callable[[], Any]) -> Answer:
    try:
        return "done", function()
    except OSError as error:
        return "failed", errno.errorcode[error.errno or 0]


def ignore(_: object) -> None:
    """The result is not compared."""


def call(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Real:
    """The model: a directory, and files open in it."""

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root)
        self.root_fd = os.open(root, os.O_RDONLY)

    def path(self, names: list[bytes]) -> bytes:
        return b"/".join([self.root, *names])

    def close(self) -> None:
        os.close(self.root_fd)

    def rename(self, old: list[bytes], new: list[bytes], flags: int) -> None:
        call(LIBC.renameat2(-100, self.path(old), -100, self.path(new), flags))

    def fallocate(self, names: list[bytes], mode: int, offset: int, size: int) -> None:
        file = os.open(self.path(names), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            call(LIBC.fallocate(file, mode, ctypes.c_long(offset), ctypes.c_long(size)))
        finally:
            os.close(file)


def facts(top: Path) -> dict[str, tuple[Any, ...]]:
    """All that a backup keeps, by path."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(top.rglob("*")):
        info = path.lstat()
        is_file = stat.S_ISREG(info.st_mode)
        has_xattrs = is_file or stat.S_ISDIR(info.st_mode)
        names = os.listxattr(path) if has_xattrs else []
        found[str(path.relative_to(top))] = (
            info.st_mode,
            info.st_uid,
            info.st_gid,
            info.st_nlink if is_file else 0,
            info.st_mtime_ns if info.st_mtime_ns < 2**33 else 0,  # as `setattr` sets it
            path.read_bytes() if is_file else path.is_symlink() and os.readlink(path),
            {name: os.getxattr(path, name) for name in names},
        )
    return found


class Meanwhile(SilentProgress):
    """A Progress that does something once, when a seal has begun to write."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action

    def start(self, total: int | None, unit: str) -> None:
        self.action()


class TreeMachine(RuleBasedStateMachine):
    """The same operations on a head's tree and on a directory."""

    key: CryptConfig | None = None
    mode: ChangeDetectionMode | None = None

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp())
        (self.place / "real").mkdir(mode=0o755)
        self.real = Real(self.place / "real")
        self.datastore = local_datastore(self.place / "vault")
        self.heads = Heads(
            self.datastore, self.place / "heads", key=self.key, sync_level=SyncLevel.NONE
        )
        if self.mode is not None:
            self.back_up(self.mode)
        self.head = self.heads.open(ROOT, GROUP)
        if self.mode is None:
            self.head.create_tree("root.pxar")
        self.tree = self.head.tree("root.pxar")
        self.handles: list[tuple[int, int]] = []

    def back_up(self, mode: ChangeDetectionMode) -> None:
        """Begin with a snapshot that somebody else made."""
        top = self.place / "real"
        (top / "a/b").mkdir(parents=True)
        (top / "b").write_bytes(b"first" * 1000)
        os.link(top / "b", top / "a/c")
        os.link(top / "b", top / "a/b/a")
        (top / "a/a").write_bytes(bytes(100_000))
        (top / "c").symlink_to("nowhere")
        os.setxattr(top / "a/a", "user.x", b"there")
        os.mkfifo(top / "a/b/b")
        request = BackupRequest(
            self.datastore,
            ROOT,
            GROUP,
            1_000_000,
            (BackupSource("root", "pxar", str(top)),),
            key=self.key,
            crypt_mode=CryptMode.ENCRYPT if self.key else CryptMode.NONE,
            change_detection_mode=mode,
            sync_level=SyncLevel.NONE,
        )
        run_backup(request)

    def teardown(self) -> None:
        self.check_all()
        for file, number in self.handles:
            os.close(file)
            self.tree.release(number)
        self.check_restored()
        self.head.close()
        self.real.close()
        shutil.rmtree(self.place)

    def check_restored(self) -> None:
        """What is sealed is restored as it was."""
        snapshot = self.head.seal()
        cache = ChunkCache(32 << 20)
        reader = SnapshotReader(self.datastore, ROOT, snapshot, self.key, cache)
        restore_archive(reader, "root.pxar", self.place / "restored")
        expected, found = facts(self.place / "real"), facts(self.place / "restored")
        assert found == expected

    # Paths, as the kernel walks them

    def parent(self, names: list[bytes]) -> tuple[int, bytes]:
        number = self.tree.root
        for name in names[:-1]:
            found = self.tree.lookup(number, name)
            if stat.S_ISLNK(found.mode):  # all are dangling
                raise FileNotFoundError(errno.ENOENT, "")
            if not stat.S_ISDIR(found.mode):
                raise NotADirectoryError(errno.ENOTDIR, "")
            number = found.number
        return number, names[-1]

    def number(self, names: list[bytes]) -> int:
        return self.tree.lookup(*self.parent(names)).number

    def file(self, names: list[bytes]) -> int:
        """As open(O_RDWR | O_NOFOLLOW | O_NONBLOCK)."""
        found = self.tree.lookup(*self.parent(names))
        if stat.S_ISDIR(found.mode):
            raise IsADirectoryError(errno.EISDIR, "")
        if stat.S_ISLNK(found.mode):
            raise OSError(errno.ELOOP, "")
        return found.number

    def same(self, real: Callable[[], Any], ours: Callable[[], Any]) -> None:
        expected, got = answer(real), answer(ours)
        assert got == expected, (got, expected)

    # Rules

    @rule(names=PATHS, mode=MODES)
    def create(self, names: list[bytes], mode: int) -> None:
        def real() -> None:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
            file = os.open(self.real.path(names), flags)
            os.fchmod(file, mode)
            os.close(file)

        self.same(real, lambda: ignore(self.tree.create(*self.parent(names), mode, 0, 0)))

    @rule(names=PATHS)
    def mkdir(self, names: list[bytes]) -> None:
        self.same(
            lambda: os.mkdir(self.real.path(names), 0o755),
            lambda: ignore(self.tree.mkdir(*self.parent(names), 0o755, 0, 0)),
        )

    @rule(names=PATHS)
    def fifo(self, names: list[bytes]) -> None:
        self.same(
            lambda: os.mkfifo(self.real.path(names), 0o644),
            lambda: ignore(self.tree.mknod(*self.parent(names), stat.S_IFIFO | 0o644, 0, 0)),
        )

    @rule(names=PATHS)
    def symlink(self, names: list[bytes]) -> None:
        self.same(
            lambda: os.symlink(b"nowhere", self.real.path(names)),
            lambda: ignore(self.tree.symlink(*self.parent(names), b"nowhere", 0, 0)),
        )

    @rule(old=PATHS, new=PATHS)
    def link(self, old: list[bytes], new: list[bytes]) -> None:
        path = self.real.path(old)
        if os.path.lexists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
            return  # a snapshot does not keep those, see test_sealing

        def ours() -> None:
            number = self.number(old)
            self.tree.link(number, *self.parent(new))

        def real() -> None:
            os.link(self.real.path(old), self.real.path(new), follow_symlinks=False)

        expected, got = answer(real), answer(ours)
        both_wrong = expected[0] == got[0] == "failed"  # which of two errors comes first
        assert got == expected or both_wrong, (got, expected)

    @rule(names=PATHS)
    def unlink(self, names: list[bytes]) -> None:
        self.same(
            lambda: os.unlink(self.real.path(names)),
            lambda: self.tree.unlink(*self.parent(names)),
        )

    @rule(names=PATHS)
    def rmdir(self, names: list[bytes]) -> None:
        self.same(
            lambda: os.rmdir(self.real.path(names)),
            lambda: self.tree.rmdir(*self.parent(names)),
        )

    @rule(
        old=PATHS,
        new=PATHS,
        flags=st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]),
    )
    def rename(self, old: list[bytes], new: list[bytes], flags: int) -> None:
        expected = answer(lambda: self.real.rename(old, new, flags))
        got = answer(lambda: self.tree.rename(*self.parent(old), *self.parent(new), flags))
        both_wrong = expected[0] == got[0] == "failed"
        assert got == expected or both_wrong, (got, expected)

    @rule(names=PATHS, offset=OFFSETS, data=DATA)
    def write(self, names: list[bytes], offset: int, data: bytes) -> None:
        def real() -> int:
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
            file = os.open(self.real.path(names), flags)
            try:
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise OSError(errno.EINVAL, "")
                return os.pwrite(file, data, offset)
            finally:
                os.close(file)

        self.same(real, lambda: self.tree.write(self.file(names), offset, data))

    @rule(names=PATHS, size=OFFSETS)
    def truncate(self, names: list[bytes], size: int) -> None:
        def real() -> None:
            if stat.S_ISLNK(os.lstat(self.real.path(names)).st_mode):
                raise OSError(errno.ELOOP, "")
            os.truncate(self.real.path(names), size)

        self.same(real, lambda: ignore(self.tree.setattr(self.file(names), size=size)))

    @rule(
        names=PATHS,
        offset=OFFSETS,
        size=st.integers(1, 9000),
        mode=st.sampled_from(
            [
                0,
                FALLOC_KEEP_SIZE,
                FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE,
                FALLOC_ZERO_RANGE,
                FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE,
            ]
        ),
    )
    def fallocate(self, names: list[bytes], offset: int, size: int, mode: int) -> None:
        if not os.path.lexists(self.real.path(names)):
            return
        if not stat.S_ISREG(os.lstat(self.real.path(names)).st_mode):
            return
        self.same(
            lambda: self.real.fallocate(names, mode, offset, size),
            lambda: self.tree.fallocate(self.file(names), offset, size, mode),
        )

    @rule(names=PATHS, mode=st.sampled_from([0o644, 0o700, 0o1777]), mtime=st.integers(0, 2**33))
    def setattr(self, names: list[bytes], mode: int, mtime: int) -> None:
        def real() -> None:
            path = self.real.path(names)
            if stat.S_ISLNK(os.lstat(path).st_mode):
                raise OSError(errno.ELOOP, "")
            os.chmod(path, mode)
            os.chown(path, 7, 8)
            os.chmod(path, mode)
            os.utime(path, ns=(mtime, mtime))

        def ours() -> None:
            found = self.tree.lookup(*self.parent(names))
            if stat.S_ISLNK(found.mode):
                raise OSError(errno.ELOOP, "")
            self.tree.setattr(found.number, mode=mode, uid=7, gid=8, atime_ns=mtime, mtime_ns=mtime)

        self.same(real, ours)

    @rule(names=PATHS, value=st.binary(max_size=20), flags=st.sampled_from([0, 1, 2]))
    def setxattr(self, names: list[bytes], value: bytes, flags: int) -> None:
        path = self.real.path(names)
        if not os.path.lexists(path) or os.path.islink(path):
            return
        if not (os.path.isdir(path) or os.path.isfile(path)):
            return
        self.same(
            lambda: os.setxattr(path, b"user.x", value, flags),
            lambda: self.tree.setxattr(self.number(names), b"user.x", value, flags),
        )

    @rule(names=PATHS)
    def open(self, names: list[bytes]) -> None:
        path = self.real.path(names)
        if os.path.isfile(path) and not os.path.islink(path) and len(self.handles) < 5:
            number = self.number(names)
            self.tree.hold(number)
            self.handles.append((os.open(path, os.O_RDWR), number))

    @precondition(lambda self: self.handles)
    @rule(which=st.integers(0, 4), offset=OFFSETS, data=DATA)
    def write_open(self, which: int, offset: int, data: bytes) -> None:
        file, number = self.handles[which % len(self.handles)]
        os.pwrite(file, data, offset)
        self.tree.write(number, offset, data)

    @precondition(lambda self: self.handles)
    @rule(which=st.integers(0, 4))
    def close(self, which: int) -> None:
        file, number = self.handles.pop(which % len(self.handles))
        assert self.tree.getattr(number).nlink == os.fstat(file).st_nlink
        os.close(file)
        self.tree.release(number)

    @rule()
    def sync(self) -> None:
        self.tree.sync()

    @rule()
    def forget(self) -> None:
        """As when many other inodes were used meanwhile."""
        with self.head.journal.lock:
            self.head.journal.flush_some()
            self.tree.table.forget()

    @rule()
    def seal(self) -> None:
        self.head.seal()

    @rule()
    def move(self) -> None:
        move_all(self.head)

    @rule(todo=st.lists(st.tuples(st.integers(0, 10), PATHS, PATHS, OFFSETS, DATA), max_size=6))
    def seal_while_it_changes(self, todo: list[Any]) -> None:
        def change() -> None:
            for what in todo:
                self.change(*what)

        self.head.seal(progress=Meanwhile(change))

    def change(
        self, kind: int, old: list[bytes], new: list[bytes], offset: int, data: bytes
    ) -> None:
        changes: list[Callable[[], None]] = [
            lambda: self.create(names=old, mode=0o644),
            lambda: self.mkdir(names=old),
            lambda: self.link(old=old, new=new),
            lambda: self.unlink(names=old),
            lambda: self.rmdir(names=old),
            lambda: self.rename(old=old, new=new, flags=0),
            lambda: self.rename(old=old, new=new, flags=RENAME_EXCHANGE),
            lambda: self.write(names=old, offset=offset, data=data),
            lambda: self.truncate(names=old, size=offset),
            lambda: self.setattr(names=old, mode=0o700, mtime=offset),
            lambda: self.open(names=old),
        ]
        changes[kind]()

    @precondition(lambda self: not self.handles)
    @rule()
    def reopen(self) -> None:
        self.head.close()
        self.head = self.heads.open(ROOT, GROUP)
        self.tree = self.head.tree("root.pxar")

    # Looking

    @invariant()
    def open_files(self) -> None:
        for file, number in self.handles:
            size = os.fstat(file).st_size
            assert self.tree.getattr(number).size == size
            assert self.tree.read(number, 0, size + 1) == os.pread(file, size + 1, 0)

    @rule()
    def check_all(self) -> None:
        self.compare([], self.tree.root)

    def compare(self, names: list[bytes], number: int) -> None:
        path = self.real.path(names)
        expected = os.lstat(path)
        found = self.tree.getattr(number)
        assert found.mode == expected.st_mode
        assert (found.uid, found.gid) == (expected.st_uid, expected.st_gid)
        if stat.S_ISDIR(found.mode):
            there = sorted(entry.name for entry in self.tree.iterate(number))
            assert there == sorted(os.listdir(path))
            for name in there:
                self.compare([*names, name], self.tree.lookup(number, name).number)
            assert self.tree.parent(number) == (
                number if not names else self.number(names[:-1]) if names[:-1] else 1
            )
            return
        assert found.nlink == expected.st_nlink, names
        assert found.size == expected.st_size
        if stat.S_ISREG(found.mode):
            self.compare_file(path, number, expected.st_size)
        elif stat.S_ISLNK(found.mode):
            assert self.tree.readlink(number) == os.readlink(path)

    def compare_file(self, path: bytes, number: int, size: int) -> None:
        with open(path, "rb") as file:
            assert self.tree.read(number, 0, size + 10) == file.read()
        expected = dict.fromkeys(os.listxattr(path))
        assert self.tree.listxattr(number) == [os.fsencode(name) for name in expected]
        for name in expected:
            assert self.tree.getxattr(number, os.fsencode(name)) == os.getxattr(path, name)


class EncryptedMachine(TreeMachine):
    key = KEY


class LegacyMachine(TreeMachine):
    mode = ChangeDetectionMode.LEGACY


class SplitMachine(TreeMachine):
    key = KEY
    mode = ChangeDetectionMode.DATA


MACHINES = {
    "plain": TreeMachine,
    "encrypted": EncryptedMachine,
    "legacy": LegacyMachine,
    "split": SplitMachine,
}


@pytest.mark.parametrize("kind", MACHINES)
def test_a_tree_is_as_a_directory(kind: str) -> None:
    case = MACHINES[kind].TestCase
    case.settings = settings(
        max_examples=int(os.environ.get("HEAD_EXAMPLES", "20")),
        stateful_step_count=40,
        deadline=None,
    )
    case().runTest()
