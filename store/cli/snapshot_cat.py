"""`vaultway snapshot cat`: the bytes of files in a snapshot."""

from typing import TYPE_CHECKING, Any

from store.cli.disks import add_disk_options
from store.cli.options import (
    add_command,
    add_key_options,
    add_repository_options,
    add_snapshot_argument,
)
from store.cli.output import has_stdout, say_bytes
from store.errors import InvalidName

if TYPE_CHECKING:
    import argparse


def add_command_to(noun: Any) -> None:  # noqa: ANN401 - argparse has no public type for it
    """Declare the command."""
    command = add_command(
        noun,
        "cat",
        cat,
        "Write files of a snapshot to standard output, one after the other.",
        "vaultway snapshot cat host/web01 root.pxar/etc/fstab > fstab",
        "paths:\n  root.pxar/etc/fstab   drive-scsi0.img/part1/etc/fstab   drive-scsi0.img"
        "   qemu-server.conf\nSymbolic links are followed, within their tree.\n",
    )
    add_snapshot_argument(command)
    command.add_argument(
        "paths", metavar="ARCHIVE[/PATH]", nargs="+", help="a file, a whole image, or a blob"
    )
    add_repository_options(command)
    add_key_options(command)
    add_disk_options(command)


def cat(args: "argparse.Namespace") -> None:
    """Write all of them; the first that cannot be read ends it."""
    from store.cli.reading import Reading
    from store.operations.browse.cat import read_file

    if not has_stdout():
        raise InvalidName("standard output is closed")
    reading = Reading(args, args.snapshot)
    with reading.contents(reading.resolve(args.snapshot), *args.paths) as contents:
        for path in args.paths:
            for piece in read_file(contents, path):
                say_bytes(piece)
