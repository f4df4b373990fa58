"""The writable mount: small files unpacked beside bindfs, a stream beside a backup."""

import io
import os
import random
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.benchmark.contenders import Vaultway
from scripts.benchmark.running import PROGRAM, mounted_by, run
from scripts.benchmark.s3 import Add

OURS, BINDFS, BACKUP = "vaultway", "bindfs on tmpfs", "vaultway backup"
MOUNT_WRITE_ROWS = ("write-untar", "write-untar-noxattr", "write-stream")
FILES, DIRECTORIES, MEAN_SIZE = 20_000, 200, 8_000
STREAM_BYTES = 1 << 30
RAM = "/dev/shm"


def make_tar(path: Path) -> None:
    """20,000 small files in 200 directories, some 160 MB."""
    chance = random.Random(1)
    with tarfile.open(path, "w") as tar:
        for number in range(FILES):
            info = tarfile.TarInfo(f"d{number % DIRECTORIES}/f{number}")
            data = chance.randbytes(chance.randrange(2 * MEAN_SIZE))
            info.size, info.mtime = len(data), 1_700_000_000 + number
            tar.addfile(info, io.BytesIO(data))


class MountWriteBench:
    """One round of these rows."""

    def __init__(self, work: Path, ours: Vaultway, wanted: set[str], add: Add) -> None:
        self.work, self.ours, self.wanted, self.add = work, ours, wanted, add
        self.mountpoint = work / "mnt"

    def round(self) -> None:
        """Ours and bindfs in turn, with extended attributes and without."""
        tar = self.work / "small.tar"
        if not tar.exists():
            make_tar(tar)
        for row, option, flag in (
            ("write-untar", "", ()),
            ("write-untar-noxattr", ",noxattr", ("--xattr-none",)),
        ):
            if row not in self.wanted:
                continue
            with self.bindfs(*flag) as there:
                seconds = run(["tar", "-xf", tar, "-C", there]).seconds
                self.add(row, BINDFS, FILES / seconds, "files/s")
            with self.written(option) as current:
                (current / "root.pxar").mkdir()
                seconds = run(["tar", "-xf", tar, "-C", current / "root.pxar"]).seconds
                self.add(row, OURS, FILES / seconds, "files/s")
        if "write-stream" in self.wanted:
            self.stream()

    def stream(self) -> None:
        """Fresh random bytes into an image, synced; a backup stores the same."""
        with tempfile.NamedTemporaryFile(dir=RAM) as source:
            left = STREAM_BYTES
            while left:
                left -= os.write(source.fileno(), os.urandom(min(left, 1 << 24)))
            megabytes = STREAM_BYTES / 1e6
            with self.written("") as current:
                target = f"of={current / 'disk.img'}"
                done = run(["dd", f"if={source.name}", target, "bs=1M", "conv=fsync"])
                self.add("write-stream", OURS, megabytes / done.seconds, "MB/s")
            self.ours.reset()
            backup = self.ours.back_up_image(Path(source.name))
            self.add("write-stream", BACKUP, megabytes / backup.seconds, "MB/s")

    @contextmanager
    def written(self, options: str) -> Iterator[Path]:
        """`current/` of a new group in a new datastore."""
        self.ours.reset()
        heads = Path(tempfile.mkdtemp(dir=RAM))
        chosen = f"rw,seal=manual,heads={heads}{options}"
        command = [
            PROGRAM, "mount", self.ours.repository, self.mountpoint, "-f",
            "--keyfile", self.ours.key, "-o", chosen,
        ]  # fmt: skip
        try:
            with mounted_by(command, self.mountpoint, self.ours.env):
                (self.mountpoint / "host/new").mkdir()
                yield self.mountpoint / "host/new/current"
        finally:
            shutil.rmtree(heads)

    @contextmanager
    def bindfs(self, *options: str) -> Iterator[Path]:
        """A directory in RAM behind it."""
        behind = Path(tempfile.mkdtemp(dir=RAM))
        try:
            command = ["bindfs", "-f", *options, behind, self.mountpoint]
            with mounted_by(command, self.mountpoint):
                yield self.mountpoint
        finally:
            shutil.rmtree(behind)
