"""A disk under the cache that fails, fills up, or loses its process in the middle."""

import errno
import logging
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from store.backends.cache import files
from store.backends.cache.backend import Cache
from tests.fakes.cache_checks import check_directory, disk_bytes
from tests.fakes.chunks import ChunkSource, chunk
from tests.fakes.faults import Died
from tests.machine import scratch_parent

KIB = 1 << 10
CHUNKS = [chunk(number, 20_000) for number in range(40)]
BUDGET = 512 * KIB


def all_right(cache: Cache) -> None:
    for one in CHUNKS:
        assert cache.read(one.name) == one.raw


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", tmp_path], check=True)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def fill(disk: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        (disk / "filler").write_bytes(bytes(2 << 20))


def free(disk: Path) -> int:
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize


@pytest.mark.needs("root")
@pytest.mark.expect_warnings
def test_a_full_disk_is_said_once(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = [0.0]
    fill(small_disk)
    directory = small_disk / "cache"
    cache = Cache(ChunkSource(CHUNKS), str(directory), BUDGET, clock=lambda: clock[0])
    for _ in range(3):
        all_right(cache)
        clock[0] += 100
    assert len(warnings(caplog)) == 1
    assert str(directory) in caplog.text
    (small_disk / "filler").unlink()
    all_right(cache)
    hits = cache.usage().hits
    cache.read(CHUNKS[-1].name)
    assert cache.usage().hits == hits + 1
    cache.close()


@pytest.mark.needs("root")
def test_some_of_the_disk_is_left_to_others(small_disk: Path) -> None:
    reserve = (1 << 20) * 5 // 100
    chunks = [chunk(number, 20_000) for number in range(60)]
    cache = Cache(ChunkSource(chunks), str(small_disk / "cache"), 1 << 30)
    for one in chunks:
        assert cache.read(one.name) == one.raw
    assert reserve <= free(small_disk) < 2 * reserve
    fill(small_disk)
    for one in chunks:
        assert cache.read(one.name) == one.raw
    assert reserve <= free(small_disk) < 2 * reserve
    cache.close()


@pytest.mark.needs("root")
@pytest.mark.expect_warnings
def test_a_read_only_disk_still_serves(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = ChunkSource(CHUNKS)
    first = Cache(source, str(small_disk / "cache"), BUDGET)
    first.read(CHUNKS[0].name)
    first.close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    second = Cache(source, str(small_disk / "cache"), BUDGET)
    all_right(second)
    all_right(second)
    assert source.asked.count(CHUNKS[0].name) == 1
    assert source.asked.count(CHUNKS[1].name) == 2
    assert len(warnings(caplog)) == 1
    second.close()


@pytest.mark.needs("root")
@pytest.mark.expect_warnings
@pytest.mark.parametrize("mode", [0o700, 0o777])
def test_another_users_directory_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    directory = tmp_path / "cache"
    directory.mkdir()
    directory.chmod(mode)
    os.chown(directory, 12345, 12345)
    for path in (tmp_path, *tmp_path.parents):
        path.chmod(path.stat().st_mode | 0o055)
    for user in (0, 4711):
        os.seteuid(user)
        try:
            all_right(Cache(ChunkSource(CHUNKS), str(directory), BUDGET))
        finally:
            os.seteuid(0)
    assert len(warnings(caplog)) == 2
    assert list(directory.iterdir()) == []


@pytest.mark.expect_warnings
def test_a_directory_that_can_not_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    cache = Cache(ChunkSource(CHUNKS), str(tmp_path / "file" / "cache"), BUDGET)
    all_right(cache)
    all_right(cache)
    cache.delete(CHUNKS[0].name)
    assert cache.usage().entries == 0
    cache.close()
    assert len(warnings(caplog)) == 1


class Calls(SimpleNamespace):
    """The module `os`, whose Nth call raises; after a `Died` each."""

    def __init__(self, fail_at: int, error: BaseException) -> None:
        super().__init__(number=0, fail_at=fail_at, error=error)

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        return self._counted(found) if callable(found) else found

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.number += 1
            over = isinstance(self.error, Died) and self.number > self.fail_at > 0
            if self.number == self.fail_at or over:
                raise self.error
            return function(*args, **options)

        return call


def scenario(directory: Path, clock: Callable[[], float]) -> None:
    """Fill, evict, hit, drop."""
    cache = Cache(ChunkSource(CHUNKS), str(directory), 200 * KIB, clock=clock)
    for number in (0, 1, 2, 3, 2):
        assert cache.read(CHUNKS[number].name) == CHUNKS[number].raw
    cache.write(CHUNKS[3].name, (CHUNKS[3].raw,))
    assert list(cache.copies(CHUNKS[2].name)) == [CHUNKS[2].raw]
    cache.usage()
    cache.close()


@pytest.fixture
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=scratch_parent()) as folder:
        yield Path(folder)


def every_call(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> Iterator[Path]:
    """Run the scenario with a fault at each system call of the cache's files in turn."""
    counting = Calls(0, error)
    fail_at = 0
    while fail_at <= counting.number:
        calls = Calls(fail_at, error)
        directory = scratch / str(fail_at)
        times = iter(range(0, 10**9, 100))  # no pause lasts
        with monkeypatch.context() as patched:
            patched.setattr(files, "os", calls)
            try:
                scenario(directory, lambda: float(next(times)))  # noqa: B023
            except Died:
                assert isinstance(error, Died)
        if not fail_at:
            counting = calls
        yield directory
        fail_at += 1
    assert counting.number > 50


@pytest.mark.expect_warnings
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOENT])
def test_an_error_at_any_call_is_never_the_readers(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    for directory in every_call(scratch, monkeypatch, OSError(code, os.strerror(code))):
        scenario(directory, lambda: 0.0)
        check_directory(directory, temporaries=1)
        assert disk_bytes(directory) <= 200 * KIB


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_process_may_die_at_any_call(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for directory in every_call(scratch, monkeypatch, Died()):
        scenario(directory, lambda: 0.0)
        check_directory(directory, temporaries=1)
        assert disk_bytes(directory) <= 200 * KIB + 20_480
