"""What the commands that write key files share: path, key derivation, hint."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from store.cli.key_files import (
    DEFAULT_KEY_NAME,
    default_place,
    make_default_directory,
    refuse_existing,
)
from store.cli.options import parse_text
from store.cli.password import get_new_password
from store.errors import InvalidName

if TYPE_CHECKING:
    import argparse

    from store.format.keys import Kdf, KeyFile


def add_path(command: "argparse.ArgumentParser") -> None:
    """Add the optional PATH of a key file."""
    command.add_argument(
        "path", metavar="PATH", nargs="?", help="the key file (default: the default key's place)"
    )


def add_kdf_options(command: "argparse.ArgumentParser") -> None:
    """Add `--kdf` and `--hint`."""
    command.add_argument(
        "--kdf",
        choices=("scrypt", "pbkdf2", "none"),
        default="scrypt",
        help="how the passphrase protects the key; none: not at all (default: scrypt)",
    )
    command.add_argument(
        "--hint", metavar="TEXT", type=parse_text, help="a reminder, readable by anyone"
    )


def new_path(args: "argparse.Namespace") -> Path:
    """Return where a new key goes. Raises AlreadyExists when there is a file."""
    if args.path is None:
        make_default_directory()
    path = default_place(DEFAULT_KEY_NAME) if args.path is None else Path(args.path)
    refuse_existing(path)
    return path


def protect(
    args: "argparse.Namespace", key: bytes, variable: str, prompt: str, created: str | None = None
) -> "KeyFile":
    """Return a new key file around `key`, its passphrase from `variable` or asked for twice."""
    from datetime import UTC, datetime

    from store.format.keys import Pbkdf2, Scrypt, create_key_file

    kinds: dict[str, type[Kdf]] = {"scrypt": Scrypt, "pbkdf2": Pbkdf2}
    kdf = kinds[args.kdf](os.urandom(32)) if args.kdf in kinds else None
    if kdf is None and args.hint is not None:
        raise InvalidName("--hint makes no sense with --kdf none: there is no passphrase")
    password = get_new_password(variable, prompt) if kdf else None
    now = datetime.now(UTC).astimezone().isoformat(timespec="seconds")
    return create_key_file(key, password, kdf, os.urandom(16), now, created=created, hint=args.hint)
