"""What only a directory on disk can get wrong: layout, modes, owners, names, locks of PBS."""

import errno
import os
import pwd
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from store.backends.local import backend as backend_module
from store.backends.local import writing
from store.backends.local.backend import LocalBackend
from store.backends.local.writing import temporary_path
from store.errors import (
    AlreadyExists,
    BackendError,
    FormatError,
    InvalidName,
    Locked,
    NotFound,
    OutOfSpace,
    PermissionDenied,
)
from tests.fakes.datastores import bare_backend


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class Counting:
    """Progress that is written down."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def start(self, total: int | None, unit: str) -> None:
        self.seen.append((total, unit))

    def advance(self, amount: int) -> None:
        self.seen.append(amount)

    def done(self) -> None:
        self.seen.append("done")


def test_create_lays_out_a_whole_datastore(tmp_path: Path) -> None:
    path = tmp_path / "store"
    (path / ".chunks.tmp_create" / "0003").mkdir(parents=True)  # an interrupted create
    (path / "lost+found").mkdir()
    umask = os.umask(0o077)
    progress = Counting()
    try:
        LocalBackend(str(path)).create(progress)
    finally:
        os.umask(umask)
    assert progress.seen == [(0x10000, "directories"), *[1] * 0x10000, "done"]
    directories = sorted(entry.name for entry in (path / ".chunks").iterdir())
    assert directories == [f"{number:04x}" for number in range(0x10000)]
    assert {mode(path / ".chunks" / name) for name in ("0000", "0003", "ffff")} == {0o750}
    assert (mode(path), mode(path / ".chunks"), mode(path / ".lock")) == (0o755, 0o750, 0o644)
    assert sorted(entry.name for entry in path.iterdir()) == [".chunks", ".lock", "lost+found"]
    if os.geteuid() == 0:
        backup = pwd.getpwnam("backup").pw_uid
        made = [path, path / ".lock", path / ".chunks", path / ".chunks" / "0003"]
        assert {entry.stat().st_uid for entry in made} == {backup}
    with pytest.raises(AlreadyExists):
        LocalBackend(str(path)).create()


def test_create_refuses_a_directory_in_use(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(InvalidName, match="photos"):
        LocalBackend(str(tmp_path)).create()
    assert list(tmp_path.iterdir()) == [tmp_path / "photos"]


def test_create_through_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((NotFound, BackendError, AlreadyExists)):
        LocalBackend(str(tmp_path / "file")).create()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ab" * 32, "ab" * 32 + r"\.tmp_......"),
        ("index.json.blob", r"index\.json\.tmp_......"),
        ("owner", r"owner\.tmp_......"),
        (".protected", r"\.protected\.tmp_......"),
    ],
)
def test_temporary_names_are_those_of_pbs(name: str, expected: str) -> None:
    assert re.fullmatch(f"/store/{expected}", temporary_path(f"/store/{name}"))


def test_new_files_have_their_mode_whatever_the_umask(tmp_path: Path) -> None:
    backend = bare_backend(tmp_path / "store")
    umask = os.umask(0o077)
    try:
        backend.mkdir("host/web01")
        backend.mkdir(".chunks/0000")
        backend.write("host/web01/owner", (b"root@pam\n",), exclusive=True)
        backend.create_temporary("host/web01/x.fidx", "host/web01/x.tmp_fidx", 10).commit()
    finally:
        os.umask(umask)
    path = tmp_path / "store"
    assert mode(path / "host/web01/owner") == mode(path / "host/web01/x.fidx") == 0o644
    assert (mode(path / "host"), mode(path / ".chunks/0000")) == (0o755, 0o750)


@pytest.mark.needs("root")
def test_root_gives_new_files_to_the_owner_of_the_base(tmp_path: Path) -> None:
    path = tmp_path / "store"
    bare_backend(path).close()
    os.chown(path, 34, 34)
    backend = LocalBackend(str(path))
    backend.mkdir("host/web01")
    backend.write("host/web01/owner", (b"x",))
    backend.create_temporary("host/x.fidx", "host/x.tmp_fidx").commit()
    made = [path / name for name in ("host", "host/web01", "host/web01/owner", "host/x.fidx")]
    assert {(entry.stat().st_uid, entry.stat().st_gid) for entry in made} == {(34, 34)}


@pytest.mark.needs("root")
def test_permission_denied_names_the_path(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    backend = bare_backend(tmp_path / "store")
    backend.write("secret", (b"x",))
    (tmp_path / "store" / "secret").chmod(0o600)
    os.setegid(65534)
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionDenied, match="store/secret"):
            backend.read("secret")
        with pytest.raises(PermissionDenied):
            backend.write("new", (b"x",))
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_a_chunk_that_is_no_file(tmp_path: Path) -> None:
    backend = bare_backend(tmp_path / "store")
    os.mkfifo(tmp_path / "store" / "fifo")
    (tmp_path / "store" / "link").symlink_to("/etc/passwd")
    for name in ("fifo", "link"):
        with pytest.raises(BackendError):
            backend.read(name)
    found = backend.stat("link")
    assert found is not None
    assert not found.is_regular


def test_an_absurd_size_is_not_read(tmp_path: Path) -> None:
    backend = bare_backend(tmp_path)
    (tmp_path / "vast").touch()
    os.truncate(tmp_path / "vast", 3 << 40)
    with pytest.raises(FormatError, match=r"vast: 3298534883328 bytes"):
        backend.read("vast")
    assert backend.read_range("vast", 1 << 40, 2) == bytes(2)


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    backend = bare_backend(tmp_path / "store")
    with pytest.raises(BackendError):
        backend.create_temporary("x.fidx", "x.tmp_fidx", 1 << 55)
    assert not list((tmp_path / "store").glob("x*"))


def test_without_hard_links_an_exclusive_file_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = bare_backend(tmp_path)

    def no_hard_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    def full_disk(descriptor: int, parts: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "link", no_hard_links)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    backend.write("owner", (b"root@pam\n",), exclusive=True, durable=True)
    assert len(synced) == 3  # the temporary file, the file, its directory
    with pytest.raises(AlreadyExists):
        backend.write("owner", (b"me@pbs\n",), exclusive=True)
    assert backend.read("owner") == b"root@pam\n"
    real = writing.write_all
    calls = iter((real, full_disk))
    monkeypatch.setattr(writing, "write_all", lambda *a: next(calls)(*a))
    with pytest.raises(OutOfSpace):
        backend.write("other", (b"x",), exclusive=True)
    assert backend.stat("other") is None
    assert {path.name for path in tmp_path.iterdir()} == {".chunks", ".lock", "owner"}


@pytest.mark.needs("root", "fuse")  # who may mount that may mount a tmpfs
def test_chunks_on_a_disk_of_their_own_are_synced_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = bare_backend(tmp_path / "store")
    synced: list[int] = []
    monkeypatch.setattr(
        backend_module, "_sync_file_system", lambda file: synced.append(os.fstat(file).st_dev)
    )
    backend.sync()
    assert synced == [tmp_path.stat().st_dev]
    chunks = tmp_path / "store/.chunks"
    subprocess.run(["mount", "-t", "tmpfs", "vaultway-test", chunks], check=True)
    try:
        backend.sync()
        assert synced[1:] == [tmp_path.stat().st_dev, chunks.stat().st_dev]
    finally:
        subprocess.run(["umount", chunks], check=True)


def test_a_stale_file_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS says ESTALE for a file that another host replaced; once is normal, twice is an error."""
    backend = bare_backend(tmp_path / "store")
    backend.write("manifest", (b"new",))
    real, failures = os.read, [errno.ESTALE, 0, errno.ESTALE, errno.ESTALE]

    def read(descriptor: int, size: int) -> bytes:
        code = failures.pop(0)
        if code:
            raise OSError(code, os.strerror(code))
        return real(descriptor, size)

    monkeypatch.setattr(os, "read", read)
    assert backend.read("manifest") == b"new"
    with pytest.raises(BackendError) as caught:
        backend.read("manifest")
    assert caught.value.retryable


def test_a_file_that_is_delegated_to_an_nfs_client_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the server: opened without waiting, it is EAGAIN until the client has given it back."""
    backend = bare_backend(tmp_path / "store")
    backend.write("manifest", (b"x",))
    real = os.open

    def delegated(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_NONBLOCK:
            raise BlockingIOError(errno.EAGAIN, "delegated")
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", delegated)
    assert backend.read("manifest") == b"x"
    assert bytes(backend.map("manifest")) == b"x"
    with backend.lock_store(), backend.lock("manifest", (), exclusive=True):
        pass


def test_what_nfs_keeps_of_open_files_is_not_seen(tmp_path: Path) -> None:
    """Another host has removed files open: they stay as `.nfs…`, and theirs to remove."""
    backend = bare_backend(tmp_path / "store")
    backend.mkdir("host/web01/1")
    shadow = tmp_path / "store/host/web01/1/.nfs000000000000000c00000001"
    shadow.touch()
    backend.write("host/web01/1/index", (b"x",))
    assert [entry.name for entry in backend.scan("host/web01/1")] == ["index"]
    assert [found.name for found in backend.walk("host")] == ["web01/1/index"]
    assert not backend.rmdir("host/web01/1")
    backend.remove_tree("host/web01/1")
    assert list(shadow.parent.iterdir()) == [shadow]
    assert backend.rmdir("host/web01/1")
    assert shadow.exists()
    shadow.unlink()
    backend.remove_tree("host/web01")
    assert backend.stat("host/web01") is None


def test_a_tree_is_removed_with_its_symlinks_and_not_what_they_lead_to(tmp_path: Path) -> None:
    backend = bare_backend(tmp_path / "store")
    backend.mkdir("host/web01/sub")
    backend.write("owner", (b"kept",))
    for name in ("host/web01/dir", "host/web01/sub/dir"):
        (tmp_path / "store" / name).symlink_to(tmp_path / "store")
    (tmp_path / "store/host/web01/file").symlink_to(tmp_path / "store/owner")
    backend.remove_tree("host/web01")
    assert backend.scan("host") == []
    assert backend.read("owner") == b"kept"


def test_locks_of_pbs_are_taken_too(tmp_path: Path) -> None:
    """Whoever holds PBS 4's lock file keeps us out, and we keep it out."""
    path, run = tmp_path / "store", tmp_path / "run" / "store"
    bare_backend(path).close()
    ours = LocalBackend(str(path), pbs_lock_directory=str(run))
    ours.mkdir("host/web01")
    ours.mkdir("host/web02")
    names = ("ns:a/host-web01",)
    with ours.lock("host/web01", names, exclusive=True):
        assert stat.S_IMODE((run / names[0]).stat().st_mode) == 0o660
        with pytest.raises(Locked, match=names[0]):
            ours.lock("host/web02", names, exclusive=False)
    with ours.lock("host/web01", names, exclusive=True):
        ours.forget_lock(names)
    assert not (run / names[0]).exists()


def test_a_lock_on_a_removed_directory_is_no_lock(tmp_path: Path) -> None:
    backend = bare_backend(tmp_path / "store")
    backend.mkdir("host/web01")
    with backend.lock("host/web01", (), exclusive=True):
        backend.rmdir("host/web01")
        backend.mkdir("host/web01")
        backend.lock("host/web01", (), exclusive=True).release()


def test_the_holder_is_named(tmp_path: Path) -> None:
    backend = bare_backend(tmp_path / "store")
    backend.mkdir("host/web01")
    with (
        backend.lock("host/web01", (), exclusive=True),
        pytest.raises(Locked, match=f"by process {os.getpid()}"),
    ):
        backend.lock("host/web01", (), exclusive=True)


PBS_WRITER = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
try:
    fcntl.lockf(file, (fcntl.LOCK_EX if sys.argv[2] == "gc" else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    print("locked", flush=True)
    sys.stdin.read()
except OSError:
    print("refused", flush=True)
"""


@pytest.mark.parametrize(
    ("theirs", "exclusive", "both"),
    [("gc", False, False), ("writer", False, True), ("writer", True, False)],
)
def test_store_lock_meets_the_record_lock_of_pbs(
    tmp_path: Path, theirs: str, exclusive: bool, both: bool
) -> None:
    """PBS takes a classic POSIX record lock.

    Ours conflicts with it, and opening `.lock` elsewhere does not drop ours.
    """
    backend = bare_backend(tmp_path / "store")
    lock = tmp_path / "store" / ".lock"
    command = [sys.executable, "-c", PBS_WRITER, str(lock), theirs]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as pbs:
        assert pbs.stdout is not None
        assert pbs.stdout.readline() == "locked\n"
        if both:
            backend.lock_store(exclusive=exclusive).release()
        else:
            with pytest.raises(Locked):
                backend.lock_store(exclusive=exclusive)
        pbs.communicate("")
    with backend.lock_store(exclusive=exclusive):
        lock.read_bytes()
        answer = subprocess.run(
            [*command[:-1], "gc"], input="", capture_output=True, text=True, check=True
        )
        assert answer.stdout == "refused\n"


def test_a_symlink_that_leads_nowhere_hides_no_other_entry(tmp_path: Path) -> None:
    backend = bare_backend(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("/nonexistent")
    (tmp_path / "there").symlink_to("/")
    found = {entry.name: entry.is_directory for entry in backend.scan("")}
    assert (found["loop"], found["gone"], found["there"]) == (False, False, True)
