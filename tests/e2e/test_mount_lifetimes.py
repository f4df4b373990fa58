"""What comes, goes and hangs while a mount is in use."""

import errno
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from store.datastore.datastore import Datastore
from store.names import Namespace, Snapshot
from tests.fakes.archives import SplitTree, snapshot
from tests.fakes.datastores import local_datastore
from tests.program import mounted
from tests.watched_mounts import WatchedMount, watched_mount

pytestmark = [pytest.mark.needs("fuse", "root"), pytest.mark.xdist_group("mount")]

MIB = 1 << 20
TIME = "2025-01-01T00:00:00Z"
LATER = "2025-01-02T00:00:00Z"
IMAGE = 44 * MIB
BUSY_S = 4.0
"""What a loaded machine may take on top."""


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def datastore(tmp_path: Path) -> Datastore:
    datastore = local_datastore(tmp_path / "store")
    tree = SplitTree()
    tree.enter(b"d")
    tree.file(b"big", noise(2, 9 * MIB))
    tree.file(b"small", b"content")
    tree.leave()
    with snapshot(datastore, f"vm/1/{TIME}") as builder:
        builder.image("disk.img", noise(1, IMAGE))
        builder.split_tree("root", tree)
        builder.blob("a.conf", b"text")
    return datastore


@pytest.fixture
def repository(datastore: Datastore, tmp_path: Path) -> Path:
    return tmp_path / "store"


@contextmanager
def opened(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_RDONLY)
    try:
        yield file
    finally:
        os.close(file)


def drop_page_cache() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("1")


def test_a_new_snapshot_is_there_a_second_after_a_listing(
    datastore: Datastore, repository: Path, tmp_path: Path
) -> None:
    with mounted(repository, tmp_path / "m") as mount:
        group = mount / "vm/1"
        assert LATER not in os.listdir(group)
        with snapshot(datastore, f"vm/1/{LATER}") as builder:
            builder.blob("a.conf", b"two")
        start = time.monotonic()
        while LATER not in os.listdir(group):
            assert time.monotonic() - start < 1 + BUSY_S
        # What was listed can be entered, and `latest` follows within its own second.
        assert (group / LATER / "a.conf").read_bytes() == b"two"
        while os.readlink(group / "latest") != LATER:
            assert time.monotonic() - start < 2 + BUSY_S


def test_a_forgotten_snapshot_leaves_open_files_alone(
    datastore: Datastore, repository: Path, tmp_path: Path
) -> None:
    """Whoever has a file open reads on, as long as its chunks are there; then it is EIO."""
    with mounted(repository, tmp_path / "m", "-o", "memory=32M") as mount:
        top = mount / "vm/1" / TIME
        with (
            opened(top / "disk.img") as image,
            opened(top / "root.pxar/d/big") as big,
            opened(top / "a.conf") as blob,
            opened(top / "root.pxar/d") as directory,
        ):
            datastore.forget_snapshot(Namespace(), Snapshot.parse(f"vm/1/{TIME}"))
            start = time.monotonic()
            while top.exists():
                assert time.monotonic() - start < 2 + BUSY_S
            assert not top.exists()
            assert os.pread(image, IMAGE, 0) == noise(1, IMAGE)
            assert os.pread(big, 9 * MIB, 0) == noise(2, 9 * MIB)
            assert os.pread(blob, 100, 0) == b"text"
            assert sorted(os.listdir(directory)) == ["big", "small"]
            assert os.fstat(image).st_size == IMAGE
            assert os.lseek(image, 0, os.SEEK_HOLE) == IMAGE
            shutil.rmtree(repository / ".chunks")
            # More than fits into the cache was read: of each something is gone.
            drop_page_cache()
            for file, size in ((image, IMAGE), (big, 9 * MIB)):
                assert errors_of(file, size) <= {errno.EIO}
            assert errors_of(image, IMAGE) == {errno.EIO}
            assert os.listdir(mount) == []


def errors_of(file: int, size: int) -> set[int]:
    found = set()
    for offset in range(0, size, MIB):
        try:
            os.pread(file, 4096, offset)
        except OSError as error:
            found.add(error.errno or 0)
    return found


def test_forgotten_while_it_is_walked(
    datastore: Datastore, repository: Path, tmp_path: Path
) -> None:
    """A snapshot comes and goes under four walkers: errors of what is gone, and no others."""
    what = Snapshot.parse(f"vm/1/{LATER}")
    script = f"while [ ! -e {tmp_path}/stop ]; do find . -type f -exec cat {{}} + >/dev/null; done"
    with mounted(repository, tmp_path / "m", "--log", tmp_path / "log") as mount:
        walkers = [
            subprocess.Popen(["sh", "-c", script], cwd=mount, stderr=subprocess.PIPE, text=True)
            for _ in range(4)
        ]
        for _ in range(6):
            with snapshot(datastore, str(what)) as builder:
                builder.image("disk.img", noise(1, MIB))
                builder.blob("b.conf", b"x")
            os.listdir(mount / "vm/1" / LATER) if (mount / "vm/1" / LATER).exists() else None
            datastore.forget_snapshot(Namespace(), what)
        (tmp_path / "stop").touch()
        said = "".join(walker.communicate(timeout=60)[1] for walker in walkers).splitlines()
        gone = ("No such file or directory", "Stale file handle")
        assert [line for line in said if not line.endswith(gone)] == []
        assert (mount / "vm/1" / TIME / "a.conf").read_bytes() == b"text"
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.fixture
def mount(repository: Path, tmp_path: Path) -> Iterator[WatchedMount]:
    with watched_mount(repository, tmp_path / "w") as found:
        yield found


@contextmanager
def waiting_reader(mount: WatchedMount) -> Iterator[subprocess.Popen[bytes]]:
    """Somebody whose read does not come back."""
    path = mount.path / "vm/1/latest/disk.img"
    reader = subprocess.Popen(["cat", path], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while not mount.chunks_read():
            time.sleep(0.01)
        yield reader
    finally:
        reader.kill()
        reader.communicate(timeout=20)


class TestHangingStorage:
    def test_a_signal_ends_the_mount(self, mount: WatchedMount) -> None:
        """After some seconds of patience; its readers are told, and nothing is left mounted."""
        with mount.storage("hang"), waiting_reader(mount) as reader:
            start = time.monotonic()
            mount.process.terminate()
            assert mount.process.wait(30) == 0
            assert time.monotonic() - start > 5
            assert not mount.path.is_mount()
            assert reader.wait(20) == 1
        assert "without waiting" in mount.log

    def test_a_second_signal_ends_it_at_once(self, mount: WatchedMount) -> None:
        with mount.storage("hang"), waiting_reader(mount):
            mount.process.send_signal(signal.SIGTERM)
            while "SIGTERM" not in mount.log:
                time.sleep(0.01)
            start = time.monotonic()
            mount.process.send_signal(signal.SIGTERM)
            mount.process.wait(30)
            assert time.monotonic() - start < 3
            assert not mount.path.is_mount()

    def test_what_is_known_is_listed_meanwhile(self, mount: WatchedMount) -> None:
        """And as soon as the storage answers again, so does the mount."""
        os.listdir(mount.path / "vm/1" / TIME)
        with waiting_reader_of_all(mount) as readers:
            assert set(os.listdir(mount.path / "vm/1" / TIME)) >= {"disk.img", "root.pxar"}
            (mount.folder / "hang").unlink()
            for reader in readers:
                assert reader.wait(30) == 0


@contextmanager
def waiting_reader_of_all(mount: WatchedMount) -> Iterator[list[subprocess.Popen[bytes]]]:
    """One reader in each chunk: fewer than there are threads would be no test."""
    path = mount.path / "vm/1/latest/disk.img"
    (mount.folder / "hang").touch()
    readers = [
        subprocess.Popen(["dd", f"if={path}", "bs=4k", "count=1", f"skip={1024 * number}"],
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for number in range(3)
    ]  # fmt: skip
    try:
        while len((mount.folder / "reads").read_text().splitlines()) < len(readers):
            time.sleep(0.01)
        yield readers
    finally:
        (mount.folder / "hang").unlink(missing_ok=True)
        for reader in readers:
            reader.kill()
            reader.wait(20)
