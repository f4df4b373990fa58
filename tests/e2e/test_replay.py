"""A journal is replayed by other people's programs, of which nothing may stay behind."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from fsgateway.bridge import THREADS
from store.disks.replay import replayed
from store.errors import IntegrityError
from tests.conftest import scratch_folder
from tests.fakes.disk_files import DiskFile
from tests.guest_disks import make_disk
from tests.program import run
from tests.watched_mounts import watched_mount

MORE_THAN_THREADS = THREADS + 2
pytestmark = [pytest.mark.needs("fuse", "root", "nbd"), pytest.mark.xdist_group("mount")]

HANGS = """
import sys, time
from pathlib import Path
from store.disks.replay import replayed
from tests.fakes.disk_files import DiskFile

class Hanging(DiskFile):
    left = 4

    def read(self, offset, size):
        self.left -= 1
        if not self.left:
            print("hangs", flush=True)
            time.sleep(600)
        return super().read(offset, size)

replayed(Hanging(Path(sys.argv[1])), "ext4", "disk")
"""


@pytest.fixture
def unclean(tmp_path: Path) -> Path:
    disk = tmp_path / "disk"
    make_disk(disk, "ext4", 16)
    recover = ["/usr/sbin/debugfs", "-w", "-R", "feature needs_recovery", str(disk)]
    subprocess.run(recover, check=True, capture_output=True)
    return disk


def test_what_was_replayed_is_clean(unclean: Path) -> None:
    stream = DiskFile(unclean)
    overlay = replayed(stream, "ext4", "disk")
    assert [stream.read(1024 + 0x60, 1)[0] & 4, overlay.read(1024 + 0x60, 1)[0] & 4] == [4, 0]
    overlay.close()
    stream.close()


def test_nothing_is_left_of_a_replay_that_is_broken_off(
    unclean: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a mount does that is told to end: the disks are closed, and the storage told to hurry."""
    folder = short / "temporary"
    asked, hurry, ended = (threading.Event() for _ in range(3))
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))

    class Hanging(DiskFile):
        left = 4

        def read(self, offset: int, size: int) -> bytes:
            self.left -= 1
            if not self.left:
                asked.set()
                hurry.wait()
            return super().read(offset, size)

    with closing(Hanging(unclean)) as stream, ThreadPoolExecutor(1) as threads:
        replay = threads.submit(replayed, stream, "ext4", "disk", ended=ended)
        assert asked.wait(60)
        assert len(os.listdir(folder)) == 2
        ended.set()
        threading.Timer(1, hurry.set).start()
        with pytest.raises(IntegrityError, match="disk: closed"):
            replay.result(60)
    assert os.listdir(folder) == []


def test_nothing_stays_mounted_of_a_killed_mount(unclean: Path, tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", HANGS, unclean], stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2], env=os.environ | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"hangs\n"
        owner.kill()
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder that is short enough for sockets to be made in it."""
    with scratch_folder() as folder:
        yield folder


@pytest.fixture
def endless_tools() -> Iterator[Path]:
    """A folder with an e2fsck that never ends, for anybody."""
    with scratch_folder() as folder:
        folder.chmod(0o755)
        program = folder / "e2fsck"
        program.write_text("#!/bin/sh\nexec sleep 600\n")
        program.chmod(0o755)
        yield folder


def test_a_replay_keeps_nobody_waiting_and_ends_with_its_mount(
    unclean: Path,
    tmp_path: Path,
    short: Path,
    store: Path,
    endless_tools: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run("backup", f"drive-scsi0.img:{unclean}", "--backup-type", "vm", "--backup-id", "1",
        "--repository", store)  # fmt: skip
    (temporary := short / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("PATH", f"{endless_tools}:{os.environ['PATH']}")
    with watched_mount(store, tmp_path / "w") as mount, ExitStack() as waiting:
        snapshot = mount.path / "vm/1/latest"
        for _ in range(MORE_THAN_THREADS):
            ls = ["ls", snapshot / "drive-scsi0.img.d/part1"]
            waiting.enter_context(subprocess.Popen(ls, stderr=subprocess.DEVNULL))
        while not list(temporary.glob("vaultway-replay-*")):
            time.sleep(0.01)
        with (snapshot / "drive-scsi0.img").open("rb") as image:
            assert image.read(4096) == unclean.read_bytes()[:4096]
        assert "index.json" in os.listdir(snapshot)
        assert list(temporary.glob("vaultway-replay-*"))
        mount.process.terminate()
        assert mount.process.wait(20) == 0
        assert "without waiting" not in mount.log
    assert os.listdir(temporary) == []
