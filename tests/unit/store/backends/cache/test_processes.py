"""Several processes on one cache directory, and processes that are killed."""

import os
import subprocess
import sys
import threading
from pathlib import Path

from store.backends.cache.backend import Cache
from tests.fakes.cache_checks import check_directory, disk_bytes
from tests.fakes.cache_worker import CHUNKS
from tests.fakes.chunks import ChunkSource

REPOSITORY = Path(__file__).parents[5]
BUDGET = 1 << 20
LARGEST = 44 << 10  # in blocks


def worker(directory: Path, seed: int, reads: int) -> subprocess.Popen[bytes]:
    numbers = (BUDGET, seed, reads)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.cache_worker", directory, *map(str, numbers)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_two_processes_hold_one_budget(tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    workers = [worker(directory, seed, 800) for seed in (1, 2)]
    most = 0
    while any(process.poll() is None for process in workers):
        most = max(most, disk_bytes(directory))
    for process in workers:
        dots, complaints = process.communicate()
        assert (process.returncode, complaints) == (0, b"")
        assert dots == b"." * 800
    assert BUDGET * 3 // 4 < most <= BUDGET + 2 * LARGEST
    check_directory(directory)
    usage = Cache(ChunkSource(), str(directory), BUDGET).usage()
    assert disk_bytes(directory) <= usage.bytes <= BUDGET


def test_killed_processes_leave_a_temporary_file_at_most(tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    for kill in range(1, 6):
        process = worker(directory, kill, 100_000)
        assert process.stdout is not None
        assert len(process.stdout.read(60 + 7 * kill)) == 60 + 7 * kill
        process.kill()
        process.communicate()
        check_directory(directory, temporaries=kill)
        assert disk_bytes(directory) <= BUDGET + kill * LARGEST
    for path in (directory / "tmp").iterdir():
        os.utime(path, (0, 0))
    cache = Cache(ChunkSource(CHUNKS), str(directory), BUDGET)
    for one in CHUNKS:
        assert cache.read(one.name) == one.raw
    cache.close()
    check_directory(directory)
    assert disk_bytes(directory) <= BUDGET


def test_a_process_that_is_kept_waiting_goes_on_without(tmp_path: Path) -> None:
    """Another one, stopped in the middle of a transaction."""
    source = ChunkSource(CHUNKS)
    cache = Cache(source, str(tmp_path / "cache"), BUDGET)
    cache.read(CHUNKS[1].name)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None);"
            "db.execute('BEGIN IMMEDIATE'); print('held', flush=True); sys.stdin.read()",
            tmp_path / "cache" / "index.sqlite",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        for one in CHUNKS[:30]:
            assert cache.read(one.name) == one.raw
        assert source.asked.count(CHUNKS[1].name) == 1
    finally:
        holder.communicate()
    assert cache.usage().entries == 1


def test_threads_share_a_cache(tmp_path: Path) -> None:
    cache = Cache(ChunkSource(CHUNKS), str(tmp_path / "cache"), BUDGET)
    wrong: list[str] = []

    def read(start: int) -> None:
        for step in range(200):
            one = CHUNKS[(start + step * step) % len(CHUNKS)]
            if cache.read(one.name) != one.raw:
                wrong.append(one.name)
            if step % 50 == start:
                cache.usage()

    threads = [threading.Thread(target=read, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    usage = cache.usage()
    cache.close()
    assert not wrong
    assert usage.hits + usage.misses == 800
    assert disk_bytes(tmp_path / "cache") <= usage.bytes <= BUDGET
    check_directory(tmp_path / "cache")


def test_processes_that_start_at_once_share_one_index(tmp_path: Path) -> None:
    for seed in range(2):
        workers = [worker(tmp_path / str(seed), seed, 20) for _ in range(2)]
        for process in workers:
            assert process.communicate()[1] == b""
            assert process.returncode == 0
        check_directory(tmp_path / str(seed))
