"""Eight readers while the storage comes and goes: errors only when it is away, no wrong byte."""

import errno
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fakes.archives import SplitTree, snapshot
from tests.fakes.datastores import local_datastore
from tests.watched_mounts import WatchedMount, watched_mount

pytestmark = [pytest.mark.needs("fuse", "root"), pytest.mark.xdist_group("mount")]

READER = Path(__file__).parent.parent / "fakes" / "soak_reader.py"
MIB = 1 << 20
TIME = "2025-01-01T00:00:00Z"
READERS = 8
SIZE = 24 * MIB
LATE_S = 2.0
"""How much later than the storage is back an error of it may still be delivered."""
MOST_MEMORY_KIB = 300 * 1024

Interval = tuple[float, float]


def sources(folder: Path) -> dict[str, Path]:
    """By their path in the mount, four images and four files of a tree; and what is in them."""
    datastore = local_datastore(folder / "store")
    found, tree = {}, SplitTree()
    with snapshot(datastore, f"vm/1/{TIME}") as builder:
        for number in range(READERS):
            truth = folder / f"truth.{number}"
            truth.write_bytes(random.Random(number).randbytes(SIZE))
            if number % 2:
                builder.image(f"{number}.img", truth.read_bytes())
                found[f"vm/1/{TIME}/{number}.img"] = truth
            else:
                tree.file(b"%d" % number, truth.read_bytes())
                found[f"vm/1/{TIME}/root.pxar/{number}"] = truth
        builder.split_tree("root", tree)
    return found


def take_away_at_random(mount: WatchedMount, seconds: float) -> list[Interval]:
    """For fractions of a second at a time it fails, or hangs; returns when it failed."""
    rng, end, failed = random.Random(8), time.monotonic() + seconds, []
    while time.monotonic() < end:
        time.sleep(rng.uniform(0, 0.6))
        start = time.monotonic()
        state = rng.choice(("away", "hang"))
        with mount.storage(state):
            time.sleep(rng.uniform(0, 0.8))
        if state == "away":
            failed.append((start, time.monotonic()))
    return failed


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(20, id="20s"),
        pytest.param(600, marks=[pytest.mark.slow, pytest.mark.timeout(1200)], id="10min"),
    ],
)
def test_errors_only_where_injected(tmp_path: Path, seconds: float) -> None:
    files = sources(tmp_path)
    with watched_mount(tmp_path / "store", tmp_path / "w", "memory=32M") as mount:
        readers = [
            subprocess.Popen(
                [sys.executable, READER, mount.path / path, truth, str(number), tmp_path]
            )
            for number, (path, truth) in enumerate(files.items())
        ]
        failed = take_away_at_random(mount, seconds)
        (tmp_path / "stop").touch()
        assert [reader.wait(60) for reader in readers] == [0] * READERS
        errors = [
            line.split()
            for number in range(READERS)
            for line in (tmp_path / f"errors.{number}").read_text().splitlines()
        ]
        assert errors, "nothing was injected"
        assert {int(number) for _, _, number in errors} == {errno.EIO}
        stray = [
            (start, end)
            for start, end, _ in errors
            if not any(float(start) < back + LATE_S and float(end) > gone for gone, back in failed)
        ]
        assert stray == []
        assert all(int((tmp_path / f"right.{number}").read_text()) for number in range(READERS))
        for path, truth in files.items():
            assert (mount.path / path).read_bytes() == truth.read_bytes()
        status = Path(f"/proc/{mount.process.pid}/status").read_text()
        resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        assert int(resident.split()[1]) < MOST_MEMORY_KIB
    assert "Traceback" not in mount.log
    assert mount.process.returncode == 0
