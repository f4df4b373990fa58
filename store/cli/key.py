"""`vaultway key`: encryption keys, their passphrases and paper copies."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from store.cli import key_doctor, master_key
from store.cli.encryption import PASSWORD_VARIABLE, unlock
from store.cli.key_files import (
    DEFAULT_KEY_NAME,
    default_place,
    find_default,
    read_key_file,
    read_key_text,
    replace,
    write_new,
)
from store.cli.key_options import add_kdf_options, add_path, new_path, protect
from store.cli.options import KEY_HELP, add_command, add_noun, add_output_option, parse_text
from store.cli.output import Column, human_time, render_record, say, say_bytes
from store.errors import FormatError, InvalidName, NotFound

if TYPE_CHECKING:
    import argparse

NEW_PASSWORD_VARIABLE = "PBS_NEW_ENCRYPTION_PASSWORD"  # noqa: S105 - a name
KEEP_SAFE = """\
Without the key and its passphrase, encrypted backups can't be read by anyone. Keep a copy
away from this machine: `vaultway key paperkey` makes one to print.
"""


def add_commands(subparsers: Any) -> None:  # noqa: ANN401 - argparse has no public type for it
    """Declare the commands."""
    text = "Encryption keys: create, show, print, protect, and check what they open."
    noun = add_noun(subparsers, "key", text)
    example = 'vaultway key create ~/vault.json --hint "the long one"'
    notes = f"{KEEP_SAFE}\n{KEY_HELP}"
    command = add_command(noun, "create", create, "Create an encryption key.", example, notes)
    add_path(command)
    add_kdf_options(command)
    example = "vaultway key show ~/vault.json --output-format json"
    command = add_command(noun, "show", show, "Show a key file's facts, not the key.", example)
    add_path(command)
    add_output_option(command)
    _add_change_passphrase(noun)
    _add_paperkey(noun)
    master_key.add_commands(noun)
    key_doctor.add_commands(noun)


def _add_change_passphrase(noun: Any) -> None:  # noqa: ANN401
    command = add_command(
        noun,
        "change-passphrase",
        change_passphrase,
        "Give a key another passphrase. What it encrypted stays readable.",
        "vaultway key change-passphrase ~/vault.json",
        f"The new one: {NEW_PASSWORD_VARIABLE} and its forms, as the old one's:\n\n{KEY_HELP}",
    )
    add_path(command)
    add_kdf_options(command)


def _add_paperkey(noun: Any) -> None:  # noqa: ANN401
    command = add_command(
        noun,
        "paperkey",
        paperkey,
        "Make a page to print from a key file or a master private key, with QR codes.",
        "vaultway key paperkey ~/vault.json --subject web01 > paperkey.html",
        "svg and png are the QR codes alone, as a picture to print or to scan from a screen.",
    )
    add_path(command)
    command.add_argument("--subject", metavar="TEXT", type=parse_text, help="a first line")
    command.add_argument(
        "--output-format",
        choices=("html", "text", "svg", "png"),
        default="html",
        help="default: html",
    )


def create(args: "argparse.Namespace") -> None:
    """Make a key of 32 random bytes. The passphrase is asked for before anything is written."""
    path = new_path(args)
    key_file = protect(args, os.urandom(32), PASSWORD_VARIABLE, "Encryption key passphrase")
    write_new(path, key_file.encode())
    say(f"created key {key_file.fingerprint} in {path}")


def show(args: "argparse.Namespace") -> None:
    """Print times, fingerprint and hint."""
    path = _existing_path(args)
    key_file = read_key_file(path)
    record = {
        "path": str(path),
        "kdf": key_file.kdf_name,
        "created": key_file.created_time,
        "modified": key_file.modified_time,
        "fingerprint": str(key_file.fingerprint) if key_file.fingerprint else None,
        "hint": key_file.hint,
    }
    columns = (
        Column("path"),
        Column("kdf"),
        Column("created", text=human_time),
        Column("modified", text=human_time),
        Column("fingerprint"),
        Column("hint"),
    )
    present = {name: value for name, value in record.items() if value is not None}
    render_record(present, args.output_format, columns)


def change_passphrase(args: "argparse.Namespace") -> None:
    """Replace the key file by one with the same key."""
    path = _existing_path(args)
    old = read_key_file(path)
    key = unlock(old).key
    new = protect(args, key, NEW_PASSWORD_VARIABLE, "New passphrase", created=old.created)
    replace(path, new.encode())
    say(f"changed {path}")


def paperkey(args: "argparse.Namespace") -> None:
    """Print the page, or the picture."""
    from store.format import paperkey as pages

    path, form = _existing_path(args), args.output_format
    if form in {"svg", "png"} and args.subject is not None:
        raise InvalidName(f"--subject makes no sense with {form}: the picture is the codes alone")
    if form == "png" and sys.stdout.isatty():
        raise InvalidName("a png is no text for a terminal; write it to a file: > key.png")
    try:
        text = read_key_text(path).decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not a key file") from error
    if form == "png":
        say_bytes(pages.paper_key_png(text))
    elif form == "svg":
        say(pages.paper_key_svg(text))
    else:
        page = pages.paper_key_html if form == "html" else pages.paper_key_text
        say(page(text, args.subject).removesuffix("\n"))


def _existing_path(args: "argparse.Namespace") -> Path:
    path = find_default(DEFAULT_KEY_NAME) if args.path is None else Path(args.path)
    if path is None:
        raise NotFound(f"no key file named, and no default key {default_place(DEFAULT_KEY_NAME)}")
    return path
