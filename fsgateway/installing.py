"""What the system needs to know of us: helpers for mount(8) and umount(8), a unit for systemd.

They are files of `fsgateway/system/`; only the program's place is put in.
"""

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from store.errors import BackendError, PermissionDenied

FILES = Path(__file__).parent / "system"
UNIT = "vaultway-mount@.service"
# For `mount -t vaultway`, for `mount -t fuse.vaultway` as /proc/mounts has it, and for umount.
HELPERS = {
    "mount.vaultway": "mount.vaultway",
    "mount.fuse.vaultway": "mount.vaultway",
    "umount.fuse.vaultway": "umount.vaultway",
}
SBIN = "/sbin"


def program() -> str:
    """How this program is started from anywhere, as a shell and systemd read it."""
    started_as = Path(sys.argv[0])
    if started_as.suffix == ".py":
        words = [sys.executable, "-m", "store.cli.main"]
    else:
        words = [os.path.abspath(shutil.which(sys.argv[0]) or started_as)]
    return shlex.join(words)


def unit() -> str:
    """The text of the template unit `vaultway-mount@.service`."""
    return _filled(UNIT, program().replace("%", "%%"))


def install_helpers(directory: Path) -> list[Path]:
    """Write the helpers; returns where they are.

    Raises PermissionDenied, BackendError: the directory cannot be written.
    """
    written = []
    for name, source in HELPERS.items():
        path = directory / name
        try:
            path.write_text(_filled(source, program()))
            path.chmod(0o755)
        except PermissionError as error:
            raise PermissionDenied(f"{path}: {error.strerror}; run it as root") from error
        except OSError as error:
            raise BackendError(f"{path}: {error.strerror}") from error
        written.append(path)
    return written


def _filled(name: str, command: str) -> str:
    return (FILES / name).read_text().replace("@PROGRAM@", command)


class PrintUnit(argparse.Action):
    """Print the unit and end, like --help."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        sys.stdout.write(unit())
        parser.exit()


class InstallHelpers(argparse.Action):
    """Write the helpers into a directory, print their paths, and end."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        for path in install_helpers(Path(str(values))):
            sys.stdout.write(f"{path}\n")
        parser.exit()
