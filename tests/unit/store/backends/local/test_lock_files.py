"""Locks on files of their own: by two hosts, which are two descriptors here."""

import errno
import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from store.backends.local.lock_files import REMOVED, HeldLockFile, LockFiles
from store.backends.local.locks import HeldLocks, _whole_file
from store.backends.local.nfs import NfsBackend
from store.backends.local.nfs_mount import NfsMount
from store.errors import Locked
from tests.fakes.datastores import bare_backend


@pytest.fixture
def files(tmp_path: Path) -> LockFiles:
    (tmp_path / "host/web01").mkdir(parents=True)
    return LockFiles(str(tmp_path), None)


def take(files: LockFiles, *, exclusive: bool = True, name: str = "host/web01") -> HeldLockFile:
    lock = files.lock(name, exclusive=exclusive, deadline=time.monotonic())
    assert isinstance(lock, HeldLockFile)
    return lock


def lock_file(tmp_path: Path, name: str = "host%2Fweb01") -> Path:
    return tmp_path / ".vaultway/locks" / name


def test_the_lock_file_of_an_object_stays_with_it(files: LockFiles, tmp_path: Path) -> None:
    assert not files.are_used
    with take(files):
        assert lock_file(tmp_path).read_text().startswith(f"{os.getpid()} {os.uname().nodename} ")
        who = f"host/web01 is in use by process {os.getpid()} on {os.uname().nodename}$"
        for exclusive in (True, False):
            with pytest.raises(Locked, match=who):
                take(files, exclusive=exclusive)
    assert files.are_used
    assert lock_file(tmp_path).read_bytes() == b""
    with take(files, exclusive=False), pytest.raises(Locked, match=r"in use$"):
        take(files)


def test_it_goes_with_its_object(files: LockFiles, tmp_path: Path) -> None:
    with take(files):
        (tmp_path / "host/web01").rmdir()
    assert list(lock_file(tmp_path).parent.iterdir()) == []


def test_who_waited_for_a_removed_lock_file_takes_the_new_one(
    files: LockFiles, tmp_path: Path
) -> None:
    """However long this host believes that the name leads to the old one."""
    held = take(files)
    got: list[HeldLockFile | HeldLocks] = []
    waiter = threading.Thread(
        target=lambda: got.append(
            files.lock("host/web01", exclusive=True, deadline=time.monotonic() + 60)
        )
    )
    waiter.start()
    (tmp_path / "host/web01").rmdir()
    held.release()
    waiter.join()
    with pytest.raises(Locked):
        take(files)
    assert lock_file(tmp_path).read_bytes() not in (b"", REMOVED)
    got[0].release()


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_removal_that_was_cut_short_is_finished(
    files: LockFiles, tmp_path: Path, exclusive: bool
) -> None:
    take(files).release()
    lock_file(tmp_path).write_bytes(REMOVED)
    with take(files, exclusive=exclusive):
        assert lock_file(tmp_path).read_bytes() != REMOVED


def test_a_removed_lock_file_that_others_hold_is_theirs(files: LockFiles, tmp_path: Path) -> None:
    with take(files, exclusive=False):
        lock_file(tmp_path).write_bytes(REMOVED)
        with pytest.raises(Locked, match="again and again"):
            take(files, exclusive=False)


def test_the_name_of_a_holder_that_died_is_taken_away(files: LockFiles, tmp_path: Path) -> None:
    take(files).release()
    lock_file(tmp_path).write_bytes(b"1 dead 00\n")
    with take(files, exclusive=False), pytest.raises(Locked, match=r"in use$"):
        take(files)


def test_a_lost_lock_is_noticed(
    files: LockFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An NFS server that was away too long gives it to another."""
    for exclusive in (True, False):
        lock = take(files, exclusive=exclusive)
        lock.check()
        _unlock(lock)
        other = take(files)
        with pytest.raises(Locked, match="the lock was lost"):
            lock.check()
        lock.release()
        other.check()
        other.release()
    lock = take(files)
    _unlock(lock)
    take(files).release()
    with pytest.raises(Locked, match="the lock was lost"):
        lock.check()
    lock.release()
    lock = take(files)

    def unreadable(*_: object) -> bytes:
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(os, "pread", unreadable)
    with pytest.raises(Locked, match="the lock was lost"):
        lock.check()
    lock.release()


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_lock_whose_file_somebody_removed_is_lost(
    files: LockFiles, tmp_path: Path, exclusive: bool
) -> None:
    """The next one makes a file of its own, and both would hold the lock."""
    lock = take(files, exclusive=exclusive)
    lock.check()
    lock_file(tmp_path).unlink()
    with pytest.raises(Locked, match="the lock was lost"):
        lock.check()
    with take(files) as other:
        with pytest.raises(Locked, match="the lock was lost"):
            lock.check()
        lock.release()
        other.check()
        assert lock_file(tmp_path).exists()


def test_a_lock_file_that_was_moved_away_is_lost(files: LockFiles, tmp_path: Path) -> None:
    """Also behind a symbolic link: nobody who locks follows one."""
    moved = tmp_path / "moved"
    with take(files) as lock:
        lock_file(tmp_path).rename(moved)
        lock_file(tmp_path).symlink_to(moved)
        with pytest.raises(Locked, match="the lock was lost"):
            lock.check()
        moved.replace(lock_file(tmp_path))
        lock.check()


def _unlock(lock: HeldLockFile) -> None:
    fcntl.fcntl(lock._descriptor, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_UNLCK))


def test_long_names(files: LockFiles, tmp_path: Path) -> None:
    name = "ns/" + "/ns/".join("n" * 36 for _ in range(7)) + "/host/" + "h" * 200
    with take(files, name=name), pytest.raises(Locked):
        take(files, name=name)


@pytest.mark.needs("root")
def test_who_may_not_write_there_reads_without_a_lock(files: LockFiles, tmp_path: Path) -> None:
    for parent in (tmp_path, *(path for path in tmp_path.parents if path.owner() == "root")):
        if parent.stat().st_mode & 0o7777 == 0o700:
            parent.chmod(0o755)
    os.setegid(65534)
    os.seteuid(65534)
    try:
        lock = files.lock("host/web01", exclusive=False, deadline=0)
        assert isinstance(lock, HeldLocks)
        with pytest.raises(PermissionError):
            files.lock("host/web01", exclusive=True, deadline=0)
    finally:
        os.seteuid(0)
        os.setegid(0)
    take(files).release()
    os.seteuid(65534)
    try:
        with take(files, exclusive=False):
            pass
    finally:
        os.seteuid(0)


def test_a_disk_that_is_exported_meets_the_locks_of_its_clients(tmp_path: Path) -> None:
    server = bare_backend(tmp_path)
    server.mkdir("host/web01")
    server.lock("host/web01", (), exclusive=True).release()
    assert not (tmp_path / ".vaultway").exists()  # nobody came over NFS yet
    client = NfsBackend(str(tmp_path), NfsMount())
    for first, second in ((client, server), (server, client)):
        with first.lock("host/web01", (), exclusive=True), pytest.raises(Locked):
            second.lock("host/web01", (), exclusive=True)
