"""The keys of disks that guests have encrypted (LUKS, BitLocker): `--disk-keyfile`, and a password.

Cheap to import.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from store.cli.password import read_secret
from store.errors import KeyRequired
from store.repositories.secret_sources import first_line, read_secret_file

if TYPE_CHECKING:
    import argparse

VARIABLE = "VAULTWAY_DISK_PASSWORD"


def add_disk_key_option(parser: "argparse.ArgumentParser") -> None:
    """Add `--disk-keyfile`."""
    parser.add_argument(
        "--disk-keyfile",
        metavar="FILE",
        action="append",
        default=[],
        help="opens disks encrypted by their guest: a LUKS key file, a .bek file, or a file with"
        f" the passphrase; can be repeated (also: ${VARIABLE}, with _FILE, _FD or _CMD behind)",
    )


def disk_keys(paths: Iterable[str]) -> tuple[bytes, ...]:
    """All that are given: files whole and, in case they were written with an editor, their line.

    Raises KeyRequired naming the file that cannot be read; InvalidName.
    """
    keys = []
    for path in paths:
        try:
            content = read_secret_file(path)
        except OSError as error:
            raise KeyRequired(f"disk key file {path}: {error.strerror}") from error
        keys += [content, first_line(content)]
    password = read_secret(VARIABLE)
    keys += [] if password is None else [password]
    return tuple(dict.fromkeys(keys))
