"""What the commands share: how they are declared, and their common options. Cheap to import."""

import argparse
import contextlib
import os
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from store.cli.encryption import load_backup_keys, load_key
from store.errors import InvalidName
from store.names import BackupGroup, Namespace, format_backup_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from store.datastore.datastore import Datastore

__all__ = [
    "HelpFormatter",
    "Parser",
    "add_command",
    "add_key_options",
    "add_noun",
    "add_output_option",
    "add_repository_options",
    "get_namespace",
    "load_backup_keys",
    "load_key",
    "open_repository",
]

OUTPUT_FORMATS = ("text", "json", "json-pretty")

REPOSITORY_HELP = """\
repository:
  /path or file:///path     a datastore's directory, on a local disk or NFS
"""
KEY_HELP = """\
key passphrase, the first that is set:
  PBS_ENCRYPTION_PASSWORD         the passphrase itself
  PBS_ENCRYPTION_PASSWORD_FD      an open file descriptor to read it from
  PBS_ENCRYPTION_PASSWORD_FILE    a file whose first line it is
  PBS_ENCRYPTION_PASSWORD_CMD     a command that prints it
  otherwise it is asked for on the terminal
default key, without --keyfile:
  ~/.config/proxmox-backup/encryption-key.json, and master-public.pem beside it
"""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Two columns wide enough for our longest names, texts as they are written."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def add_argument(self, action: argparse.Action) -> None:
        """Leave room for commands: argparse forgets that it indents them once more."""
        super().add_argument(action)
        if action.nargs == argparse.PARSER:
            self._action_max_length += self._indent_increment


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other error, not below ten lines of usage."""

    def error(self, message: str) -> NoReturn:
        """End the program with exit code 2."""
        with contextlib.suppress(OSError):  # nobody reads it
            sys.stderr.write(f"vaultway: {' '.join(message.split())} (see {self.prog} --help)\n")
        self.exit(2)


def add_noun(subparsers: Any, name: str, text: str) -> Any:  # noqa: ANN401 - argparse has no public type for it
    """Declare a noun (`snapshot`) and return its subparsers, for `add_command`."""
    noun = subparsers.add_parser(
        name, help=text, description=text, formatter_class=HelpFormatter, allow_abbrev=False
    )
    return noun.add_subparsers(dest="command", metavar="COMMAND", required=True)


def add_command(
    subparsers: Any,  # noqa: ANN401 - argparse has no public type for it
    name: str,
    handler: "Callable[[argparse.Namespace], int | None]",
    text: str,
    example: str,
    notes: str = "",
) -> argparse.ArgumentParser:
    """Declare one command: what it does, an example to copy, notes for the end of its help."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=text,
        description=text,
        epilog="\n".join(filter(None, (f"example:\n  {example}\n", notes))),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--debug",
        action="store_true",
        help="log every step, show tracebacks (also VAULTWAY_DEBUG=1)",
    )
    parser.set_defaults(handler=handler)
    return parser


def add_repository_options(
    parser: argparse.ArgumentParser, *, namespace: bool = True, positional: bool = False
) -> None:
    """Add `--repository` (or a positional REPOSITORY) and, unless told otherwise, `--ns`."""
    if positional:
        parser.add_argument("repository", metavar="REPOSITORY", help="the datastore (below)")
    else:
        parser.add_argument(
            "--repository", metavar="REPOSITORY", help="the datastore (default: $PBS_REPOSITORY)"
        )
    if namespace:
        parser.add_argument(
            "--ns",
            metavar="NAMESPACE",
            help="namespace, for example prod/web (default: $PBS_NAMESPACE, then the root)",
        )
    parser.epilog = f"{parser.epilog or ''}\n{REPOSITORY_HELP}"


def add_key_options(parser: argparse.ArgumentParser, *, master: bool = False) -> None:
    """Add `--keyfile`, `--keyfd`, `--crypt-mode` and, for writers, `--master-pubkey-file`."""
    parser.add_argument("--keyfile", metavar="PATH", help="encryption key, made with `key create`")
    parser.add_argument(
        "--keyfd", type=int, metavar="N", help="read the key file from this open file descriptor"
    )
    parser.add_argument(
        "--crypt-mode",
        choices=("none", "encrypt", "sign-only"),
        help="default: encrypt if there is a key, else none",
    )
    if master:
        parser.add_argument(
            "--master-pubkey-file",
            metavar="PATH",
            help="RSA public key: adds the key, readable with its private half, to the snapshot",
        )
    parser.epilog = f"{parser.epilog or ''}\n{KEY_HELP}"


def add_output_option(parser: argparse.ArgumentParser) -> None:
    """Add `--output-format`."""
    parser.add_argument(
        "--output-format",
        choices=OUTPUT_FORMATS,
        default="text",
        help="how to print the result (default: text)",
    )


def add_snapshot_argument(parser: argparse.ArgumentParser) -> None:
    """Add the positional SNAPSHOT."""
    parser.add_argument(
        "snapshot",
        metavar="SNAPSHOT",
        help="type/id/time, for example host/web01/2026-01-02T03:04:05Z; type/id is the newest",
    )


def open_repository(args: argparse.Namespace) -> "Datastore":
    """Open the datastore of `--repository` or PBS_REPOSITORY. Raises InvalidName without one."""
    from store.datastore.repository import open_datastore

    repository = args.repository or os.environ.get("PBS_REPOSITORY")
    if not repository:
        raise InvalidName(
            "no repository: give --repository /path/of/datastore or set PBS_REPOSITORY"
        )
    return open_datastore(repository)


def get_namespace(args: argparse.Namespace) -> Namespace:
    """Return the namespace of `--ns` or PBS_NAMESPACE, else the root. Raises InvalidName."""
    text = os.environ.get("PBS_NAMESPACE", "") if args.ns is None else args.ns
    return Namespace.parse(text)


def parse_group(text: str) -> BackupGroup:
    """An argparse type: `host/web01`."""
    try:
        return BackupGroup.parse(text)
    except InvalidName as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_time(text: str) -> int:
    """An argparse type: seconds since the epoch, or RFC 3339 with an offset."""
    try:
        seconds = int(text) if text.isascii() and text.isdigit() else _from_rfc3339(text)
        format_backup_time(seconds)
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: not a time") from error
    except InvalidName as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return seconds


def _from_rfc3339(text: str) -> int:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise InvalidName(f"{text!r}: add an offset, for example {text}Z")
    return int(time.timestamp())


def parse_text(text: str) -> str:
    """An argparse type: text that goes into JSON, in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(f"{text!a}: not in UTF-8") from error
    return text


def parse_boolean(text: str) -> bool:
    """An argparse type: PBS's spellings of true and false."""
    values = {"1": True, "on": True, "yes": True, "true": True}
    values |= {"0": False, "off": False, "no": False, "false": False}
    try:
        return values[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r}: use true or false") from None
