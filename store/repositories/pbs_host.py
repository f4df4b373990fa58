"""What a PBS on this very machine calls a directory, so that we share its locks (spec 6.5)."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

CONFIGURATION = Path("/etc/proxmox-backup/datastore.cfg")
LOCKS = Path("/run/proxmox-backup/locks")
REMOVABLE = Path("/mnt/datastore")


class KnownDatastore(NamedTuple):
    """A datastore of the PBS on this machine: its name, and the directory of its lock files."""

    name: str
    lock_directory: str


def find_datastore(
    path: str, configuration: Path = CONFIGURATION, lock_base: Path = LOCKS
) -> KnownDatastore | None:
    """The datastore a PBS on this machine has at `path`, if it has and we may use its locks.

    Without a PBS that knows the directory nobody else would look at lock files in /run, and two
    datastores whose directories have the same last name would lock each other out. The locks on
    the directories themselves do then.
    """
    for name, configured in _datastores(configuration):
        with suppress(OSError):
            if Path(path).samefile(configured) and _usable(lock_base):
                return KnownDatastore(name, str(lock_base / name))
    return None


def _datastores(configuration: Path) -> Iterator[tuple[str, str]]:
    """Name and directory of every datastore in PBS's configuration.

    Nothing when we can't read it.
    """
    try:
        lines = configuration.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    name = path = ""
    removable = False
    for line in [*lines, "end:"]:
        key, _, value = line.strip().partition(" ")
        if line[:1].isspace():
            path = value.strip() if key == "path" else path
            removable = removable or key == "backing-device"
        elif key.endswith(":"):
            if name and path:
                yield name, str(REMOVABLE / name) if removable else path
            name, path, removable = value.strip(), "", False


def _usable(lock_base: Path) -> bool:
    return os.geteuid() == 0 or os.access(lock_base, os.W_OK)
