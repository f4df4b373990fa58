"""Writes files through a mount until it is killed, and says of each when it is durable.

`python -m tests.fakes.fsync_worker DIRECTORY SEED` prints a line of JSON before it touches a file,
with "begin", and after each fsync: a file's name and the seed of its content and its size, or null
when it is gone.
"""

import json
import os
import random
import sys
from contextlib import suppress


def content(seed: int, size: int) -> bytes:
    """What a file has."""
    return random.Random(seed).randbytes(size)


def main() -> None:
    """Until there is no mount any more."""
    directory, number = sys.argv[1], int(sys.argv[2])
    chance = random.Random(number)
    with suppress(OSError):
        while True:
            number += 1
            name = f"f{chance.randrange(40)}"
            size = chance.choice((0, 10, 4096, 100_000, 700_000))
            print(json.dumps([name, "begin", 0]), flush=True)
            if chance.random() < 0.15:
                _remove(directory, name)
                print(json.dumps([name, None, 0]), flush=True)
                continue
            _write(f"{directory}/{name}", content(number, size), by_rename=chance.random() < 0.5)
            print(json.dumps([name, number, size]), flush=True)


def _remove(directory: str, name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(f"{directory}/{name}")
    _sync(directory)


def _write(path: str, data: bytes, *, by_rename: bool) -> None:
    """In place, or as an editor does."""
    target = path + ".new" if by_rename else path
    descriptor = os.open(target, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for start in range(0, len(data), 65536):
        os.write(descriptor, data[start : start + 65536])
    os.fsync(descriptor)
    os.close(descriptor)
    if by_rename:
        os.rename(target, path)
        _sync(os.path.dirname(path))


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


if __name__ == "__main__":
    main()
