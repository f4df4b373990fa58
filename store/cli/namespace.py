"""`vaultway namespace`: list, create and delete namespaces."""

from typing import TYPE_CHECKING, Any

from store.cli.options import (
    add_command,
    add_noun,
    add_output_option,
    add_repository_options,
    get_namespace,
    open_repository,
)
from store.cli.output import Column, print_json, render
from store.errors import InvalidName
from store.names import MAX_NAMESPACE_DEPTH, Namespace

if TYPE_CHECKING:
    import argparse

    from store.cli.options import Parser

DELETE_NOTES = """\
Groups in it are kept, and the command fails, unless --delete-groups is given; namespaces
in it are deleted with it.
"""


def add_commands(subparsers: Any) -> None:  # noqa: ANN401 - argparse has no public type for it
    """Declare the commands."""
    noun = add_noun(subparsers, "namespace", "List, create and delete namespaces.")
    command = add_command(
        noun,
        "list",
        list_namespaces,
        "List the namespaces below --ns, itself included.",
        "vaultway namespace list --repository /srv/vault",
    )
    add_repository_options(command)
    command.add_argument(
        "--max-depth",
        type=int,
        choices=range(MAX_NAMESPACE_DEPTH + 1),
        default=MAX_NAMESPACE_DEPTH,
        metavar="N",
        help=f"levels below --ns, 0 to {MAX_NAMESPACE_DEPTH} (default: all)",
    )
    add_output_option(command)
    command = add_command(
        noun,
        "create",
        create,
        "Create a namespace. Its parent must be there already.",
        "vaultway namespace create prod --repository /srv/vault",
    )
    _add_namespace(command)
    command = add_command(
        noun,
        "delete",
        delete,
        "Delete a namespace.",
        "vaultway namespace delete prod/customer-x --delete-groups",
        DELETE_NOTES,
    )
    _add_namespace(command)
    command.add_argument(
        "--delete-groups", action="store_true", help="delete the backups in it, too"
    )


def _add_namespace(command: "Parser") -> None:
    command.add_argument("namespace", metavar="NAMESPACE", nargs="?", help="or --ns NAMESPACE")
    add_repository_options(command)


def list_namespaces(args: "argparse.Namespace") -> None:
    """Print the namespaces, depth first."""
    parent = get_namespace(args)
    found = open_repository(args).list_namespaces(parent, args.max_depth)
    rows = [{"ns": str(namespace)} for namespace in found]
    if args.output_format == "text":
        render(rows, "text", (Column("ns"),))
    else:
        print_json({"data": rows}, args.output_format)


def create(args: "argparse.Namespace") -> None:
    """Create one."""
    open_repository(args).create_namespace(_named(args))


def delete(args: "argparse.Namespace") -> None:
    """Delete one."""
    open_repository(args).delete_namespace(_named(args), delete_groups=args.delete_groups)


def _named(args: "argparse.Namespace") -> Namespace:
    """The namespace of the argument or of --ns; never that of the environment, never the root."""
    if args.namespace is not None and args.ns is not None:
        raise InvalidName("name the namespace once: as an argument or with --ns")
    args.ns = args.ns or args.namespace
    if not args.ns:
        raise InvalidName("which namespace? Name it, for example prod/web")
    return get_namespace(args)
