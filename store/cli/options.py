"""What the commands share: how they are declared, and their common options. Cheap to import."""

import argparse
import contextlib
import re
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from store.cli.encryption import load_backup_keys, load_key
from store.cli.repository import (
    get_namespace,
    get_settings,
    layers,
    open_repository,
    repository_name,
)
from store.errors import InvalidName
from store.names import BackupGroup, format_backup_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "HelpFormatter",
    "Parser",
    "add_command",
    "add_key_options",
    "add_noun",
    "add_output_option",
    "add_repository_options",
    "get_namespace",
    "get_settings",
    "layers",
    "load_backup_keys",
    "load_key",
    "open_repository",
    "repository_name",
]

HIDDEN_IN_USAGE = frozenset(("config", "repository_options"))
SMALLER = re.compile(r"-\d+[A-Za-z]*")
OUTPUT_FORMATS = ("text", "json", "json-pretty")

REPOSITORY_HELP = """\
repository:
  /path or file:///path     a datastore's directory, on a local disk or NFS
  s3://bucket/datastore     a datastore in a bucket
  NAME                      a [repository.NAME] of the configuration (`vaultway config --help`)
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

    def add_usage(
        self,
        usage: str | None,
        actions: "Iterable[argparse.Action]",
        groups: "Iterable[argparse._MutuallyExclusiveGroup]",
        prefix: str | None = None,
    ) -> None:
        """Leave the options of repositories to their own group: every command has them."""
        own = [action for action in actions if action.dest not in HIDDEN_IN_USAGE]
        super().add_usage(usage, own, groups, prefix)

    def add_argument(self, action: argparse.Action) -> None:
        """Leave room for commands: argparse forgets that it indents them once more."""
        super().add_argument(action)
        if action.nargs == argparse.PARSER:
            self._action_max_length += self._indent_increment


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other error, not below ten lines of usage.

    What is added later costs nothing in the commands that are declared and not called.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:  # noqa: ANN401 - argparse's
        super().__init__(*arguments, **settings)
        self._later: list[Callable[[Parser], None]] = []

    def add_later(self, declare: "Callable[[Parser], None]") -> None:
        """Let `declare(parser)` add arguments when they are needed: to parse, or for help."""
        self._later.append(declare)

    def complete(self) -> None:
        """Add what was left for later."""
        while self._later:
            self._later.pop(0)(self)

    def parse_known_args(self, *arguments: Any, **settings: Any) -> Any:  # noqa: ANN401
        """Parse. Subparsers are called here, too."""
        self.complete()
        return super().parse_known_args(*arguments, **settings)

    def format_help(self) -> str:
        """The whole help."""
        self.complete()
        return super().format_help()

    def _parse_optional(self, arg_string: str) -> Any:  # noqa: ANN401 - argparse's
        """Take `-1M` for a value, as in `--size -1M`, where no option is called so."""
        if SMALLER.fullmatch(arg_string) and arg_string not in self._option_string_actions:
            return None
        return super()._parse_optional(arg_string)

    def error(self, message: str) -> NoReturn:
        """End the program with exit code 2."""
        with contextlib.suppress(OSError):  # nobody reads it
            sys.stderr.write(f"vaultway: {' '.join(message.split())} (see {self.prog} --help)\n")
        self.exit(2)


def add_noun(subparsers: Any, name: str, text: str, notes: str = "") -> Any:  # noqa: ANN401 - argparse has no public type for it
    """Declare a noun (`snapshot`) and return its subparsers, for `add_command`."""
    noun = subparsers.add_parser(
        name,
        help=text,
        description=text,
        epilog=notes,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    return noun.add_subparsers(dest="command", metavar="COMMAND", required=True)


def add_command(
    subparsers: Any,  # noqa: ANN401 - argparse has no public type for it
    name: str,
    handler: "Callable[[argparse.Namespace], int | None]",
    text: str,
    example: str,
    notes: str = "",
) -> Parser:
    """Declare one command: what it does, an example to copy, notes for the end of its help."""
    parser: Parser = subparsers.add_parser(
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
    parser: Parser, *, repository: bool = True, namespace: bool = True, positional: bool = False
) -> None:
    """Add `--config` and a flag for each option of a repository.

    Unless told otherwise also `--repository` (or a positional REPOSITORY) and `--ns`.
    """
    if not repository:
        pass
    elif positional:
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
    parser.add_later(_add_option_flags)
    parser.epilog = f"{parser.epilog or ''}\n{REPOSITORY_HELP}"


def _add_option_flags(parser: Parser) -> None:
    from store.cli.option_flags import add_option_flags

    add_option_flags(parser)


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
    from store.repositories import option_kinds

    try:
        return option_kinds.parse_boolean(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
