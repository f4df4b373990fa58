"""The master key: its public half wraps the key of each backup, for the day that is lost."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from store.cli.encryption import PASSWORD_VARIABLE
from store.cli.key_files import (
    DEFAULT_MASTER_KEY_NAME,
    default_place,
    find_default,
    make_default_directory,
    read_key_text,
    refuse_existing,
    replace,
    write_new,
)
from store.cli.key_options import add_kdf_options, add_path, new_path, protect
from store.cli.options import KEY_HELP, add_command, add_output_option
from store.cli.output import Column, render_record, say
from store.cli.password import get_new_password, get_password
from store.errors import FormatError, NotFound

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from store.format.keys import KeyFile

MASTER_PASSWORD_VARIABLE = "PBS_MASTER_PASSWORD"  # noqa: S105 - a name
UNCOMPRESSED_BLOB_MAGIC_1_0 = bytes.fromhex("42ab3807be8370a1")
SHOWN_DIGITS = 16
MASTER_HELP = f"""\
master key passphrase: {MASTER_PASSWORD_VARIABLE} and its _FD, _FILE, _CMD forms, or the terminal
"""


def add_commands(noun: Any) -> None:  # noqa: ANN401 - argparse has no public type for it
    """Declare the commands, below `key`."""
    add_command(
        noun,
        "create-master-key",
        create_master_key,
        "Create an RSA pair: master-public.pem and master-private.pem, in this directory.",
        "vaultway key create-master-key",
        MASTER_HELP,
    )
    command = add_command(
        noun,
        "import-master-pubkey",
        import_master_pubkey,
        "Make a master public key the default: backups then carry their key, wrapped with it.",
        "vaultway key import-master-pubkey master-public.pem",
    )
    command.add_argument("path", metavar="PATH", help="RSA public key in PEM")
    command = add_command(
        noun,
        "show-master-pubkey",
        show_master_pubkey,
        "Show a master public key's facts: those of the default one, or of PATH.",
        "vaultway key show-master-pubkey",
    )
    command.add_argument(
        "path", metavar="PATH", nargs="?", help="RSA public key in PEM (default: the default one)"
    )
    add_output_option(command)
    command = add_command(
        noun,
        "import-with-master-key",
        import_with_master_key,
        "Get a key back from a backup's rsa-encrypted.key, with the master private key.",
        "vaultway key import-with-master-key master-private.pem rsa-encrypted.key key.json",
        f"{MASTER_HELP}\nThe new key file's:\n\n{KEY_HELP}",
    )
    command.add_argument("master_keyfile", metavar="PRIVATE-PEM")
    command.add_argument("encrypted_keyfile", metavar="ENCRYPTED-KEY")
    add_path(command)
    add_kdf_options(command)


def create_master_key(_: "argparse.Namespace") -> None:
    """Make the pair. The private half belongs in a safe, not on this machine."""
    from store.format import keys

    private, public = Path("master-private.pem"), Path(DEFAULT_MASTER_KEY_NAME)
    for path in (private, public):
        refuse_existing(path)
    password = get_new_password(MASTER_PASSWORD_VARIABLE, "Master key passphrase")
    private_pem, public_pem = keys.create_master_key(password)
    write_new(private, private_pem)
    write_new(public, public_pem)
    say(f"created {private} (keep it in a safe place, away from here) and {public}")


def import_master_pubkey(args: "argparse.Namespace") -> None:
    """Copy a checked public key to the default place."""
    from store.format.keys import load_master_public_key

    pem = read_key_text(Path(args.path))
    bits = load_master_public_key(pem).key_size
    path = default_place(DEFAULT_MASTER_KEY_NAME)
    make_default_directory()
    replace(path, pem)
    say(f"imported the {bits} bit master key to {path}")


def show_master_pubkey(args: "argparse.Namespace") -> None:
    """Print path, modulus (in full as JSON), exponent and length, as PBS names and writes them."""
    from store.format.keys import load_master_public_key

    path = find_default(DEFAULT_MASTER_KEY_NAME) if args.path is None else Path(args.path)
    if path is None:
        raise NotFound(
            f"no key named, and no default master key {default_place(DEFAULT_MASTER_KEY_NAME)}"
        )
    try:
        public = load_master_public_key(read_key_text(path))
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    numbers = public.public_numbers()
    record = {
        "path": str(path.resolve()),
        "modulus": f"{numbers.n:X}",
        "exponent": str(numbers.e),
        "length": public.key_size,
    }
    columns = [Column(name, text=_shorten if name == "modulus" else str) for name in record]
    render_record(record, args.output_format, columns)


def _shorten(digits: str) -> str:
    """Enough of a thousand digits to tell one key from another."""
    return f"{digits[:SHOWN_DIGITS]}…{digits[-SHOWN_DIGITS:]} ({len(digits)} digits)"


def import_with_master_key(args: "argparse.Namespace") -> None:
    """Unwrap a key and write it as a key file with a passphrase of its own."""
    from store.format.blob import decode_blob

    path = new_path(args)
    wrapped = read_key_text(Path(args.encrypted_keyfile))
    if wrapped.startswith(UNCOMPRESSED_BLOB_MAGIC_1_0):
        wrapped = decode_blob(wrapped)
    old = open_master_key(Path(args.master_keyfile))(wrapped)
    key = old.unlock().key
    new = protect(args, key, PASSWORD_VARIABLE, "New passphrase", created=old.created)
    write_new(path, new.encode())
    say(f"imported key {new.fingerprint} to {path}")


def open_master_key(path: Path) -> "Callable[[bytes], KeyFile]":
    """What a master private key does: it gets the key file out of an `rsa-encrypted.key`.

    Raises:
        NotFound, PermissionDenied: it can't be read.   FormatError: no private key.
        KeyRequired, WrongKey: no passphrase, or another one.
    """
    from store.format.keys import load_master_private_key, unwrap_key

    private = read_key_text(path)
    password = (
        get_password(MASTER_PASSWORD_VARIABLE, "Master key passphrase")
        if b"ENCRYPTED" in private
        else None
    )
    load_master_private_key(private, password)
    return lambda wrapped: unwrap_key(private, password, wrapped)
