"""Mounts whose storage a test watches, takes away, or lets hang."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.program import environment

SCRIPT = Path(__file__).parent / "fakes" / "watched_mount.py"
START_S = 30.0


@dataclass(frozen=True)
class WatchedMount:
    """A mount at `path`, its process, and the folder it is watched and steered through."""

    path: Path
    process: subprocess.Popen[bytes]
    folder: Path

    def chunks_read(self) -> list[str]:
        """What was read since the last time, each as often as it was."""
        names = (self.folder / "reads").read_text().splitlines()
        os.truncate(self.folder / "reads", 0)
        return names

    @contextmanager
    def storage(self, state: str) -> Iterator[None]:
        """While in the block, the storage is `away`, or lets readers `hang`."""
        (self.folder / state).touch()
        try:
            yield
        finally:
            (self.folder / state).unlink()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


@contextmanager
def watched_mount(repository: Path, folder: Path, *options: str) -> Iterator[WatchedMount]:
    """Mount below `folder`; it is unmounted at the end, and its process has to end well."""
    mountpoint = folder / "m"
    mountpoint.mkdir(parents=True)
    command = [sys.executable, SCRIPT, repository, mountpoint, folder, *options]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, env=environment())
    try:
        wait_for_mount(mountpoint, process)
        yield WatchedMount(mountpoint, process, folder)
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()
            if os.path.ismount(mountpoint):
                subprocess.run(["umount", "-l", mountpoint], check=False)


def wait_for_mount(mountpoint: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_S
    while not mountpoint.is_mount():
        assert process.poll() is None, "it ended"
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
