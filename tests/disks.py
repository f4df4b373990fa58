"""Disk images with a file system of the test's own, and mounting them: root only."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def make_ext4(image: Path, size_mib: int, *options: str) -> None:
    """Make a sparse image with an ext4 in it; `options` are mkfs.ext4's."""
    with image.open("wb") as file:
        file.truncate(size_mib << 20)
    subprocess.run(["mkfs.ext4", "-q", "-I", "256", *options, image], check=True)


@contextmanager
def mounted_image(image: Path, mountpoint: Path, *, read_only: bool = False) -> Iterator[None]:
    """Mount an ext4 image for a while."""
    mode = "loop,ro" if read_only else "loop"
    subprocess.run(["mount", "-t", "ext4", "-o", mode, image, mountpoint], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", mountpoint], check=True)
