"""A million entries: searched and compared quickly, in little memory. By processor time, which
others on the machine do not change."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.fakes.archives import SplitTree, snapshot, stat
from tests.fakes.datastores import local_datastore
from tests.program import PROGRAM, environment

pytestmark = pytest.mark.slow
ENTRIES, FLAT = 1_000_000, 200_000
RATE = 40_000
MEMORY_KIB = 300 << 10
DAYS = ("2025-01-01T00:00:00Z", "2025-01-02T00:00:00Z")


def tree(*, changed: bool) -> bytes:
    """The metadata stream: a directory of 200,000 files, and thousands of small ones."""
    made = SplitTree()
    raw, other = stat(0o100644), stat(0o100644, mtime_s=1_800_000_000)
    offset, count = 16, 0

    def file(name: bytes, metadata: bytes) -> None:
        nonlocal offset, count
        made.add(made.encoder.file_ref(name, metadata, offset, 100))
        offset, count = offset + 116, count + 1

    made.enter(b"a-flat-one")
    for number in range(FLAT):
        file(b"flat-%06d" % number, raw)
    made.leave()
    while count < ENTRIES:
        made.enter(b"directory-%07d" % count)
        for number in range(50):
            file(b"file-%02d" % number, other if changed and not count % 10_000 else raw)
        made.leave()
    return made.finish()[0]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "store"
    datastore = local_datastore(folder)
    for day, changed in zip(DAYS, (False, True), strict=True):
        with snapshot(datastore, f"host/large/{day}") as builder:
            builder.stream("root.ppxar.didx", bytes(1 << 20))
            builder.stream("root.mpxar.didx", tree(changed=changed), 4 << 20)
    return folder


def lines_time_and_memory(store: Path, *arguments: str) -> tuple[int, float, int]:
    """How many lines the program prints, its processor seconds, and KiB at most."""
    command = [str(PROGRAM), *arguments, "--repository", str(store)]
    child = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE)
    assert child.stdout
    with child.stdout:
        lines = sum(1 for _ in child.stdout)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return lines, usage.ru_utime + usage.ru_stime, usage.ru_maxrss


@pytest.mark.parametrize(
    ("tests", "found"),
    [
        (["--size", "+1G"], 0),
        (["--name", "file-07"], (ENTRIES - FLAT) // 50),
        ([], ENTRIES + (ENTRIES - FLAT) // 50 + 1),
    ],
)
def test_find(store: Path, tests: list[str], found: int) -> None:
    lines, seconds, memory = lines_time_and_memory(store, "snapshot", "find", "host/large", *tests)
    assert lines == found
    assert ENTRIES / seconds >= RATE
    assert memory < MEMORY_KIB


def test_files_of_a_large_directory(store: Path) -> None:
    arguments = ("snapshot", "files", "host/large", "root.pxar/a-flat-one", "-l")
    lines, seconds, memory = lines_time_and_memory(store, *arguments)
    assert lines == FLAT
    assert FLAT / seconds >= RATE / 2
    assert memory < MEMORY_KIB


def test_diff_costs_what_differs(store: Path) -> None:
    days = [f"host/large/{day}" for day in DAYS]
    lines, seconds, memory = lines_time_and_memory(store, "snapshot", "diff", *days, "--quiet")
    assert lines == (ENTRIES - FLAT) // 10_000
    assert seconds < ENTRIES / RATE / 2
    assert memory < MEMORY_KIB
