"""What NFS does to a directory, done to a local one: lies about names, lost answers, no locks.

tests/nfs does it with a real server.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from store.backends.base import Backend
from store.backends.local import create, nfs, nfs_mount
from store.backends.local.backend import LocalBackend
from store.backends.local.lock_files import LockFiles
from store.backends.local.nfs import NfsBackend, open_directory
from store.backends.local.nfs_mount import NFS_SUPER_MAGIC, NfsMount, file_system_type, find_nfs
from store.errors import (
    AlreadyExists,
    BackendError,
    Locked,
    NotFound,
    OutOfSpace,
    PermissionDenied,
)
from tests.fakes.datastores import (
    GROUP,
    MIB,
    ROOT,
    bare_backend,
    nfs_backend,
    open_on,
    snapshot,
    write_snapshot,
)

MOUNTINFO = """\
24 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw
36 24 {device} / /mnt/n4 rw,relatime shared:7 - nfs4 nas:/ rw,vers=4.2,{options},addr=10.0.0.1
"""


@pytest.fixture
def backend(tmp_path: Path) -> NfsBackend:
    return nfs_backend(tmp_path / "store")


def fails(function: Callable[..., Any], *codes: int, after: bool = False) -> Callable[..., Any]:
    """`function`, whose next calls fail with `codes` (0: not), before or after they did it."""
    left = list(codes)

    def call(*args: Any, **options: Any) -> Any:
        code = left.pop(0) if left else 0
        result = function(*args, **options) if after or not code else None
        if code:
            raise OSError(code, os.strerror(code))
        return result

    return call


def say_nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nfs_mount, "file_system_type", lambda _: NFS_SUPER_MAGIC)


# The mount


def test_a_mount_is_found_by_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_nfs(str(tmp_path)) is None
    say_nfs(monkeypatch)
    mountinfo, device = tmp_path / "mountinfo", tmp_path.stat().st_dev
    place = f"{os.major(device)}:{os.minor(device)}"
    mountinfo.write_text(MOUNTINFO.format(device=place, options="soft,local_lock=none"))
    for path in (tmp_path, tmp_path / "not/there/yet"):
        mount = find_nfs(str(path), mountinfo)
        assert mount is not None
        assert mount.options >= {"relatime", "vers=4.2", "soft", "local_lock=none"}
        assert (mount.is_soft, mount.why_no_locks) == (True, "")
    mountinfo.write_text(MOUNTINFO.format(device="0:99999", options="soft"))
    assert find_nfs(str(tmp_path), mountinfo) == NfsMount()
    assert find_nfs(str(tmp_path), tmp_path / "hidden") == NfsMount()


def test_the_type_of_a_file_system(tmp_path: Path) -> None:
    assert file_system_type("/proc") == 0x9FA0
    with pytest.raises(FileNotFoundError):
        file_system_type(str(tmp_path / "no"))


def test_a_directory_on_nfs_gets_its_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert type(open_directory(str(tmp_path))) is LocalBackend
    say_nfs(monkeypatch)
    assert type(open_directory(str(tmp_path))) is NfsBackend
    monkeypatch.setattr(nfs, "find_nfs", fails(find_nfs, errno.EACCES))
    with pytest.raises(PermissionDenied, match=str(tmp_path)):
        open_directory(str(tmp_path))


# Locks


@pytest.mark.parametrize("option", ["nolock", "local_lock=all", "local_lock=posix", "nocto"])
def test_mounts_that_keep_nobody_apart_are_for_reading(tmp_path: Path, option: str) -> None:
    backend = nfs_backend(tmp_path / "store", "vers=3", option)
    backend.mkdir("host/web01")
    writes: list[Callable[[], object]] = [
        lambda: backend.lock("host/web01", (), exclusive=True),
        backend.lock_store,
        NfsBackend(str(tmp_path / "new"), NfsMount(frozenset({option}))).create,
    ]
    for write in writes:
        with pytest.raises(PermissionDenied, match=f"can only be read: .* {option}.*without"):
            write()
    backend.lock("host/web01", (), exclusive=False).release()
    assert not (tmp_path / "store/.vaultway").exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_server_without_locks_is_for_reading(
    backend: NfsBackend, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    backend.mkdir("host/web01")
    monkeypatch.setattr(fcntl, "fcntl", fails(fcntl.fcntl, code, code, code))
    with pytest.raises(PermissionDenied, match=r"gives no locks \(.*\): mount it with vers=4.2"):
        backend.lock("host/web01", (), exclusive=True)
    with pytest.raises(PermissionDenied, match="gives no locks"):
        backend.lock_store()
    backend.lock("host/web01", (), exclusive=False).release()


@pytest.mark.parametrize(
    ("options", "retryable"), [(("soft",), True), (("softerr",), True), ((), False)]
)
def test_eio_on_a_soft_mount_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], retryable: bool
) -> None:
    backend = nfs_backend(tmp_path / "store", *options)
    backend.write("object", (b"x",))
    file = backend.create_temporary("y", "y.tmp")
    monkeypatch.setattr(os, "read", fails(os.read, errno.EIO))
    monkeypatch.setattr(os, "writev", fails(os.writev, errno.EIO))
    for use in (lambda: backend.read("object"), lambda: file.write(b"x")):
        with pytest.raises(BackendError) as caught:
            use()
        assert caught.value.retryable is retryable
    file.discard()


def test_pbs_on_this_host_meets_its_own_locks(tmp_path: Path) -> None:
    path, run = tmp_path / "store", str(tmp_path / "run")
    bare_backend(path).close()
    backend = NfsBackend(str(path), NfsMount(), pbs_lock_directory=run)
    backend.mkdir("host/web01")
    with backend.lock("host/web01", ("host-web01",), exclusive=True):
        for locked in (path / "host/web01", tmp_path / "run/host-web01"):
            descriptor = os.open(locked, os.O_RDONLY)
            with pytest.raises(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.close(descriptor)


def test_two_hosts_create_one_datastore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create, "CHUNK_DIRECTORIES", 4)
    path = tmp_path / "new"
    path.mkdir()
    with LockFiles(str(path), None).lock("create", exclusive=True, deadline=0):
        with pytest.raises(Locked):
            NfsBackend(str(path), NfsMount()).create()
        assert {entry.name for entry in path.iterdir()} == {".vaultway"}
    backend = NfsBackend(str(path), NfsMount())
    backend.create()
    assert {entry.name for entry in path.iterdir()} == {".vaultway", ".chunks", ".lock"}
    assert list((path / ".vaultway/locks").iterdir()) == []
    with pytest.raises(AlreadyExists):
        backend.create()
    backend.mkdir("host/web01")
    backend.lock("host/web01", (), exclusive=True).release()


def test_what_may_be_somebody_elses_is_not_left_over(backend: NfsBackend, tmp_path: Path) -> None:
    """A PBS on another host holds `.lock`; its locks on snapshots are in its own /run."""
    datastore = open_on(backend)
    unfinished = tmp_path / "store" / snapshot(1).path(ROOT)
    unfinished.mkdir(parents=True)
    lock = tmp_path / "store/.lock"
    pbs = open_directory(str(tmp_path / "store")).lock_store()
    write_snapshot(datastore, snapshot(2))
    assert unfinished.exists()
    assert not backend.is_alone()
    pbs.release()
    assert backend.is_alone()
    with backend.lock_store(), backend.lock_store():
        assert not backend.is_alone()
    with open_directory(str(lock.parent)).lock_store(exclusive=True):
        assert not backend.is_alone()
    write_snapshot(datastore, snapshot(3))
    assert not unfinished.exists()


# Names


def test_a_name_that_was_missing_is_looked_for_in_its_directory(
    backend: NfsBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.write("manifest", (b"x",))
    missing = errno.ENOENT
    monkeypatch.setattr(os, "lstat", fails(os.lstat, missing, 0, *[missing] * 9))
    assert backend.stat("manifest") is not None
    with pytest.raises(BackendError, match="in its directory, but cannot be looked up") as caught:
        backend.stat("manifest")
    assert caught.value.retryable
    monkeypatch.setattr(os, "open", fails(os.open, missing))
    assert backend.read("manifest") == b"x"
    monkeypatch.undo()
    backend.mkdir("host/web01")
    monkeypatch.setattr(os, "scandir", fails(os.scandir, missing))
    assert [entry.name for entry in backend.scan("host")] == ["web01"]


def test_what_is_missing_is_missing(backend: NfsBackend) -> None:
    backend.write("file", (b"x",))
    assert backend.stat("no") is None
    assert backend.stat("no/such/directory") is None
    assert backend.stat("file/below") is None
    with pytest.raises(NotFound):
        backend.read("no/such/object")


def test_a_directory_that_cannot_be_listed_is_an_error(
    backend: NfsBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "listdir", fails(os.listdir, errno.EIO))
    with pytest.raises(BackendError, match=r"store: Input/output error"):
        backend.stat("no")


def test_a_new_chunk_costs_no_listing(backend: NfsBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that is not seen is stored again, which is harmless; to read one is another thing."""
    name = f".chunks/{'ab' * 2}/{'ab' * 32}"
    backend.mkdir(name.rpartition("/")[0])
    listed: list[str] = []
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or real(path))
    assert backend.stat(name) is None
    assert backend.touch(name) is None
    assert listed == []
    assert backend.stat(f"{name}.0.bad") is None
    with pytest.raises(NotFound):
        backend.read(name)
    assert len(listed) == 2


@pytest.mark.parametrize("still", [1, 2, 3, 10])
def test_a_snapshot_that_another_host_just_finished_is_never_removed(
    backend: NfsBackend, monkeypatch: pytest.MonkeyPatch, still: int
) -> None:
    """However often this host's memory says that there is no manifest."""
    datastore = open_on(backend)
    write_snapshot(datastore, snapshot(1))
    real, lies = os.lstat, 0

    def lstat(path: str, **options: Any) -> os.stat_result:
        nonlocal lies
        if path.endswith(f"{snapshot(1).path(ROOT)}/index.json.blob") and lies < still:
            lies += 1
            raise FileNotFoundError(errno.ENOENT, "not here")
        return real(path, **options)

    monkeypatch.setattr(os, "lstat", lstat)
    if still < nfs.ATTEMPTS:
        with datastore.begin_snapshot(ROOT, snapshot(2)) as writer:
            assert writer.previous == snapshot(1)
    else:
        with pytest.raises(BackendError, match="cannot be looked up"):
            datastore.begin_snapshot(ROOT, snapshot(2))
    assert lies
    monkeypatch.undo()
    assert datastore.list_snapshots(ROOT, GROUP) == [snapshot(1)]


def test_a_protection_that_was_missing_is_seen(
    backend: NfsBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    datastore = open_on(backend)
    write_snapshot(datastore, snapshot(1))
    datastore.set_protected(ROOT, snapshot(1), protected=True)
    real = os.lstat
    lying = fails(real, errno.ENOENT)
    monkeypatch.setattr(
        os, "lstat", lambda path: (lying if path.endswith(".protected") else real)(path)
    )
    with pytest.raises(PermissionDenied, match="protected"):
        datastore.forget_snapshot(ROOT, snapshot(1))


# Lost answers


def test_a_rename_whose_answer_was_lost(
    backend: NfsBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code in (errno.ENOENT, errno.EIO):
        monkeypatch.setattr(os, "rename", fails(os.rename, code, after=True))
        backend.write("object", (b"1",))
        monkeypatch.setattr(os, "rename", fails(os.rename, code, after=True))
        backend.rename("object", "other")
        monkeypatch.setattr(os, "rename", fails(os.rename, code, after=True))
        file = backend.create_temporary("index", "index.tmp")
        file.write(b"2")
        file.commit()
        monkeypatch.undo()
    assert (backend.read("other"), backend.read("index")) == (b"1", b"2")
    monkeypatch.setattr(os, "rename", fails(os.rename, *[errno.ENOENT] * 9))
    with pytest.raises(BackendError if backend.stat("other") else NotFound):
        backend.rename("other", "index")
    assert backend.read("index") == b"2"


def test_a_link_whose_answer_was_lost(
    backend: NfsBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", fails(os.link, errno.EEXIST, after=True))
    backend.write("owner", (b"me",), exclusive=True)
    with pytest.raises(AlreadyExists):
        backend.write("owner", (b"you",), exclusive=True)
    assert backend.read("owner") == b"me"
    assert {path.name for path in (tmp_path / "store").iterdir()} == {".chunks", ".lock", "owner"}


@pytest.mark.parametrize(
    ("function", "use"),
    [
        ("open", lambda backend: backend.read("object")),
        ("read", lambda backend: backend.read("object")),
        ("pread", lambda backend: backend.read_range("object", 0, 1)),
        ("preadv", lambda backend: backend.map("large")),
        ("lstat", lambda backend: backend.stat("object")),
        ("lstat", lambda backend: backend.touch("object")),
        ("scandir", lambda backend: backend.scan("directory")),
        ("writev", lambda backend: backend.write("object", (b"x",))),
        ("fsync", lambda backend: backend.write("object", (b"x",), durable=True)),
        ("rename", lambda backend: backend.write("object", (b"x",))),
        ("link", lambda backend: backend.write("new", (b"x",), exclusive=True)),
        ("unlink", lambda backend: backend.delete("object")),
        ("rmdir", lambda backend: backend.rmdir("directory")),
        ("statvfs", lambda backend: backend.status()),
    ],
)
def test_a_stale_handle_is_looked_up_once_more(
    backend: NfsBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    use: Callable[[Backend], object],
) -> None:
    backend.write("object", (b"x",))
    backend.write("large", (bytes(2 * MIB),))
    backend.mkdir("directory")
    real = getattr(os, function)
    monkeypatch.setattr(os, function, fails(real, errno.ESTALE))
    use(backend)
    monkeypatch.undo()
    assert not list((tmp_path / "store").glob("*tmp*"))
    backend.write("object", (b"x",))
    backend.mkdir("directory")
    (tmp_path / "store/new").unlink(missing_ok=True)
    monkeypatch.setattr(os, function, fails(real, *[errno.ESTALE] * 5))
    with pytest.raises(BackendError) as caught:
        use(backend)
    assert caught.value.retryable


# Memory


def test_a_map_is_not_of_the_file(backend: NfsBackend, tmp_path: Path) -> None:
    """A page of a file that shrank or went on another host would end us with SIGBUS."""
    content = os.urandom(3 * MIB + 5)
    backend.write("index", (content,))
    mapped = backend.map("index")
    os.truncate(tmp_path / "store/index", 0)
    assert bytes(mapped) == content
    assert memoryview(mapped).readonly


def test_a_full_local_disk_is_named(
    backend: NfsBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.write("index", (bytes(2 * MIB),))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", fails(os.posix_fallocate, *[errno.ENOSPC] * 2))
    with pytest.raises(OutOfSpace, match=f"^{tmp_path}: "):
        backend.map("index")
    with pytest.raises(OutOfSpace, match=f"^{tmp_path}: "):
        backend.create_temporary("x.fidx", "x.tmp_fidx", 2 * MIB)
    assert not list((tmp_path / "store").glob("x*"))


def test_a_file_that_shrinks_while_it_is_mapped(
    backend: NfsBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.write("index", (bytes(2 * MIB),))
    real = os.preadv

    def preadv(*args: Any) -> int:
        os.truncate(tmp_path / "store/index", MIB)
        return real(*args)

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(BackendError, match="shorter than its 2097152 bytes") as caught:
        backend.map("index")
    assert caught.value.retryable


def test_an_index_is_written_when_it_is_whole(backend: NfsBackend, tmp_path: Path) -> None:
    file = backend.create_temporary("x.fidx", "x.tmp_fidx", 2 * MIB)
    file.map()[:4] = b"head"
    file.write(b"tail")
    os.truncate(tmp_path / "store/x.tmp_fidx", 0)  # no page of it is ours
    file.map()[MIB : MIB + 4] = b"body"
    file.write_at(2 * MIB, b"tail")
    file.commit(durable=True)
    raw = backend.read("x.fidx")
    assert (raw[:4], raw[MIB : MIB + 4], raw[2 * MIB :]) == (b"head", b"body", b"tail")


# Time


def test_time_of_use_is_the_file_servers_now(backend: NfsBackend, tmp_path: Path) -> None:
    backend.write("chunk", (b"123",))
    os.utime(tmp_path / "store/chunk", (1, 2))
    assert backend.touch("chunk") == 3
    status = (tmp_path / "store/chunk").stat()
    assert abs(status.st_atime - time.time()) < 60
    assert status.st_mtime == 2
    assert backend.touch("no") is None


@pytest.mark.expect_warnings
@pytest.mark.parametrize(("apart_s", "lines"), [(-90, 1), (-30, 0), (30, 0), (90, 1)])
def test_clocks_that_are_apart_are_reported_once(
    backend: NfsBackend,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    apart_s: int,
    lines: int,
) -> None:
    backend.mkdir("host/web01")
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + apart_s * 10**9)
    backend.lock("host/web01", (), exclusive=False).release()
    assert caplog.messages == []
    for _ in range(2):
        backend.lock("host/web01", (), exclusive=True).release()
    assert len(caplog.messages) == lines
    assert all("the NFS server's clock says 20" in message for message in caplog.messages)
