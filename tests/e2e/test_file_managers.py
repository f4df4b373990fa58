"""What file managers and their like do on their own does not read whole images."""

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.archives import SplitTree, snapshot
from tests.fakes.datastores import local_datastore
from tests.watched_mounts import WatchedMount, watched_mount

pytestmark = [pytest.mark.needs("fuse", "root"), pytest.mark.xdist_group("mount")]

MIB = 1 << 20
CHUNKS = 30
IMAGES = ("drive-scsi0.img", "drive-efidisk0.img")
TIME = "2025-01-01T00:00:00Z"
READ_AHEAD = 3
LOOKS_INTO = 1 + READ_AHEAD
"""Chunks of an image that who reads its first megabyte costs."""


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedMount]:
    """Two images of 30 chunks, and a tree of pictures and films in as many."""
    folder = tmp_path_factory.mktemp("habits")
    datastore = local_datastore(folder / "store")
    tree = SplitTree()
    for name in (b"film.mp4", b"picture.jpg", b"scan.pdf"):
        tree.file(name, random.Random(name).randbytes(10 * MIB))
    with snapshot(datastore, f"vm/100/{TIME}") as builder:
        for number, name in enumerate(IMAGES):
            builder.image(name, random.Random(number).randbytes(CHUNKS * 4 * MIB))
        builder.split_tree("root", tree)
        builder.blob("qemu-server.conf", b"cores: 2\n")
    with watched_mount(folder / "store", folder / "w") as found:
        yield found


@pytest.fixture(autouse=True)
def forgotten(mount: WatchedMount) -> None:
    """Nothing was read so far, and the kernel remembers nothing."""
    Path("/proc/sys/vm/drop_caches").write_text("3")
    mount.chunks_read()


def test_walking_reads_metadata_alone(mount: WatchedMount) -> None:
    """`ls -lR`, `find`, `du`, `getfattr`, and the readdir and stat of a browser's file:// page."""
    for command in (
        ["ls", "-lRZ"],
        ["find", ".", "-size", "+1M", "-ls"],
        ["du", "-a"],
        ["getfattr", "-R", "-d", "-m", "-", "."],
        ["stat", "-f", "."],
        ["df", "."],
        ["rsync", "-an", ".", "/nonexistent"],
    ):
        subprocess.run(command, cwd=mount.path, check=True, capture_output=True)
    for directory, _, _ in os.walk(mount.path):
        for entry in os.scandir(directory):
            entry.stat()
    metadata = 2  # the tree's one chunk of it, and the catalog's if it had one
    tables = 1  # walking enters `drive-scsi0.img.d`, too
    assert len(mount.chunks_read()) <= metadata + tables


@pytest.mark.parametrize("attributes", ["*", "standard::*,thumbnail::*,preview::*"])
def test_a_file_manager_looks_at_the_head(mount: WatchedMount, attributes: str) -> None:
    """GIO: type by content, size, thumbnail, of all files of a folder."""
    top = mount.path / "vm/100" / TIME
    for command in (
        ["gio", "info", "-a", attributes],
        ["gio", "list", "-h", "-l", "-a", attributes],
    ):
        done = subprocess.run(
            [*command, *([top] if command[1] == "list" else top.iterdir())],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert IMAGES[0] in done.stdout
    assert len(mount.chunks_read()) <= LOOKS_INTO * len(IMAGES) + 2


def test_file_looks_at_the_ends(mount: WatchedMount) -> None:
    """file(1) reads seven megabytes of either."""
    top = mount.path / "vm/100" / TIME
    done = subprocess.run(["file", *top.iterdir()], check=True, capture_output=True, text=True)
    assert "qemu-server.conf" in done.stdout
    assert len(mount.chunks_read()) <= (2 + READ_AHEAD + 3) * len(IMAGES) + 2


def test_nobody_takes_an_image_for_a_picture(mount: WatchedMount) -> None:
    """Thumbnailers go by the type: that of a disk image has none."""
    image = mount.path / "vm/100" / TIME / IMAGES[0]
    done = subprocess.run(
        ["gio", "info", "-a", "standard::content-type", image],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    kind = done.stdout.partition("standard::content-type:")[2].strip()
    assert not kind.startswith(("image/", "video/", "audio/")), kind
    assert len(mount.chunks_read()) <= 1
