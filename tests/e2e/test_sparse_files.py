"""Holes: `du`, `cp --sparse`, SEEK_DATA and SEEK_HOLE read what is there, and nothing else."""

import errno
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.datastore.datastore import Datastore
from store.format.crypt import CryptConfig
from store.format.keys import create_key_file
from tests.fakes.archives import SplitTree, snapshot
from tests.fakes.datastores import local_datastore
from tests.program import mounted
from tests.watched_mounts import watched_mount

pytestmark = [pytest.mark.needs("fuse", "root"), pytest.mark.xdist_group("mount")]

MIB = 1 << 20
CHUNK = 4 * MIB
TIME = "2025-01-01T00:00:00Z"
KEY = CryptConfig(bytes(range(32)))
LARGEST = 16 * MIB


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def extents(path: Path) -> Iterator[tuple[int, int]]:
    """Where SEEK_DATA and SEEK_HOLE say that data is."""
    file = os.open(path, os.O_RDONLY)
    try:
        position = 0
        while True:
            try:
                start = os.lseek(file, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return
            position = os.lseek(file, start, os.SEEK_HOLE)
            yield start, position
    finally:
        os.close(file)


@pytest.fixture
def datastore(tmp_path: Path) -> Datastore:
    return local_datastore(tmp_path / "store")


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_seek_agrees_with_the_index(
    datastore: Datastore, tmp_path: Path, key: CryptConfig | None
) -> None:
    """Chunks of zeros are holes, the last short one too; zeros within a chunk are data."""
    image = (
        bytes(2 * CHUNK) + noise(1, CHUNK) + bytes(CHUNK) + noise(2, MIB) + bytes(CHUNK + 3 * MIB)
    )
    with snapshot(datastore, f"vm/1/{TIME}", key) as builder:
        builder.image("short-end.img", image + bytes(512))
        builder.image("full.img", noise(3, 2 * CHUNK + 512))
        builder.image("empty.img", bytes(3 * CHUNK))
        builder.blob("a.conf", b"text")
    log = tmp_path / "log"
    options = ["--log", log]
    if key:
        now = "2025-01-01T00:00:00+00:00"
        (tmp_path / "key").write_bytes(
            create_key_file(key.key, None, None, bytes(16), now).encode()
        )
        options += ["--keyfile", tmp_path / "key"]
    with mounted(tmp_path / "store", tmp_path / "m", *options) as mount:
        top = mount / "vm/1/latest"
        data = [*extents(top / "short-end.img")]
        assert data == [(2 * CHUNK, 3 * CHUNK), (4 * CHUNK, 5 * CHUNK)]
        assert (top / "short-end.img").stat().st_blocks * 512 == 2 * CHUNK
        assert [*extents(top / "full.img")] == [(0, 2 * CHUNK + 512)]
        assert [*extents(top / "empty.img")] == []
        assert [*extents(top / "a.conf")] == [(0, 4)]
        for offset in (len(image) + 512, 1 << 40):
            with (top / "short-end.img").open("rb") as file, pytest.raises(OSError) as caught:
                os.lseek(file.fileno(), offset, os.SEEK_HOLE)
            assert caught.value.errno == errno.ENXIO
        size = (top / "short-end.img").stat().st_size
        with (top / "short-end.img").open("rb") as file:
            assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 0
            assert os.lseek(file.fileno(), size - 1, os.SEEK_HOLE) == size - 1
            assert os.lseek(file.fileno(), -1, os.SEEK_END) == size - 1
        subprocess.run(["filefrag", "-v", top / "short-end.img"], check=True, capture_output=True)
    assert "lseek" not in log.read_text()  # what has no data is no trouble


def test_a_sparse_file_of_a_tree(datastore: Datastore, tmp_path: Path) -> None:
    """Its zeros were cut into chunks of the largest size; those are holes."""
    content = noise(1, LARGEST - 16 - 16) + bytes(2 * LARGEST) + noise(2, 100)
    tree = SplitTree()
    tree.file(b"sparse", content)
    tree.file(b"whole", b"x" * 1000)
    with snapshot(datastore, f"host/h/{TIME}") as builder:
        builder.split_tree("root", tree, chunk=LARGEST)
    with mounted(tmp_path / "store", tmp_path / "m") as mount:
        root = mount / "host/h/latest/root.pxar"
        first = LARGEST - 32
        assert [*extents(root / "sparse")] == [
            (0, first),
            (first + 2 * LARGEST, len(content)),
        ]
        assert [*extents(root / "whole")] == [(0, 1000)]


def test_a_copy_reads_the_data_alone(datastore: Datastore, tmp_path: Path) -> None:
    """A mostly empty image of a gigabyte; `du` of it is what is in it."""
    size, data = 1 << 30, noise(5, CHUNK)
    image = bytearray(size)
    for start in (0, 100 * CHUNK, size - CHUNK):
        image[start : start + CHUNK] = data[start % 7 :] + data[: start % 7]
    with snapshot(datastore, f"vm/1/{TIME}") as builder:
        builder.image("disk.img", bytes(image))
    with watched_mount(tmp_path / "store", tmp_path / "w") as mount:
        path = mount.path / "vm/1/latest/disk.img"
        used = subprocess.run(["du", "-B1", path], check=True, capture_output=True).stdout
        assert int(used.split()[0]) == 3 * CHUNK
        assert mount.chunks_read() == []
        for mode in ("auto", "always"):
            copy = tmp_path / mode
            subprocess.run(["cp", f"--sparse={mode}", path, copy], check=True)
            # Read-ahead may touch the one chunk that all holes are.
            assert len(mount.chunks_read()) <= 4
            assert copy.stat().st_blocks * 512 <= 3 * CHUNK + MIB
            subprocess.run(["cmp", copy, path], check=True)
            copy.unlink()
            mount.chunks_read()
