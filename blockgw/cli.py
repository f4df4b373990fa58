"""`vaultway export`. Cheap to import: the store and the launcher come in when the command runs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from store.cli.options import (
    add_command,
    add_key_options,
    add_repository_options,
    get_namespace,
    get_settings,
    load_key,
    open_repository,
)
from store.errors import InvalidName

if TYPE_CHECKING:
    from blockgw.address import Address
    from blockgw.export import Selection
    from blockgw.launch import ExportRequest

DEFAULT_THREADS = 3  # store/notes/0009-nbd-thread-model.md

NOTES = """\
what to export:
  vm/100                                            the disks of its newest snapshot
  vm/100/2026-01-02T03:04:05Z                       the disks of that snapshot
  vm/100/drive-scsi0.img                            one disk, of the newest
  vm/100/2026-01-02T03:04:05Z/drive-scsi0.img       one disk
  --all                                             every disk of the datastore, or from --ns down

It stays in the foreground; the first line on stdout is the URI of the first disk, once it can be
opened. Ctrl-C or SIGTERM ends it. A Unix socket is open to its owner only; a TCP port, to all who
reach it: NBD knows no passwords.

what clients ask for (nbdinfo --list URI shows all names):
  vm/100/2026-01-02T03:04:05Z/drive-scsi0.img       the full name; ns/prod/vm/... in a namespace
  vm/100/latest/drive-scsi0.img                     of the newest snapshot
  drive-scsi0.img                                   if no other name ends so
  (no name)                                         the first disk of the newest snapshot

then:
  qemu-system-x86_64 -snapshot -drive file=nbd+unix:///?socket=/run/vault.sock,format=raw ...
  qemu-img convert -f raw -O qcow2 'nbd+unix:///?socket=/run/vault.sock' disk.qcow2
"""


def add_commands(subparsers: Any) -> None:  # noqa: ANN401 - argparse has no public type for it
    """Declare the command."""
    command = add_command(
        subparsers,
        "export",
        run_export,
        "Serve disk images over NBD, read-only.",
        "vaultway export vm/100 --socket /run/vault.sock",
        NOTES,
    )
    add = command.add_argument
    add("what", metavar="SNAPSHOT[/ARCHIVE]", nargs="?", help="below")
    add("--all", action="store_true", help="every image of the datastore")
    where = command.add_mutually_exclusive_group()
    where.add_argument("--socket", metavar="PATH", type=Path, help="listen on this Unix socket")
    where.add_argument(
        "--port", metavar="N", type=parse_port, help="or on this TCP port (default: 10809)"
    )
    add("--address", metavar="ADDRESS", help="local address of the port (default: 127.0.0.1)")
    add(
        "--threads",
        metavar="N",
        type=parse_threads,
        default=DEFAULT_THREADS,
        help="requests at once per connection (default: 3; always 1 with nbdkit before 1.34)",
    )
    add_repository_options(command)
    add_key_options(command)


def run_export(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    from blockgw.launch import serve
    from store.cli.output import say

    def ready(uri: str) -> None:
        say(uri)
        import sys

        sys.stdout.flush()

    serve(build_request(args), ready)
    return 0


def build_request(args: argparse.Namespace) -> "ExportRequest":
    """Turn the arguments into one request.

    Raises InvalidName, NotFound, and what `load_key` does.
    """
    from blockgw.launch import ExportRequest
    from blockgw.settings import Settings
    from store.repositories.credentials import with_secrets

    address = find_address(args)
    args.settings = with_secrets(get_settings(args))  # once: a command may ask somebody
    selection = find_selection(args)
    key = load_key(args)
    settings = Settings(
        repository=args.settings,
        selection=selection,
        threads=args.threads,
        key=key.key if key else None,
    )
    return ExportRequest(settings, address)


def find_selection(args: argparse.Namespace) -> "Selection":
    """What is to be served; which snapshot is the newest is decided here, once.

    Raises InvalidName, NotFound.
    """
    from blockgw.export import Selection, select

    if bool(args.what) == args.all:
        raise InvalidName("what to export? give a snapshot, for example vm/100, or --all")
    with open_repository(args) as datastore:
        namespace = get_namespace(args)
        return Selection(namespace) if args.all else select(datastore, namespace, args.what)


def find_address(args: argparse.Namespace) -> "Address":
    """Where to listen. Raises InvalidName."""
    from blockgw.address import DEFAULT_ADDRESS, DEFAULT_PORT, TcpAddress, UnixAddress

    if args.socket is None:
        return TcpAddress(args.address or DEFAULT_ADDRESS, args.port or DEFAULT_PORT)
    if args.address is not None:
        raise InvalidName("--socket and --address exclude each other")
    return UnixAddress(args.socket.absolute())


def parse_port(text: str) -> int:
    """An argparse type: 1 to 65535."""
    return _parse_number(text, 1, 65535)


def parse_threads(text: str) -> int:
    """An argparse type: 1 to 64."""
    return _parse_number(text, 1, 64)


def _parse_number(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"{text!r}: use {least} to {most}")
    return int(text)
