"""The handlers we add to pyfuse3's: answered at once, later, never, or with an error."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.watched_mounts import wait_for_mount

pytestmark = [pytest.mark.needs("fuse", "root"), pytest.mark.xdist_group("mount")]

SCRIPT = Path(__file__).parent.parent / "fakes" / "one_file.py"
PUNCH_HOLE = ["fallocate", "--punch-hole", "--length", "4096", "--offset"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    mountpoint = tmp_path_factory.mktemp("one-file")
    process = subprocess.Popen([sys.executable, SCRIPT, mountpoint], stderr=subprocess.DEVNULL)
    try:
        wait_for_mount(mountpoint, process)
        yield mountpoint / "f"
    finally:
        subprocess.run(["umount", mountpoint], check=True)
        assert process.wait(20) == 0


def seek(file: Path, offset: int) -> int:
    with file.open("rb") as opened:
        return os.lseek(opened.fileno(), offset, os.SEEK_HOLE)


def punch(file: Path, offset: int) -> int:
    done = subprocess.run(
        [*PUNCH_HOLE, str(offset), file], capture_output=True, text=True, check=False
    )
    for number in (errno.EIO, errno.ENOSPC):
        if os.strerror(number) in done.stderr:
            raise OSError(number, done.stderr)
    assert done.returncode == 0, done.stderr
    return 1000 * os.SEEK_HOLE + offset


@pytest.mark.parametrize("call", [seek, punch])
class TestAnswers:
    @pytest.mark.parametrize("offset", [0, 1], ids=["at once", "later"])
    def test_given(self, file: Path, call: Callable[[Path, int], int], offset: int) -> None:
        assert call(file, offset) == 1000 * os.SEEK_HOLE + offset

    @pytest.mark.parametrize(
        ("offset", "number"),
        [(2, errno.EIO), (3, errno.EIO), (4, errno.ENOSPC)],
        ids=["forgotten", "handler failed", "refused"],
    )
    def test_errors(
        self, file: Path, call: Callable[[Path, int], int], offset: int, number: int
    ) -> None:
        """And the mount lives on."""
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            call(file, offset)
        assert caught.value.errno == number
        assert call(file, 0) == 1000 * os.SEEK_HOLE


def read(file: Path, block: int, size: int) -> bytes:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return os.pread(descriptor, size, block * 4096)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("size", [1, 4096, 1 << 19], ids=["a byte", "a block", "much"])
class TestReads:
    def test_at_once(self, file: Path, size: int) -> None:
        assert read(file, 0, size) == b"d" * size

    def test_later(self, file: Path, size: int) -> None:
        assert set(read(file, 1, size)) == {ord("p")}

    @pytest.mark.parametrize(("block", "number"), [(3, errno.EIO), (4, errno.ENOSPC)])
    def test_errors(self, file: Path, size: int, block: int, number: int) -> None:
        with pytest.raises(OSError, match=os.strerror(number)):
            read(file, block, size)
        assert read(file, 0, size) == b"d" * size
