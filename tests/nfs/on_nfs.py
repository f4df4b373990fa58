"""Two hosts and one NFS export, in the lab guest: a client's mounts, and the server's directory.

guest.sh says where they are. The server's side is the other host: it shares none of the client's
caches, and its own locks, on the exported file system, are the locks that NFS clients meet.
"""

import errno
import fcntl
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.backends.local import reading
from store.backends.local.backend import LocalBackend
from store.backends.local.nfs import NfsBackend, open_directory
from store.datastore.datastore import Datastore
from store.errors import Locked, NotFound, PermissionDenied
from store.format.blob import encode_blob
from store.format.manifest import CryptMode, FileInfo, Manifest
from tests.fakes.datastores import GROUP, MIB, ROOT, bare_backend, snapshot, write_snapshot
from tests.program import PROGRAM, environment, mounted, run

NFS4, NFS3, NFS3_NOLOCK, SERVER = (
    Path(os.environ[name]) for name in ("NFS4", "NFS3", "NFS3_NOLOCK", "SERVER")
)
MANIFEST = "index.json.blob"


def on(host: Path, name: str) -> Datastore:
    return Datastore(name, open_directory(str(host / name)))


@pytest.fixture
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """A datastore of this test's own, made by the server, called the same from everywhere."""
    name = request.node.name.translate({ord("["): "-", ord("]"): None})
    bare_backend(SERVER / name).close()
    (SERVER / name / ".vaultway/locks").mkdir(parents=True)  # it was used over NFS before
    yield name
    shutil.rmtree(SERVER / name)


def shell(command: str) -> None:
    """One of the kit's helpers: nfs_reboot, nfs_down, nfs_up."""
    subprocess.run(["bash", "-c", command], check=True, stdout=subprocess.DEVNULL)


def forget_pages() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("3")


@pytest.fixture(params=[NFS4, NFS3], ids=["v4", "v3"])
def client(request: pytest.FixtureRequest) -> Path:
    """A mount whose locks reach the server."""
    mount: Path = request.param
    return mount


def test_the_backend_is_chosen_by_the_file_system() -> None:
    assert {type(open_directory(str(path))) for path in (NFS4, NFS3, NFS3_NOLOCK)} == {NfsBackend}
    assert type(open_directory(str(SERVER))) is LocalBackend
    assert isinstance(open_directory(str(NFS4 / "not/there/yet")), NfsBackend)


def test_without_locks_there_is_reading_and_no_writing(name: str) -> None:
    write_snapshot(on(SERVER, name), snapshot(1))
    here = on(NFS3_NOLOCK, name)
    with pytest.raises(PermissionDenied, match=r"mounted with nolock.*mount it without"):
        here.begin_snapshot(ROOT, snapshot(2))
    with pytest.raises(PermissionDenied, match="nolock"):
        here.forget_snapshot(ROOT, snapshot(1))
    with here.backend.lock(snapshot(1).path(ROOT), (), exclusive=False):
        assert here.list_snapshots(ROOT, GROUP) == [snapshot(1)]
    assert here.fixed_index(ROOT, snapshot(1), "disk.img.fidx").size == 5 * MIB


def test_a_finished_snapshot_is_seen_at_once_and_never_removed(client: Path, name: str) -> None:
    here, there = on(client, name), on(SERVER, name)
    manifest = client / name / snapshot(1).path(ROOT) / MANIFEST
    encoded = encode_blob(b"x")
    with there.begin_snapshot(ROOT, snapshot(1)) as writer:
        csum = writer.add_blob("a.conf.blob", encoded)
        assert here.list_snapshots(ROOT, GROUP) == []
        with pytest.raises(Locked):
            here.begin_snapshot(ROOT, snapshot(2))
        assert not manifest.exists()  # and the client remembers that
        files = (FileInfo("a.conf.blob", CryptMode.NONE, len(encoded), csum),)
        writer.finish(Manifest(snapshot(1), files))
    assert not manifest.exists(), "the kernel asked the server: this test tests nothing"
    with here.begin_snapshot(ROOT, snapshot(2)) as mine:
        assert mine.previous == snapshot(1)
    assert here.list_snapshots(ROOT, GROUP) == [snapshot(1)]
    assert there.list_snapshots(ROOT, GROUP) == [snapshot(1)]


def test_what_a_pbs_on_another_host_is_writing_is_not_removed(client: Path, name: str) -> None:
    """Its locks on groups and snapshots are in its own /run; `.lock` alone is seen here."""
    here = on(client, name)
    unfinished = SERVER / name / snapshot(1).path(ROOT)
    unfinished.mkdir(parents=True)
    with (SERVER / name / ".lock").open("rb") as pbs:
        fcntl.lockf(pbs, fcntl.LOCK_SH | fcntl.LOCK_NB)
        write_snapshot(here, snapshot(2))
        assert unfinished.exists()
    write_snapshot(here, snapshot(3))
    assert not unfinished.exists()


COUNTER = """
import sys
from store.backends.local.nfs import open_directory
backend = open_directory(sys.argv[1])
for _ in range(int(sys.argv[2])):
    with backend.lock("host/web01", (), exclusive=True, timeout_s=120) as lock:
        count = int(backend.read("counter"))
        lock.check()
        backend.write("counter", (str(count + 1).encode(),))
"""


def test_two_hosts_race_for_a_group(client: Path, name: str) -> None:
    """The lock file comes and goes with the group, too: a third process removes and makes it."""
    backend = open_directory(str(client / name))
    backend.mkdir("host/web01")
    backend.lock("host/web01", (), exclusive=True).release()  # now the server's side knows
    backend.write("counter", (b"0",))
    rounds = 25
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", COUNTER, str(host / name), str(rounds)],
            stderr=subprocess.PIPE, text=True,
        )
        for host in (client, SERVER, client)
    ]  # fmt: skip
    errors = [racer.communicate()[1] for racer in racers]
    assert errors == ["", "", ""]
    assert int((SERVER / name / "counter").read_text()) == 3 * rounds


def test_a_lock_file_that_is_removed_locks_nobody_in(client: Path, name: str) -> None:
    here, there = open_directory(str(client / name)), open_directory(str(SERVER / name))
    for _ in range(20):
        here.mkdir("host/web01")
        lock = here.lock("host/web01", (), exclusive=True)
        waiting: list[object] = []

        def wait(waiting: list[object] = waiting) -> None:
            try:
                there.lock("host/web01", (), exclusive=True, timeout_s=60).release()
            except NotFound as error:
                waiting.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        here.rmdir("host/web01")
        lock.release()
        thread.join()
        assert len(waiting) == 1
        assert list((SERVER / name / ".vaultway/locks").glob("host*")) == []


def test_the_holder_is_named_on_the_other_host(client: Path, name: str) -> None:
    here, there = open_directory(str(client / name)), open_directory(str(SERVER / name))
    here.mkdir("host/web01")
    who = f"by process {os.getpid()} on {os.uname().nodename}"
    with here.lock("host/web01", (), exclusive=True), pytest.raises(Locked, match=who):
        there.lock("host/web01", (), exclusive=True)
    with there.lock("host/web01", (), exclusive=True), pytest.raises(Locked, match=who):
        here.lock("host/web01", (), exclusive=False)


def test_the_store_lock_of_a_pbs_on_the_server(client: Path, name: str) -> None:
    here = open_directory(str(client / name))
    with (SERVER / name / ".lock").open("r+b") as pbs:
        fcntl.lockf(pbs, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(Locked):
            here.lock_store()
        fcntl.lockf(pbs, fcntl.LOCK_UN)
        with here.lock_store() as lock:
            lock.check()
            with pytest.raises(BlockingIOError):
                fcntl.lockf(pbs, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.expect_warnings  # what was begun is left: it may be another's by now
def test_a_lock_that_the_server_forgot_is_noticed(name: str) -> None:
    here, there = on(NFS4, name), on(SERVER, name)
    with here.begin_snapshot(ROOT, snapshot(1)) as writer:
        for control in Path("/proc/fs/nfsd/clients").glob("*/ctl"):
            control.write_text("expire\n")
        with (
            there.backend.lock(GROUP.path(ROOT), (), exclusive=True),
            pytest.raises(Locked, match="was lost"),
        ):
            writer.finish(Manifest(snapshot(1), ()))
    assert there.list_snapshots(ROOT, GROUP) == []


WRITER = """
import sys
from store.backends.local.nfs import open_directory
from store.datastore.datastore import Datastore
from tests.fakes.datastores import ROOT, snapshot
with Datastore("x", open_directory(sys.argv[1])).begin_snapshot(ROOT, snapshot(1)) as writer:
    writer.create_fixed_index("x.img.fidx", 1 << 30)
    print("begun", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_leaves_is_removed_by_the_other_host(client: Path, name: str) -> None:
    there = on(SERVER, name)
    command = [sys.executable, "-c", WRITER, str(client / name)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"begun\n"
        with pytest.raises(Locked, match=f"by process {process.pid} on"):
            there.begin_snapshot(ROOT, snapshot(2))
        process.kill()
    assert (SERVER / name / snapshot(1).path(ROOT)).exists()
    write_snapshot(there, snapshot(2))
    assert not (SERVER / name / snapshot(1).path(ROOT)).exists()


def test_removed_files_that_are_open_hide_nothing(client: Path, name: str) -> None:
    here, there = open_directory(str(client / name)), open_directory(str(SERVER / name))
    here.mkdir("host/web01/1")
    here.write("host/web01/1/index", (b"x",))
    with (client / name / "host/web01/1/index").open("rb") as file:
        here.delete("host/web01/1/index")
        folder = SERVER / name / "host/web01/1"
        assert [entry.name[:4] for entry in folder.iterdir()] == [".nfs"]
        for backend in (here, there):
            assert backend.scan("host/web01/1") == []
            assert list(backend.walk("host")) == []
            backend.remove_tree("host/web01/1")
            assert backend.rmdir("host/web01/1")
        assert file.read() == b"x"
    here.remove_tree("host/web01")
    assert there.scan("host") == []


def test_a_file_replaced_while_it_is_read(
    client: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = open_directory(str(client / name)), open_directory(str(SERVER / name))
    there.write("manifest", (b"old",))
    seen: list[object] = []
    real = os.read

    def read(descriptor: int, size: int) -> bytes:
        if not seen:
            there.write("manifest", (b"new",))
            forget_pages()
        try:
            seen.append(real(descriptor, size))
        except OSError as error:
            seen.append(error.errno)
            raise
        return seen[-1]  # type: ignore[return-value]

    monkeypatch.setattr(reading.os, "read", read)
    found = here.read("manifest")
    if client == NFS3:
        assert seen == [errno.ESTALE, b"new"]
        assert found == b"new"
    else:
        assert found in {b"old", b"new"}  # a server of NFSv4 keeps what is open


def test_a_map_outlives_its_file(client: Path, name: str) -> None:
    here, there = open_directory(str(client / name)), open_directory(str(SERVER / name))
    content = random.Random(1).randbytes(3 * MIB)
    there.write("index", (content,))
    mapped = here.map("index")
    there.delete("index")
    forget_pages()
    assert bytes(mapped) == content


def test_time_of_use_is_the_servers(client: Path, name: str) -> None:
    here = open_directory(str(client / name))
    here.write("chunk", (b"x",))
    path = SERVER / name / "chunk"
    os.utime(path, (1, 2))
    assert here.touch("chunk") == 1
    assert abs(path.stat().st_atime - time.time()) < 10
    assert path.stat().st_mtime == 2


@pytest.mark.expect_warnings
def test_clocks_apart_are_reported_once(
    client: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here = open_directory(str(client / name))
    here.mkdir("host/web01")
    here.lock("host/web01", (), exclusive=True).release()
    assert not caplog.records
    here = open_directory(str(client / name))
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() - 90 * 10**9)
    for _ in range(2):
        here.lock("host/web01", (), exclusive=True).release()
    assert len([line for line in caplog.messages if "set both by NTP" in line]) == 1


def make_source(folder: Path) -> None:
    rng = random.Random("nfs")
    for number in range(40):
        path = folder / f"{number % 5}/{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.choice((0, 5000, 1 << 20))))


def test_backup_and_restore_while_the_server_reboots(
    client: Path, name: str, tmp_path: Path
) -> None:
    source, store = tmp_path / "source", client / name
    make_source(source)
    backup = [
        PROGRAM, "backup", f"root.pxar:{source}", "--repository", store, "--backup-id", "web01",
    ]  # fmt: skip
    with subprocess.Popen(backup, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        while not list((SERVER / name / ".chunks").glob("*/*")) and process.poll() is None:
            time.sleep(0.02)
        assert process.poll() is None, "done before the reboot"
        shell("nfs_reboot")
        _, messages = process.communicate(timeout=200)
    assert process.returncode == 0, messages
    assert "Traceback" not in messages
    run("restore", "host/web01", "root.pxar", tmp_path / "far", "--repository", SERVER / name)
    restore = [
        PROGRAM, "restore", "host/web01", "root.pxar", tmp_path / "near", "--repository", store,
    ]  # fmt: skip
    with subprocess.Popen(restore, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        shell("nfs_reboot")
        _, messages = process.communicate(timeout=200)
    assert process.returncode == 0, messages
    for restored in (tmp_path / "near", tmp_path / "far"):
        subprocess.run(["diff", "-r", source, restored], check=True)


def test_a_mount_answers_what_it_has_while_the_server_is_gone(name: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    make_source(source)
    run("backup", f"root.pxar:{source}", "--repository", NFS4 / name, "--backup-id", "web01")
    with mounted(NFS4 / name, tmp_path / "mount") as mount:
        file = mount / "host/web01/latest/root.pxar/2/2.bin"
        descriptor, expected = os.open(file, os.O_RDONLY), (source / "2/2.bin").read_bytes()
        assert os.pread(descriptor, MIB, 0) == expected
        with subprocess.Popen(["bash", "-c", "nfs_down; sleep 20; nfs_up"]) as outage:
            while Path("/proc/fs/nfsd/threads").read_text() != "0\n":
                time.sleep(0.02)
            stuck = subprocess.Popen(["ls", mount / "host"], stdout=subprocess.DEVNULL)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            began = time.monotonic()
            assert os.pread(descriptor, MIB, 0) == expected
            took_s = time.monotonic() - began
            assert outage.poll() is None
        assert stuck.wait(100) == 0
        os.close(descriptor)
    assert took_s < 2
