"""A mount with `-o rw` of a new datastore, and what tests do to it: kill it, look below it."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.program import PROGRAM, environment, run

READY_S = 60


@dataclass
class WritableMount:
    """One datastore, its heads, and its mount, which may be up or not.

    Attributes:
        folder: has `vault/`, `heads/`, `log` and the mount point `mnt/`.
        options: after `-o`, beside what every mount here has.
        arguments: of the command.
    """

    folder: Path
    options: str = "seal=manual"
    arguments: tuple[object, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def vault(self) -> Path:
        return self.folder / "vault"

    @property
    def repository(self) -> str:
        """Where the datastore is."""
        return str(self.vault)

    @property
    def mountpoint(self) -> Path:
        return self.folder / "mnt"

    @property
    def heads(self) -> Path:
        return self.folder / "heads"

    @property
    def log(self) -> str:
        """What the mounts said."""
        return (self.folder / "log").read_text()

    @property
    def group(self) -> Path:
        """The one these tests use."""
        return self.mountpoint / "host/test"

    @property
    def tree(self) -> Path:
        """Its head's tree."""
        return self.group / "current/root.pxar"

    def make_tree(self) -> Path:
        """Have a group with an empty tree."""
        self.group.mkdir()
        self.tree.mkdir()
        return self.tree

    @property
    def environment(self) -> dict[str, str]:
        """Of the program."""
        return environment(self.env)

    def command(self, mountpoint: Path, options: str) -> list[str]:
        """That mounts it somewhere, in the foreground."""
        words = (
            PROGRAM,
            "mount",
            self.repository,
            mountpoint,
            "-f",
            "-o",
            options,
            *self.arguments,
        )
        return [str(word) for word in words]

    def words(self, *arguments: object) -> list[str]:
        """A command about the datastore."""
        return [str(word) for word in (PROGRAM, *arguments, "--repository", self.repository)]

    def up(self, options: str | None = None) -> None:
        """Mount, and wait until it answers."""
        self.mountpoint.mkdir(exist_ok=True)
        chosen = f"rw,allow_other,dev,suid,heads={self.heads},{options or self.options}"
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(self.mountpoint, chosen),
                env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + READY_S
        while not os.path.ismount(self.mountpoint):
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def down(self) -> None:
        """Unmount, and wait for the process' end."""
        subprocess.run(["fusermount3", "-u", self.mountpoint], check=True)
        assert self.process
        assert self.process.wait(timeout=120) == 0, self.log
        self.process = None

    def kill(self) -> None:
        """kill -9, and take the dead mount away."""
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = None
        self._detach()

    def _detach(self) -> None:
        subprocess.run(
            ["fusermount3", "-u", "-z", self.mountpoint], check=False, capture_output=True
        )

    def head(self, *arguments: object, expect: int = 0) -> str:
        """`vaultway head ...`; what it printed."""
        words = ("head", *arguments, "--repository", self.repository, *self.arguments)
        done = run(*words, "--heads", self.heads, env=self.env, expect=expect)
        return done.stdout + done.stderr

    def seal(self) -> Path:
        """Seal the test's group; where the snapshot is, which the mount shows after a moment."""
        name = self.head("seal", "host/test").split()[-1]
        path = self.mountpoint / name
        deadline = time.monotonic() + READY_S
        while not path.exists():
            assert time.monotonic() < deadline, (name, self.log)
            time.sleep(0.05)
        return path

    def end(self) -> None:
        """Whatever the test did."""
        if self.process is not None and self.process.poll() is None:
            with suppress(subprocess.SubprocessError, AssertionError):
                self.down()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self._detach()


@contextmanager
def writable_mount(folder: Path, options: str = "seal=manual") -> Iterator[WritableMount]:
    """A new datastore in `folder`, mounted."""
    folder.chmod(0o755)
    mount = WritableMount(folder, options)
    run("datastore", "create", mount.vault)
    try:
        mount.up()
        yield mount
    finally:
        mount.end()
