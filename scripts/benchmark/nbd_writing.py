"""Writing to a head through NBD, and sealing it."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.benchmark import reading
from scripts.benchmark.contenders import Vaultway
from scripts.benchmark.running import PROGRAM, run, running, wait_until

CHUNK = 4 << 20
IMAGE_SIZE = 10 << 30
"""Of the sparse image that is sealed: one chunk in a hundred is dirty."""
DATA = 256 << 20
WRITTEN = 1 << 30
DIRTY_STEP = 100
NBD_WRITE_ROWS = ("nbd-random-write", "image-seal")
Add = Callable[[str, str, float, str], None]


class NbdWriteBench:
    """One round of the rows of writing."""

    def __init__(self, work: Path, image: Path, wanted: set[str], add: Add) -> None:
        self._folder, self._image, self._wanted, self._add = work / "writing", image, wanted, add
        self._socket, self._heads = self._folder / "s", self._folder / "heads"
        self._ours = Vaultway(work)

    def round(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        self._ours.reset()
        if "nbd-random-write" in self._wanted:
            self._random_writes()
        if "image-seal" in self._wanted:
            self._seal()
        shutil.rmtree(self._folder)

    def _random_writes(self) -> None:
        """Into a new image, against a plugin that throws them away."""
        empty = [
            "nbdkit",
            "-f",
            "-U",
            self._socket,
            "python",
            Path(__file__).parent / "empty_nbd.py",
        ]
        with self._exported([*empty, f"size={WRITTEN}"]) as uri:
            self._add(
                "nbd-random-write", "empty nbdkit plugin", reading.nbd_random_writes(uri), "IOPS"
            )
        with self._exported(self._export("vm/9/current/disk.img", "--size", WRITTEN)) as uri:
            self._add("nbd-random-write", "vaultway", reading.nbd_random_writes(uri), "IOPS")

    def _seal(self) -> None:
        """A sparse image with a few dirty chunks, against a backup of those chunks alone."""
        image, dirty = self._folder / "large.raw", self._folder / "dirty.raw"
        run(["dd", f"if={self._image}", f"of={image}", "bs=1M", f"count={DATA >> 20}"])
        os.truncate(image, IMAGE_SIZE)
        self._ours.back_up_image(image)
        numbers = range(0, IMAGE_SIZE // CHUNK, DIRTY_STEP)
        with self._exported(self._export("vm/100/current")) as uri:
            piece = self._folder / "piece"
            with dirty.open("wb") as file:
                for number in numbers:
                    content = os.urandom(CHUNK // 2) + self._text()
                    file.write(content)
                    piece.write_bytes(content)
                    write = f"write -s {piece} {number * CHUNK} {CHUNK}"
                    run(["qemu-io", "-f", "raw", "-c", write, "-c", "flush", uri])
            sealed = self._ours.run(
                "head", "seal", "vm/100", "--heads", self._heads, "--keyfile", self._ours.key
            )
        self._add("image-seal", "vaultway", sealed.seconds, "s")
        self._ours.reset()
        backup = self._ours.back_up_image(dirty)
        self._add("image-seal", "backup of the dirty chunks", backup.seconds, "s")

    def _text(self) -> bytes:
        return b"".join(b"%d GET /item 200\n" % number for number in range(200_000))[: CHUNK // 2]

    def _export(self, what: str, *options: object) -> list[object]:
        where = ("--heads", self._heads, "--socket", self._socket, "--keyfile", self._ours.key)
        return [PROGRAM, "export", "--writable", what, *options, *where]

    @contextmanager
    def _exported(self, command: list[object]) -> Iterator[str]:
        self._socket.unlink(missing_ok=True)
        with running(command, env=self._ours.env) as process:
            wait_until(self._socket.exists, process, str(command[0]))
            yield f"nbd+unix:///?socket={self._socket}"
