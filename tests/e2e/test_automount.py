"""`x-systemd.automount`: mounted at the first visit, through the kernel's own automounter."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.archives import snapshot
from tests.fakes.datastores import local_datastore
from tests.program import PROGRAM, environment, run

pytestmark = [pytest.mark.needs("fuse", "root"), pytest.mark.xdist_group("mount")]

AUTOMOUNTER = Path(__file__).parent.parent / "fakes" / "automounter.py"
TIME = "2025-01-01T00:00:00Z"


def test_the_first_visit_mounts(tmp_path: Path) -> None:
    """The process that mounts must not be taken for a visitor: it would wait for itself."""
    with snapshot(local_datastore(tmp_path / "store"), f"vm/1/{TIME}") as builder:
        builder.blob("a.conf", b"line\n")
    there = tmp_path / "m"
    there.mkdir()
    command = [sys.executable, AUTOMOUNTER, there, PROGRAM, "mount", tmp_path / "store", there]
    automounter = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), text=True)
    assert automounter.stdout
    try:
        assert automounter.stdout.readline() == "ready\n"
        seen = subprocess.run(
            ["cat", there / f"vm/1/{TIME}/a.conf"], capture_output=True, check=False, timeout=30
        )
        assert (seen.returncode, seen.stdout) == (0, b"line\n"), seen.stderr
        assert automounter.wait(20) == 0
        run("umount", there)
    finally:
        automounter.kill()
        automounter.wait()
        automounter.stdout.close()
        subprocess.run(["umount", "-l", there], check=False, capture_output=True)
        subprocess.run(["umount", "-l", there], check=False, capture_output=True)
