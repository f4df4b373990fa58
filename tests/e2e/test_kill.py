"""kill -9 of a backup at 50 random moments: nothing that was there is lost, nothing half done is
seen."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.program import PROGRAM, environment, run
from tests.trees import differences, list_tree

KILLS = 50


def make_source(folder: Path, rng: random.Random) -> None:
    """About 40 MB in 300 files: a backup of it takes about half a second."""
    for number in range(300):
        path = folder / f"{number % 7}" / f"{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.choice((0, 100, 5000, 400_000))))


def change_source(folder: Path, rng: random.Random) -> None:
    for path in rng.sample(sorted(path for path in folder.rglob("*") if path.is_file()), 10):
        path.write_bytes(rng.randbytes(rng.randrange(500_000)))


def backup_command(store: Path, source: Path, disk: Path, mode: str) -> list[str]:
    return [
        "backup", f"root.pxar:{source}", f"disk.img:{disk}", "--backup-id", "web01",
        "--repository", str(store), "--change-detection-mode", mode,
    ]  # fmt: skip


def snapshots(store: Path) -> list[int]:
    listed = json.loads(
        run("snapshot", "list", "--repository", store, "--output-format", "json").stdout
    )
    return sorted(snapshot["backup-time"] for snapshot in listed)


def wait_for_the_next_second() -> None:
    """Two snapshots of a group can't have the same second."""
    time.sleep(1.02 - time.time() % 1)


@pytest.mark.timeout(600)
def test_kill_9(store: Path, tmp_path: Path) -> None:
    rng = random.Random("kill -9")
    source, disk = tmp_path / "source", tmp_path / "disk.raw"
    make_source(source, rng)
    disk.write_bytes(rng.randbytes(8 << 20) + bytes(8 << 20))
    began = time.monotonic()
    run(*backup_command(store, source, disk, "legacy"))
    whole_s = time.monotonic() - began
    known, expected, expected_disk = snapshots(store), list_tree(source), disk.read_bytes()
    survived = 0
    for number in range(KILLS):
        change_source(source, rng)
        mode = ("legacy", "data", "metadata")[number % 3]
        process = subprocess.Popen(
            [PROGRAM, *backup_command(store, source, disk, mode)],
            env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        time.sleep(rng.uniform(0, whole_s * 1.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found = snapshots(store)
        # The kill may have come after the manifest: then the snapshot is whole and counts.
        assert set(known) <= set(found)
        assert len(found) - len(known) <= 1
        survived += len(found) > len(known)
        known = found
    assert survived < KILLS, "no kill came in time"
    for number in (0, len(known) - 1):
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(known[number]))
        target = tmp_path / f"restored-{number}"
        run("restore", f"host/web01/{stamp}", "root.pxar", target, "--repository", store)
        run("restore", f"host/web01/{stamp}", "disk.img", target / "disk", "--repository", store)
        assert (target / "disk").read_bytes() == expected_disk
        (target / "disk").unlink()
        if number == 0:
            assert not [
                line
                for line in differences(list_tree(target), expected)
                if '"path": ""' not in line
            ]
    wait_for_the_next_second()
    run(*backup_command(store, source, disk, "metadata"))
    run("restore", "host/web01", "root.pxar", tmp_path / "last", "--repository", store)
    assert not differences(list_tree(tmp_path / "last"), list_tree(source))
    leftovers = [
        path.name
        for path in store.rglob("*")
        if "tmp" in path.suffix and ".chunks" not in path.parts
    ]
    assert not leftovers, "the next writer left half-written files"
    assert len(snapshots(store)) == len(known) + 1
    assert {path.name for path in (store / "host/web01").iterdir() if path.is_dir()} == {
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)) for seconds in snapshots(store)
    }, "a half-written snapshot was left behind"
