"""Reads one file of a mount here and there, compares, and writes down each error.

usage: soak_reader.py FILE TRUTH SEED FOLDER

Until FOLDER/stop is there. FOLDER/errors.SEED gets `start end errno` for each (monotonic seconds);
FOLDER/right.SEED, at the end, how many reads were right. A wrong byte ends it with exit code 1.
"""

import os
import random
import sys
import time
from pathlib import Path


def main(path: str, truth_path: str, seed: str, folder: Path) -> int:
    rng, truth, right = random.Random(seed), Path(truth_path).read_bytes(), 0
    with (folder / f"errors.{seed}").open("w", buffering=1) as errors:
        while not (folder / "stop").exists():
            offset = rng.randrange(len(truth))
            size = rng.choice((1, 4096, 70_000, 1 << 20))
            start = time.monotonic()
            try:
                found = read(path, offset, size)
            except OSError as error:
                errors.write(f"{start} {time.monotonic()} {error.errno}\n")
                continue
            if found != truth[offset : offset + size]:
                print(f"{path}: {len(found)} of {size} bytes at {offset}, wrong", file=sys.stderr)
                return 1
            right += 1
    (folder / f"right.{seed}").write_text(str(right))
    return 0


def read(path: str, offset: int, size: int) -> bytes:
    """From the mount, not from what the kernel remembers.

    Where the pages after some good ones fail, the kernel gives those; the next read fails.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        found = b""
        while piece := os.pread(file, size - len(found), offset + len(found)):
            found += piece
        return found
    finally:
        os.close(file)


sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])))
