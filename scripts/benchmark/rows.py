"""The rows: what is measured, in which unit, against what."""

import os
import shutil
import statistics
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from scripts.benchmark import data, reading
from scripts.benchmark.contenders import PEERS, Casync, Contender, Vaultway
from scripts.benchmark.large_tree import LARGE_TREE_ROWS, LargeTreeBench
from scripts.benchmark.mount_writing import MOUNT_WRITE_ROWS, MountWriteBench
from scripts.benchmark.nbd_writing import NBD_WRITE_ROWS, NbdWriteBench
from scripts.benchmark.running import (
    PROGRAM,
    BenchError,
    Run,
    limit,
    mounted_by,
    raise_read_ahead,
    run,
    running,
    wait_until,
)
from scripts.benchmark.s3 import S3_ROWS, S3Bench

OURS = "vaultway"
LOOPS = "bare loops"
DECODE = "decode loops"
DECODE_WRITE = "decode and write loops"
EMPTY_FUSE = "empty FUSE file system"
EMPTY_NBD = "empty nbdkit plugin"
# What the ratio of a mount's row should be at least.
GOALS = {
    ("fuse-find", "restic"): 5.0,
    ("fuse-find", "borg"): 3.0,
    ("fuse-large-file", "restic"): 3.0,
    ("fuse-large-file", "borg"): 3.0,
    ("fuse-sequential-cold", DECODE): 0.7,
    ("fuse-sequential-cached", EMPTY_FUSE): 0.85,
    ("fuse-random", EMPTY_FUSE): 0.8,
}
MEMORY_BUDGET_MIB = 300
CACHED_BYTES = 192 << 20
HERE = Path(__file__).parent


@dataclass
class Samples:
    """What the rounds gave: numbers by row and contender."""

    numbers: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)

    def add(self, row: str, who: str, value: float, unit: str) -> None:
        self.numbers.setdefault(row, {}).setdefault(who, []).append(value)
        self.units[row] = unit
        print(f"  {row:24} {who:24} {value:12,.2f} {unit}", flush=True)

    def results(self) -> Iterator[dict[str, object]]:
        """One object per row and rival; ratio is ours by theirs, in speed: above 1 we are faster.

        For `x`, `MiB` and `s/GB` (amounts), less is better, and the ratio is simply ours by theirs.
        """
        for row, found in self.numbers.items():
            unit = self.units[row]
            for who, values in found.items():
                if who == OURS or OURS not in found:
                    continue
                ours, theirs = statistics.median(found[OURS]), statistics.median(values)
                ratio = theirs / ours if unit == "s" else ours / theirs
                yield {
                    "row": row, "value": round(ours, 3), "unit": unit, "against": who,
                    "ratio": round(ratio, 3), "goal": GOALS.get((row, who)),
                }  # fmt: skip


class Bench:
    """The data, the contenders and the numbers of one run."""

    def __init__(
        self, work: Path, size: int, wanted: set[str], peers: Iterable[str] | None
    ) -> None:
        self.work, self.size, self.wanted, self.samples = work, size, wanted, Samples()
        self.ours = Vaultway(work)
        candidates = (peer(work) for peer in PEERS)
        self.peers = [
            peer for peer in candidates if peer.installed and (peers is None or peer.name in peers)
        ]
        self.pristine, self.tree, self.image = work / "pristine", work / "tree", work / "disk.raw"
        self.mountpoint, self.out = work / "mnt", work / "out"
        self.socket = work / "nbd.sock"
        self.large_tree = LargeTreeBench(work, wanted, self.add)
        self.tar, self.loops = work / "tree.tar", work / "loops"

    def wants(self, *rows: str) -> bool:
        return not self.wanted.isdisjoint(rows)

    def add(self, row: str, who: str, value: float, unit: str) -> None:
        if row in self.wanted:
            self.samples.add(row, who, value, unit)

    def prepare(self) -> None:
        """Make the tree and the image, once."""
        if self.wants(*LARGE_TREE_ROWS):
            self.large_tree.prepare()
        if self.wanted.issubset(LARGE_TREE_ROWS):
            return
        data.make_tree(self.pristine, self.size)
        self.tree_bytes = data.tree_bytes(self.pristine)
        if self.wants("tree-first"):
            run(["tar", "-cf", self.tar, "-C", self.pristine, "."])
        if self.wants(*IMAGE_ROWS, *MOUNT_ROWS, *NBD_ROWS, *NBD_WRITE_ROWS, *S3_ROWS):
            data.make_image(self.image, self.pristine)
            self.image_bytes = self.image.stat().st_size

    def round(self, number: int) -> None:
        """Everything once, contenders in turn.

        Each round another one begins: who writes first to memory the machine has not used before
        pays for it.
        """
        if self.wants(*TREE_ROWS):
            if self.wants("tree-first"):
                seconds = self.encode_limit(self.tar)
                self.add("tree-first", LOOPS, self.tree_bytes / 1e6 / seconds, "MB/s")
            contenders = [self.ours, *self.peers]
            turn = number % len(contenders)
            for contender in contenders[turn:] + contenders[:turn]:
                self.tree_round(contender)
                contender.reset()
        if self.wants(*IMAGE_ROWS, *MOUNT_ROWS, *NBD_ROWS):
            self.image_round()
            if self.wants(*MOUNT_ROWS):
                self.mount_round()
            if self.wants(*NBD_ROWS):
                self.nbd_round()
        if self.wants(*LARGE_TREE_ROWS):
            self.large_tree.round()
        if self.wants(*MOUNT_WRITE_ROWS):
            MountWriteBench(self.work, self.ours, self.wanted, self.add).round()
        if self.wants(*NBD_WRITE_ROWS):
            NbdWriteBench(self.work, self.image, self.wanted, self.add).round()
        if self.wants(*S3_ROWS):
            S3Bench(self.work, self.image, self.wanted, self.add).round()

    def tree_round(self, who: Contender) -> None:
        """First, unchanged, changed, restore, mount: of a fresh copy of the tree."""
        shutil.rmtree(self.tree, ignore_errors=True)
        run(["cp", "-a", self.pristine, self.tree])
        who.reset()
        first = who.back_up_tree(self.tree)
        self.add("tree-first", who.name, self.tree_bytes / 1e6 / first.seconds, "MB/s")
        self.memory(who, "tree-backup", first)
        if self.wants(*TREE_MOUNT_ROWS) and not isinstance(who, Casync):
            self.tree_mount(who)
        if self.wants("tree-unchanged"):
            self.add("tree-unchanged", who.name, who.back_up_tree(self.tree).seconds, "s")
        if self.wants("tree-changed", "tree-changed-stored"):
            self.changed(who)
        if self.wants("tree-restore", "memory-tree-restore"):
            shutil.rmtree(self.out, ignore_errors=True)
            self.out.mkdir()
            restored = who.restore_tree(self.out if who is not self.ours else self.out / "tree")
            self.add("tree-restore", who.name, self.tree_bytes / 1e6 / restored.seconds, "MB/s")
            self.memory(who, "tree-restore", restored)
            shutil.rmtree(self.out)

    def changed(self, who: Contender) -> None:
        before, changed = who.stored(), data.change_tree(self.tree)
        self.add("tree-changed", who.name, who.back_up_tree(self.tree).seconds, "s")
        grown = who.stored() - before
        self.add("tree-changed-stored", who.name, grown / changed, "x")
        if who is self.ours:
            self.add("tree-changed-stored", "bytes of the changed files", 1.0, "x")

    def memory(self, who: Contender, what: str, done: Run) -> None:
        if who is self.ours:
            self.add(f"memory-{what}", OURS, done.peak_mib, "MiB")
            self.add(f"memory-{what}", "budget", MEMORY_BUDGET_MIB, "MiB")

    def tree_mount(self, who: Contender) -> None:
        try:
            if self.wants("fuse-large-file", "fuse-find"):
                with who.mount(self.mountpoint) as root:
                    self.read_and_find(who, root)
            if self.wants("fuse-tar"):
                with who.mount(self.mountpoint) as root:  # once more, so that nothing is known
                    seconds = reading.read_tree(root, data.LARGE)
                files = data.file_count(self.tree)
                self.add("fuse-tar", who.name, files / seconds, "file/s")
        except BenchError as error:
            if who is self.ours:
                raise
            print(f"  {who.name}'s mount is left out: {error}", flush=True)

    def read_and_find(self, who: Contender, root: Path) -> None:
        large = root / data.LARGE
        seconds = reading.read_sequentially(large, large.stat().st_size)
        self.add("fuse-large-file", who.name, large.stat().st_size / 1e6 / seconds, "MB/s")
        found = run(["find", f"{root}/", "-size", "+100000k"])
        self.add("fuse-find", who.name, found.seconds, "s")

    def image_round(self) -> None:
        """First, again, restore: of the image, against the bare loops and the peers."""
        megabytes = self.image_bytes / 1e6
        if self.wants("image-first", "image-again"):
            self.add("image-first", LOOPS, megabytes / self.encode_limit(self.image), "MB/s")
            seconds = limit("encode", self.image, self.loops)  # now every chunk is there
            self.add("image-again", LOOPS, megabytes / seconds, "MB/s")
        self.ours.reset()
        first = self.ours.back_up_image(self.image)
        self.add("image-first", OURS, megabytes / first.seconds, "MB/s")
        self.memory(self.ours, "image-backup", first)
        if self.wants("image-again"):
            self.add(
                "image-again", OURS, megabytes / self.ours.back_up_image(self.image).seconds, "MB/s"
            )
        if self.wants("image-restore", "image-restore-null", "memory-image-restore"):
            self.image_restore(megabytes)
        if self.wants("image-first", "image-again"):
            for peer in self.peers:
                self.peer_image(peer, megabytes)

    def peer_image(self, peer: Contender, megabytes: float) -> None:
        peer.reset()
        self.add(
            "image-first", peer.name, megabytes / peer.back_up_image(self.image).seconds, "MB/s"
        )
        if self.wants("image-again"):
            self.add(
                "image-again", peer.name, megabytes / peer.back_up_image(self.image).seconds, "MB/s"
            )
        peer.reset()

    def encode_limit(self, source: Path) -> float:
        """Seconds of the bare loops over `source`, from nothing."""
        shutil.rmtree(self.loops, ignore_errors=True)
        return limit("encode", source, self.loops)

    def decode_limit(self, *target: object) -> float:
        return limit("decode", self.ours.key, self.ours.repository, self.ours.image_index, *target)

    def image_restore(self, megabytes: float) -> None:
        out = self.work / "restored.raw"
        restored = self.ours.restore_image(out)
        self.add("image-restore", OURS, megabytes / restored.seconds, "MB/s")
        self.memory(self.ours, "image-restore", restored)
        out.unlink()
        self.add("image-restore", DECODE_WRITE, megabytes / self.decode_limit(out), "MB/s")
        out.unlink()
        if self.wants("image-restore-null"):
            restored = self.ours.restore_image(Path(os.devnull))
            self.add("image-restore-null", OURS, megabytes / restored.seconds, "MB/s")
            self.add("image-restore-null", DECODE, megabytes / self.decode_limit(), "MB/s")

    def mount_round(self) -> None:
        """The image through the mount: cold, then from our cache of chunks, against a file system
        that does nothing."""
        cached = min(CACHED_BYTES, self.image_bytes)
        with self.ours.mount(self.mountpoint, "-o", "memory=1G"):
            file = self.mountpoint / "vm/100/latest/disk.img"
            if self.wants("fuse-sequential-cold"):
                seconds = reading.read_sequentially(file, self.image_bytes)
                self.add("fuse-sequential-cold", OURS, self.image_bytes / 1e6 / seconds, "MB/s")
            self.mount_reads(OURS, file, cached)
        if self.wants("fuse-sequential-cold"):
            megabytes = self.image_bytes / 1e6
            self.add("fuse-sequential-cold", DECODE, megabytes / self.decode_limit(), "MB/s")
        if self.wants("fuse-sequential-cached", "fuse-random"):
            command = [sys.executable, HERE / "empty_fuse.py", self.mountpoint, self.image_bytes]
            with mounted_by(command, self.mountpoint):
                raise_read_ahead(self.mountpoint)
                self.mount_reads(EMPTY_FUSE, self.mountpoint / "f", cached)

    def mount_reads(self, who: str, file: Path, size: int) -> None:
        if self.wants("fuse-sequential-cached", "fuse-random"):
            for _ in range(2):  # what was read through once is not kept
                reading.read_sequentially(file, size)
        if self.wants("fuse-sequential-cached"):
            seconds = statistics.median(reading.read_sequentially(file, size) for _ in range(5))
            self.add("fuse-sequential-cached", who, size / 1e6 / seconds, "MB/s")
        if self.wants("fuse-random"):
            self.add("fuse-random", who, reading.random_reads(file, size), "IOPS")

    @contextmanager
    def exported(self, who: str, size: int) -> Iterator[str]:
        """The URI of our export of the cached part, or of a plugin that does nothing."""
        self.socket.unlink(missing_ok=True)
        if who == OURS:
            command: list[object] = [
                PROGRAM,
                "export",
                "vm/100",
                "--socket",
                self.socket,
                "--keyfile",
                self.ours.key,
            ]
        else:
            command = [
                "nbdkit",
                "-f",
                "-U",
                self.socket,
                "python",
                HERE / "empty_nbd.py",
                f"size={size}",
            ]
        with running(command, env=self.ours.env) as process:
            wait_until(self.socket.exists, process, who)
            yield f"nbd+unix:///?socket={self.socket}"

    def nbd_round(self) -> None:
        """A whole image cold; a small one from the cache, against a plugin that does nothing."""
        if self.wants("nbd-sequential-cold"):
            with self.exported(OURS, self.image_bytes) as uri:
                seconds = reading.nbd_copy(uri)
            self.add("nbd-sequential-cold", OURS, self.image_bytes / 1e6 / seconds, "MB/s")
            self.add(
                "nbd-sequential-cold", DECODE, self.image_bytes / 1e6 / self.decode_limit(), "MB/s"
            )
        if self.wants("nbd-sequential-cached", "nbd-random"):
            size = min(CACHED_BYTES, self.image_bytes)
            small = self.work / "small.raw"
            run(
                [
                    "dd",
                    f"if={self.image}",
                    f"of={small}",
                    "bs=1M",
                    f"count={size}",
                    "iflag=count_bytes",
                ]
            )
            self.ours.back_up_image(small)
            for who in (OURS, EMPTY_NBD):
                with self.exported(who, size) as uri:
                    self.nbd_reads(who, uri, size)
            small.unlink()

    def nbd_reads(self, who: str, uri: str, size: int) -> None:
        reading.nbd_copy(uri)
        if self.wants("nbd-sequential-cached"):
            seconds = statistics.median(reading.nbd_copy(uri) for _ in range(5))
            self.add("nbd-sequential-cached", who, size / 1e6 / seconds, "MB/s")
        if self.wants("nbd-random"):
            self.add("nbd-random", who, reading.nbd_random_reads(uri), "IOPS")


TREE_MOUNT_ROWS = ("fuse-find", "fuse-large-file", "fuse-tar")
TREE_ROWS = (
    "tree-first", "tree-unchanged", "tree-changed", "tree-changed-stored", "tree-restore",
    *TREE_MOUNT_ROWS, "memory-tree-backup", "memory-tree-restore",
)  # fmt: skip
IMAGE_ROWS = (
    "image-first", "image-again", "image-restore", "image-restore-null",
    "memory-image-backup", "memory-image-restore",
)  # fmt: skip
MOUNT_ROWS = ("fuse-sequential-cold", "fuse-sequential-cached", "fuse-random")
NBD_ROWS = ("nbd-sequential-cold", "nbd-sequential-cached", "nbd-random")
ROWS = (
    *TREE_ROWS, *IMAGE_ROWS, *MOUNT_ROWS, *LARGE_TREE_ROWS, *MOUNT_WRITE_ROWS, *NBD_ROWS,
    *NBD_WRITE_ROWS, *S3_ROWS,
)  # fmt: skip
