"""`vaultway datastore`: create one, see how full and how fast it is."""

from typing import TYPE_CHECKING, Any

from store.cli import datastore_benchmark
from store.cli.options import (
    add_command,
    add_noun,
    add_output_option,
    add_repository_options,
    open_repository,
)
from store.cli.output import Column, human_size, render_record, say

if TYPE_CHECKING:
    import argparse


def add_commands(subparsers: Any) -> None:  # noqa: ANN401 - argparse has no public type for it
    """Declare the commands."""
    noun = add_noun(subparsers, "datastore", "Create a datastore, see how full and how fast it is.")
    command = add_command(
        noun,
        "create",
        create,
        "Create an empty datastore that Proxmox Backup Server can use, too.",
        "vaultway datastore create /srv/vault",
    )
    add_repository_options(command, namespace=False, positional=True)
    command = add_command(
        noun,
        "status",
        status,
        "Show the size of the storage below a datastore.",
        "vaultway datastore status --repository /srv/vault --output-format json-pretty",
    )
    add_repository_options(command, namespace=False)
    add_output_option(command)
    datastore_benchmark.add_command_to(noun)


def create(args: "argparse.Namespace") -> None:
    """Create the datastore REPOSITORY."""
    from store.cli.progress_bar import make_progress
    from store.datastore.repository import create_datastore

    create_datastore(args.repository, make_progress())
    say(f"created datastore {args.repository}")


def status(args: "argparse.Namespace") -> None:
    """Print total, used and available bytes."""
    found = open_repository(args).status()
    record = {
        "total": found.total,
        "used": found.used,
        "avail": found.avail,
        "backend-type": "filesystem",
    }

    def share(size: int) -> str:
        return f"{human_size(size)} ({100 * size / max(found.total, 1):.2f} %)"

    columns = (
        Column("total", text=human_size),
        Column("used", text=share),
        Column("avail", text=share),
    )
    render_record(record, args.output_format, columns)
