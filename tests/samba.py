"""A real smbd for one test, as the manual has it, but for its places and its port."""

import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.machine import SMBD

WAIT_S = 30
GLOBAL = """\
[global]
  server role = standalone server
  interfaces = lo
  bind interfaces only = yes
  smb ports = {port}
  private dir = {folder}/state
  lock directory = {folder}/state
  state directory = {folder}/state
  cache directory = {folder}/state
  pid directory = {folder}/state
  ncalrpc dir = {folder}/state/ncalrpc
  log file = {folder}/log
  log level = 1
  map to guest = bad user
  load printers = no
  disable spoolss = yes
  disable netbios = yes
"""


@dataclass(frozen=True)
class Share:
    """A share that anybody on this machine may read."""

    config: Path
    port: int
    name: str

    def ask(self, *commands: str) -> str:
        """What smbclient prints for commands; fails the test when one fails."""
        done = subprocess.run(
            [
                "smbclient",
                f"--configfile={self.config}",
                "--no-pass",
                f"--port={self.port}",
                f"//127.0.0.1/{self.name}",
                "--command=" + "; ".join(commands),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        output = done.stdout + done.stderr
        assert done.returncode == 0, output
        assert "NT_STATUS" not in output, output
        return done.stdout


@contextmanager
def shared(folder: Path, path: Path, options: Mapping[str, object]) -> Iterator[Share]:
    """Share `path` as `files`, with more options of smb.conf, by an smbd that lives in `folder`."""
    (folder / "state/ncalrpc").mkdir(parents=True)
    config, port = folder / "smb.conf", _free_port()
    share = {"path": path, "guest ok": "yes", "read only": "yes", **options}
    lines = "".join(f"  {name} = {value}\n" for name, value in share.items())
    config.write_text(GLOBAL.format(folder=folder, port=port) + f"[files]\n{lines}")
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(
            [SMBD, "--foreground", "--no-process-group", f"--configfile={config}"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # at its end it stops its whole group, which would be ours
        )
    try:
        _wait_for(process, port, folder)
        yield Share(config, port, "files")
    finally:
        process.terminate()
        process.wait(timeout=WAIT_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, (folder / "output").read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError("smbd does not answer: " + (folder / "log").read_text())
