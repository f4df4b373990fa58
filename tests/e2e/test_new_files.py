"""Files that were just made: what the mount collects of them is there for whoever looks."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import scratch_folder
from tests.machine import scratch_parent
from tests.posix.ground import picture
from tests.posix.new_files import NewFiles
from tests.writable_mount import WritableMount, writable_mount

pytestmark = [pytest.mark.needs("fuse", "root"), pytest.mark.xdist_group("writable")]

SIZE = 3000


@pytest.fixture
def mount() -> Iterator[WritableMount]:
    with scratch_folder() as folder, writable_mount(folder) as made:
        made.make_tree()
        yield made


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_as_on_tmpfs(mount: WritableMount, seed: int) -> None:
    with tempfile.TemporaryDirectory(prefix="vaultway-test-", dir=scratch_parent()) as truth:
        NewFiles(seed, Path(truth), mount.tree).make(200)
        expected = picture(os.fsencode(truth))
        assert picture(os.fsencode(mount.tree)) == expected
        mount.down()
        mount.up()
        assert picture(os.fsencode(mount.tree)) == expected


def content(number: int) -> bytes:
    return number.to_bytes(4, "big") * (SIZE // 4)


WORKER = f"""
import json, os, sys
directory = sys.argv[1]
marker = os.open(directory, os.O_RDONLY)
number, before = 0, None
while True:
    file = os.open(f"{{directory}}/{{number}}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    data = number.to_bytes(4, "big") * {SIZE // 4}
    os.write(file, data[:1000])
    os.write(file, data[1000:])
    os.utime(file, ns=(number, number))
    os.fchown(file, 1, 2)
    os.fchmod(file, 0o751)
    if number % 50 == 49:
        os.fsync(marker)
        print(json.dumps(number), flush=True)
    if before is not None:
        os.close(before)
    number, before = number + 1, file
"""


def made_until_killed(mount: WritableMount, delay_s: float) -> int:
    """Files are made one after the other; the last of them that a sync came after."""
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, mount.tree],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert worker.stdout
    first = worker.stdout.readline()
    time.sleep(delay_s)
    mount.kill()
    told, _ = worker.communicate(timeout=60)
    return int(json.loads((first + told).split()[-1]))


def test_a_crash_goes_back_to_one_moment(mount: WritableMount) -> None:
    """No file is there without all that was done before it was made."""
    for delay_s in (0.1, 0.5):
        synced = made_until_killed(mount, delay_s)
        mount.up()
        numbers = sorted(int(path.name) for path in mount.tree.iterdir())
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > synced
        for number in numbers[:-1] if len(numbers) > synced + 1 else numbers:
            path = mount.tree / str(number)
            info = path.stat()
            assert path.read_bytes() == content(number)
            assert (info.st_mode & 0o7777, info.st_uid, info.st_gid) == (0o751, 1, 2)
            assert (info.st_mtime_ns, info.st_atime_ns) == (number, number)
        for number in numbers:
            (mount.tree / str(number)).unlink()


def test_a_seal_has_all_that_was_done_before(mount: WritableMount) -> None:
    """Also of a file that is still open, while others keep the mount busy."""
    is_over = threading.Event()

    def keep_busy() -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            path = mount.tree / f"busy{number % 10}"
            path.write_bytes(content(number))
            path.unlink()

    busy = threading.Thread(target=keep_busy)
    busy.start()
    try:
        for number in range(3):
            with (mount.tree / f"kept{number}").open("wb", buffering=0) as file:
                file.write(content(number))
                os.fchmod(file.fileno(), 0o751)
                sealed = mount.seal() / "root.pxar" / f"kept{number}"
                assert sealed.read_bytes() == content(number)
                assert sealed.stat().st_mode & 0o7777 == 0o751
    finally:
        is_over.set()
        busy.join()


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def test_memory_does_not_grow(mount: WritableMount) -> None:
    """Nothing is kept of a file that is gone."""
    assert mount.process
    path = mount.tree / "again"

    def again(count: int) -> None:
        for number in range(count):
            path.write_bytes(content(number))
            path.chmod(0o600)
            with pytest.raises(FileNotFoundError):
                (mount.tree / f"no{number % 100}").stat()
            path.unlink()

    again(3000)
    before = resident_kib(mount.process.pid)
    again(6000)
    assert resident_kib(mount.process.pid) - before < 4 << 10
