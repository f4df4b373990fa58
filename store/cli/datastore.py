"""`vaultway datastore`: create one, see how full and how fast it is."""

from typing import TYPE_CHECKING, Any

from store.cli import datastore_benchmark
from store.cli.options import (
    add_command,
    add_noun,
    add_output_option,
    add_repository_options,
    get_settings,
    open_repository,
)
from store.cli.output import Column, human_size, print_json, render_record, say

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
    from store.repositories.repository import create_datastore

    create_datastore(get_settings(args), make_progress())
    say(f"created datastore {args.repository}")


def status(args: "argparse.Namespace") -> None:
    """Print total, used and available bytes, as far as the storage knows: a bucket has no size."""
    with open_repository(args) as datastore:
        found, is_bucket = datastore.status(), datastore.backend.is_object_store
    sizes: dict[str, int | None] = {
        "total": found.total or None,
        "used": found.used if found.total or found.used else None,
        "avail": found.avail if found.total else None,
    }
    kind = {"backend-type": "s3" if is_bucket else "filesystem"}
    if args.output_format != "text":
        print_json(sizes | kind, args.output_format)
        return
    texts = {name: _text(size, found.total * (name != "total")) for name, size in sizes.items()}
    render_record(texts | kind, "text", tuple(map(Column, texts | kind)))


def _text(size: int | None, total: int) -> str:
    """A size, and its share of `total` if that is known."""
    if size is None:
        return "unknown"
    return human_size(size) + (f" ({100 * size / total:.2f} %)" if total else "")
