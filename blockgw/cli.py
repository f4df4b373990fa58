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
    load_backup_keys,
    load_key,
    open_repository,
)
from store.errors import InvalidName

if TYPE_CHECKING:
    from blockgw.address import Address
    from blockgw.export import Selection
    from blockgw.launch import ExportRequest
    from blockgw.writing.selection import HeadSelection
    from store.cli.options import Parser
    from store.format.crypt import CryptConfig

DEFAULT_THREADS = 3  # store/notes/0009-nbd-thread-model.md

NOTES = """\
what to export:
  vm/100                                            the disks of its newest snapshot
  vm/100/2026-01-02T03:04:05Z                       the disks of that snapshot
  vm/100/drive-scsi0.img                            one disk, of the newest
  vm/100/2026-01-02T03:04:05Z/drive-scsi0.img       one disk
  --all                                             every disk of the datastore, or from --ns down
with --writable:
  vm/100/current                                    the disks of its head
  vm/100/current/drive-scsi0.img                    one; --size 10G makes it, or lets it grow
  vm/100, vm/100/TIME, either with /ARCHIVE         a clone of that snapshot

It stays in the foreground; the first line on stdout is the URI of the first disk, once it can be
opened. Ctrl-C or SIGTERM ends it. A Unix socket is open to its owner only; a TCP port, to all who
reach it: NBD knows no passwords.

what clients ask for (nbdinfo --list URI shows all names):
  vm/100/2026-01-02T03:04:05Z/drive-scsi0.img       the full name; ns/prod/vm/... in a namespace
  vm/100/latest/drive-scsi0.img                     of the newest snapshot
  drive-scsi0.img                                   if no other name ends so
  (no name)                                         the first disk of the newest snapshot
  vm/100/current/drive-scsi0.img                    of a head; a clone's are named as its snapshot's

what is written:
  It goes to the head, on this machine's disk (~/.local/state/vaultway/heads, or --heads). What a
  client has flushed survives a crash and a power failure; the next export goes on from there. It
  becomes the group's next snapshot by `vaultway head seal vm/100`, also while it is exported, or
  by itself with --seal: at the end of the export (close), or so long after the last write, and at
  the end (idle:SECONDS). A full journal (--journal) is sealed, too. One process has it at a time.
  A clone is thrown away when the export ends. With --label NAME it is kept, is exported again by
  the same name, and is sealed and discarded by `vaultway head seal|discard vm/100 --label NAME`.

then:
  qemu-system-x86_64 -snapshot -drive file=nbd+unix:///?socket=/run/vault.sock,format=raw ...
  qemu-img convert -f raw -O qcow2 'nbd+unix:///?socket=/run/vault.sock' disk.qcow2
  qemu-system-x86_64 -drive file=nbd+unix:///?socket=/run/vault.sock,format=raw,discard=unmap ...
"""


def add_commands(subparsers: Any) -> None:  # noqa: ANN401 - argparse has no public type for it
    """Declare the command."""
    command = add_command(
        subparsers,
        "export",
        run_export,
        "Serve disk images over NBD, to read or to write.",
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
    _add_writing_options(command)
    add_repository_options(command)
    add_key_options(command)
    command.set_defaults(master_pubkey_file=None)  # the wrapped key of the snapshot below stays


def _add_writing_options(command: "Parser") -> None:
    add = command.add_argument_group("to write").add_argument
    add("--writable", action="store_true", help="serve a head, or a clone of a snapshot")
    add(
        "--size",
        metavar="BYTES",
        type=parse_bytes,
        help="make the image so large, for example 10G, or let it grow",
    )
    add(
        "--seal",
        metavar="WHEN",
        help="close, manual or idle:SECONDS: when it becomes a snapshot (default: manual)",
    )
    add("--label", metavar="NAME", help="keep the clone by this name")
    add("--heads", metavar="DIRECTORY", help="where heads are, instead of ~/.local/state/…")
    add(
        "--journal",
        metavar="BYTES",
        type=parse_bytes,
        help="room for the head on this disk (default: 16G)",
    )


def run_export(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    from blockgw.launch import serve
    from store.cli.output import say

    def say_now(line: str) -> None:
        say(line)
        import sys

        sys.stdout.flush()

    serve(build_request(args), say_now)
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
    selection, key = _writable(args) if args.writable else (find_selection(args), load_key(args))
    settings = Settings(
        repository=args.settings,
        selection=selection,
        threads=args.threads,
        key=key.key if key else None,
    )
    return ExportRequest(settings, address)


def _writable(args: argparse.Namespace) -> "tuple[HeadSelection, CryptConfig | None]":
    """The head to serve, and the key for what is read and written. Raises InvalidName, NotFound."""
    from blockgw.writing.selection import HeadOptions, select_head
    from store.heads.sealing.policy import SealPolicy

    if args.all or args.what is None:
        raise InvalidName("--writable is of one head: name it, for example vm/100/current")
    keys = load_backup_keys(args)
    options = HeadOptions(
        SealPolicy.parse(args.seal or "manual"),
        keys.mode,
        args.heads and str(Path(args.heads).absolute()),
        args.journal,
        args.size,
    )
    with open_repository(args) as datastore:
        head = select_head(datastore, get_namespace(args), args.what, args.label or "", options)
    return head, keys.key


def find_selection(args: argparse.Namespace) -> "Selection":
    """What is to be served; which snapshot is the newest is decided here, once.

    Raises InvalidName, NotFound.
    """
    from blockgw.export import Selection, select

    for option in ("size", "seal", "label", "heads", "journal"):
        if getattr(args, option) is not None:
            raise InvalidName(f"--{option} is for --writable")
    if args.what and args.what.strip("/").split("/")[2:3] == ["current"]:
        raise InvalidName(f"{args.what} is a head, to write to: add --writable")
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


def parse_bytes(text: str) -> int:
    """An argparse type: `4096`, `256M`, `10G`; at least 1."""
    from store.repositories.option_kinds import parse_size

    try:
        size = parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
    if not size:
        raise argparse.ArgumentTypeError(f"{text!r}: use one byte or more")
    return size


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
