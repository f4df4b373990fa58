"""Heads under a writable mount: who has them, when they are sealed, and what befalls them."""

import errno
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import scratch_folder
from tests.program import error_line, run
from tests.writable_mount import WritableMount, writable_mount

pytestmark = [pytest.mark.needs("fuse", "root"), pytest.mark.xdist_group("writable")]

MIB = 1 << 20


@pytest.fixture
def mount() -> Iterator[WritableMount]:
    with scratch_folder() as folder, writable_mount(folder) as made:
        made.make_tree()
        yield made


def snapshots(mount: WritableMount) -> list[str]:
    """On disk, of the test's group."""
    folder = mount.vault / "host/test"
    return (
        sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.exists() else []
    )


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def wait_for_snapshot(mount: WritableMount, count: int = 1) -> None:
    deadline = time.monotonic() + 60
    while len(snapshots(mount)) < count:
        assert time.monotonic() < deadline, mount.log
        time.sleep(0.1)


class TestCommands:
    def test_list_seal_discard(self, mount: WritableMount) -> None:
        (mount.tree / "file").write_bytes(b"x" * 100_000)
        sync(mount.tree)
        assert mount.process
        listed = mount.head("list", "--output-format", "json")
        assert f"process {mount.process.pid}" in listed
        assert '"dirty": 0' not in listed
        arguments = ("head", "discard", "host/test", "--yes", "--repository", mount.vault)
        told = error_line(*arguments, "--heads", mount.heads, expect=12)
        assert f"process {mount.process.pid}" in told
        assert mount.seal().name in snapshots(mount)
        assert "nothing to seal" in mount.head("seal", "host/test")
        mount.down()
        mount.head("discard", "host/test", "--yes")
        assert "host/test" not in mount.head("list")
        mount.up()
        assert (mount.tree / "file").read_bytes() == b"x" * 100_000

    def test_writing_while_it_is_sealed(self, mount: WritableMount) -> None:
        """Each snapshot has a prefix of what was written, and nothing is lost."""
        is_done = threading.Event()

        def write() -> None:
            number = 0
            while not is_done.is_set():
                (mount.tree / f"f{number:05}").write_bytes(number.to_bytes(4) * 500)
                number += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            sealed = [mount.seal() for _ in range(3)]
        finally:
            is_done.set()
            writer.join()
        sealed.append(mount.seal())
        counts = []
        for snapshot in sealed:
            names = sorted(os.listdir(snapshot / "root.pxar"))
            assert names == [f"f{number:05}" for number in range(len(names))]
            counts.append(len(names))
            for number, name in enumerate(names[:-1]):
                content = (snapshot / "root.pxar" / name).read_bytes()
                assert content == number.to_bytes(4) * 500
        assert counts == sorted(counts)
        assert counts[-1] == len(os.listdir(mount.tree))


class TestPolicies:
    def test_close(self, mount: WritableMount) -> None:
        mount.down()
        mount.up("seal=close")
        (mount.tree / "file").write_bytes(b"one")
        time.sleep(1.5)
        assert snapshots(mount) == []
        mount.down()
        assert len(snapshots(mount)) == 1

    def test_manual(self, mount: WritableMount) -> None:
        (mount.tree / "file").write_bytes(b"one")
        mount.down()
        assert snapshots(mount) == []
        mount.up()
        assert (mount.tree / "file").read_bytes() == b"one"

    def test_idle(self, mount: WritableMount) -> None:
        mount.down()
        mount.up("seal=idle:2")
        (mount.tree / "file").write_bytes(b"one")
        wait_for_snapshot(mount)
        time.sleep(4)
        assert len(snapshots(mount)) == 1  # nothing changed since
        (mount.tree / "file").write_bytes(b"two")
        wait_for_snapshot(mount, 2)


def test_a_second_mount_is_told_who_has_the_head(mount: WritableMount) -> None:
    other = mount.folder / "mnt2"
    other.mkdir()
    log = mount.folder / "log2"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            mount.command(other, f"rw,seal=manual,heads={mount.heads}"),
            env=mount.environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not os.path.ismount(other):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(OSError, match="busy") as caught:
            os.listdir(other / "host/test/current")
        assert caught.value.errno == errno.EBUSY
        assert mount.process
        assert f"process {mount.process.pid}" in log.read_text()
        mount.down()
        assert os.listdir(other / "host/test/current") == ["root.pxar"]
    finally:
        subprocess.run(["fusermount3", "-u", other], check=False)
        process.wait(timeout=60)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """An ext4 of so many bytes, mounted."""
    image, disk = folder / "disk.img", folder / "small"
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    disk.mkdir()
    subprocess.run(["mount", "-o", "loop", image, disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.needs("loop")
def test_a_full_disk_below_the_journal() -> None:
    """ENOSPC, what was acknowledged is there, and it goes on when there is room."""
    with scratch_folder() as folder, small_disk(folder, 128 * MIB) as disk:
        run("datastore", "create", folder / "vault")
        filler = disk / "filler"
        filler.write_bytes(bytes(40 * MIB))
        mount = WritableMount(folder, f"seal=manual,heads={disk / 'heads'}")
        try:
            mount.up()
            tree = mount.make_tree()
            written = []

            def fill() -> None:
                for number in range(200):
                    path = tree / f"f{number}"
                    path.write_bytes(number.to_bytes(4) * MIB)
                    sync(path)
                    written.append(path)

            with pytest.raises(OSError, match="space") as caught:
                fill()
            assert caught.value.errno == errno.ENOSPC
            assert len(written) >= 3
            filler.unlink()
            (tree / "later").write_bytes(b"later" * 1000)
            sync(tree / "later")
            mount.kill()
            mount.up()
            assert (tree / "later").read_bytes() == b"later" * 1000
            for number, path in enumerate(written):
                assert path.read_bytes() == number.to_bytes(4) * MIB
            mount.down()
        finally:
            mount.end()


def test_the_datastore_goes_away(mount: WritableMount) -> None:
    """What is written stays in the head; sealing fails with a reason, and works when it is back."""
    (mount.tree / "file").write_bytes(b"before")
    first = mount.seal()
    away = mount.folder / "away"
    mount.vault.rename(away)
    (mount.tree / "file").write_bytes(b"after")
    sync(mount.tree)
    done = subprocess.run(
        mount.words("head", "seal", "host/test", "--heads", mount.heads),
        env=mount.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert (mount.tree / "file").read_bytes() == b"after"
    away.rename(mount.vault)
    time.sleep(1.1)
    second = mount.seal()
    assert second != first
    assert (second / "root.pxar/file").read_bytes() == b"after"


def test_the_wrong_key(tmp_path: Path) -> None:
    """EACCES, and the log names the key; nothing of the head is lost."""
    keys = [tmp_path / "one.json", tmp_path / "two.json"]
    for key in keys:
        run("key", "create", key, "--kdf", "none")
    with scratch_folder() as folder:
        run("datastore", "create", folder / "vault")
        mount = WritableMount(folder, arguments=("--keyfile", keys[0]))
        try:
            mount.up()
            (mount.make_tree() / "file").write_bytes(b"secret")
            mount.down()
            mount.arguments = ("--keyfile", keys[1])
            mount.up()
            with pytest.raises(PermissionError):
                os.listdir(mount.group / "current")
            assert "key" in mount.log
            mount.down()
            mount.arguments = ("--keyfile", keys[0])
            mount.up()
            assert (mount.tree / "file").read_bytes() == b"secret"
        finally:
            mount.end()


def test_who_mounts_may_make_groups(mount: WritableMount) -> None:
    """The kernel asks the modes of whoever is not root."""
    assert (mount.mountpoint / "host").stat().st_mode & 0o777 == 0o755
    assert (mount.group / "current").stat().st_mode & 0o777 == 0o755
    with pytest.raises(OSError, match="Read-only"):
        (mount.group / "latest2").mkdir()
    with pytest.raises(OSError, match="Invalid"):
        (mount.group / "current/archive").mkdir()
