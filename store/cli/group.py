"""`vaultway group`: list backup groups, remove them, give them away."""

from typing import TYPE_CHECKING, Any

from store.cli.options import (
    add_command,
    add_noun,
    add_output_option,
    add_repository_options,
    get_namespace,
    open_repository,
    parse_group,
)
from store.cli.output import Column, render, say

if TYPE_CHECKING:
    import argparse

    from store.cli.options import Parser


def add_commands(subparsers: Any) -> None:  # noqa: ANN401 - argparse has no public type for it
    """Declare the commands."""
    noun = add_noun(subparsers, "group", "List backup groups, remove them, give them away.")
    command = add_command(
        noun,
        "list",
        list_groups,
        "List the backup groups of a namespace.",
        "vaultway group list --repository /srv/vault --ns prod",
    )
    add_repository_options(command)
    add_output_option(command)
    command = add_command(
        noun,
        "forget",
        forget,
        "Remove a group with all its snapshots. Chunks stay until garbage collection.",
        "vaultway group forget host/web01 --repository /srv/vault",
    )
    _add_group(command)
    command = add_command(
        noun,
        "change-owner",
        change_owner,
        "Give a group to another owner.",
        "vaultway group change-owner host/web01 backup@pbs --repository /srv/vault",
    )
    _add_group(command)
    command.add_argument("owner", metavar="OWNER", help="user@realm or user@realm!token")


def _add_group(command: "Parser") -> None:
    command.add_argument("group", metavar="GROUP", type=parse_group, help="for example host/web01")
    add_repository_options(command)


def list_groups(args: "argparse.Namespace") -> None:
    """Print the groups that have a finished snapshot."""
    from store.cli.listing import group_record, short_names
    from store.names import BackupGroup, Snapshot

    datastore, namespace = open_repository(args), get_namespace(args)
    groups = sorted(datastore.list_groups(namespace))
    rows = [row for group in groups if (row := group_record(datastore, namespace, group))]
    if args.output_format == "text":
        for row in rows:
            group = BackupGroup(row["backup-type"], row["backup-id"])
            row["group"], row["last snapshot"] = group, Snapshot(group, row["last-backup"])
    columns = (
        Column("group"),
        Column("last snapshot"),
        Column("backup-count", right=True),
        Column("files", text=short_names),
    )
    render(rows, args.output_format, columns)


def forget(args: "argparse.Namespace") -> None:
    """Remove a group."""
    open_repository(args).forget_group(get_namespace(args), args.group)
    say(f"removed {args.group}")


def change_owner(args: "argparse.Namespace") -> None:
    """Write the owner."""
    open_repository(args).change_owner(get_namespace(args), args.group, args.owner)
