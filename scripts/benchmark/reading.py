"""How fast a file system or an NBD export gives its data."""

import mmap
import os
import random
import re
import threading
import time
from pathlib import Path

from scripts.benchmark.running import run

BLOCK = 4096
THREADS = 4
SECONDS = 3.0
STRIDE = (
    1_318_912  # a multiple of 4096 that visits all of an image in an order no read-ahead guesses
)


def read_sequentially(path: Path, size: int) -> float:
    """Seconds of a `dd` of the first `size` bytes, with nothing of it in the kernel's cache."""
    drop_pages(path)
    return run(
        ["dd", f"if={path}", "of=/dev/null", "bs=1M", f"count={size}", "iflag=count_bytes"]
    ).seconds


def read_tree(root: Path, excluded: str) -> float:
    """Seconds of a `tar` of a tree without one file, in the order of its directories.

    Through a pipe: into /dev/null itself tar writes nothing, so it would read nothing.
    """
    script = 'set -o pipefail; tar -cf - --exclude="./$2" -C "$1" . | cat >/dev/null'
    return run(["bash", "-c", script, "tar", root, excluded]).seconds


def drop_pages(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def random_reads(path: Path, size: int) -> float:
    """4 KiB reads a second by four threads, past the kernel's cache."""
    counts, deadline = [0] * THREADS, time.monotonic() + SECONDS

    def work(number: int) -> None:
        rng, buffer = random.Random(number), mmap.mmap(-1, BLOCK)
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            while time.monotonic() < deadline:
                for _ in range(32):
                    os.preadv(file, [buffer], rng.randrange(size // BLOCK) * BLOCK)
                counts[number] += 32
        finally:
            os.close(file)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / SECONDS


def nbd_copy(uri: str) -> float:
    """Seconds of reading a whole export."""
    return run(["nbdcopy", "--no-extents", uri, "null:"]).seconds


def nbd_random_reads(uri: str, count: int = 40_000) -> float:
    """4 KiB reads a second, 16 in flight, all over the export."""
    return _nbd_requests(uri, count, "-U")


def nbd_random_writes(uri: str, count: int = 40_000) -> float:
    """4 KiB writes a second, 16 in flight, all over the export."""
    return _nbd_requests(uri, count, "-w")


def _nbd_requests(uri: str, count: int, flag: str) -> float:
    shape = ["-c", count, "-d", 16, "-s", BLOCK, "-S", STRIDE]
    found = re.search(
        r"completed in ([\d.]+) seconds",
        run(["qemu-img", "bench", flag, "-f", "raw", *shape, uri]).output,
    )
    assert found
    return count / float(found[1])
