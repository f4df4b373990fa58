"""What must hold for the directory of a chunk cache at any moment, seen from outside."""

import sqlite3
from contextlib import suppress
from pathlib import Path


def disk_bytes(directory: Path) -> int:
    """What `du` says, while others add and remove files."""
    total = 0
    for path in (directory, *directory.rglob("*")):
        with suppress(FileNotFoundError):
            total += path.lstat().st_blocks * 512
    return total


def chunk_files(directory: Path) -> dict[bytes, Path]:
    """The files of chunks by key."""
    return {
        bytes.fromhex(path.parent.parent.name + path.name): path
        for path in directory.glob("*/*/*")
        if len(path.name) == 64
    }


def check_directory(directory: Path, *, temporaries: int = 0) -> None:
    """Every file is known to the index, the sums are right, and nothing is left over."""
    db = sqlite3.connect(directory / "index.sqlite")
    try:
        known = {key for (key,) in db.execute("SELECT key FROM chunks WHERE queue != 2")}
        sums = db.execute("SELECT queue, count(*), sum(cost) FROM chunks GROUP BY queue")
        assert {row for row in db.execute("SELECT * FROM queues") if row[1]} == set(sums)
    finally:
        db.close()
    assert chunk_files(directory).keys() <= known
    assert len(list((directory / "tmp").iterdir())) <= temporaries
