"""A writable export as a process that tests ask, stop and kill."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.program import PROGRAM, environment, uri

WAIT_S = 30.0


class Export:
    """A running `vaultway export`, its socket, and its heads' directory."""

    def __init__(
        self, place: Path, *arguments: object, env: Mapping[str, str] | None = None
    ) -> None:
        """`place`: a folder for all of it; the heads of several exports there are the same."""
        self._env = env
        self.socket, self.heads, self.log = place / "s", place / "heads", place / "log"
        self._arguments = [*map(str, arguments), "--socket", self.socket, "--heads", self.heads]
        self.start()

    def start(self) -> None:
        """Begin (again), and wait until it can be opened."""
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [PROGRAM, "export", "--writable", *self._arguments],
                env=environment(self._env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=log, text=True,
            )  # fmt: skip
        assert self.process.stdout
        self.uri = self.process.stdout.readline().strip()
        assert self.uri, self.log.read_text()
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        self.nbdkit = int(listed.split()[0])

    def named(self, name: str) -> str:
        """The URI of another export."""
        return uri(self.socket, name)

    def stop(self) -> str:
        """Ask it to end; what it says last, and nothing in its log."""
        self.process.send_signal(signal.SIGTERM)
        said, _ = self.process.communicate(timeout=WAIT_S)
        assert self.process.returncode == 0, self.log.read_text()
        return said

    def kill(self) -> None:
        """With SIGKILL, nbdkit as well; returns when both are gone."""
        os.kill(self.nbdkit, signal.SIGKILL)
        self.process.kill()
        self.process.communicate(timeout=WAIT_S)
        until = time.monotonic() + WAIT_S
        while is_running(self.nbdkit):
            assert time.monotonic() < until, "nbdkit outlived its SIGKILL"
            time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def qemu_io(export: Export, *commands: str) -> str:
    """What it says; a failed request is said there, too."""
    arguments = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(
        ["qemu-io", "-f", "raw", *arguments, export.uri],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


@contextmanager
def writable(
    place: Path, *arguments: object, env: Mapping[str, str] | None = None
) -> Iterator[Export]:
    """An export that is ended whatever the test did to it."""
    export = Export(place, *arguments, env=env)
    try:
        yield export
    finally:
        if export.process.poll() is None:
            export.stop()
