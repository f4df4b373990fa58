"""`vaultway head`: the writable states of groups on this machine: list, seal, discard them."""

import sys
from typing import TYPE_CHECKING, Any

from store.cli.options import (
    add_command,
    add_key_options,
    add_noun,
    add_output_option,
    add_repository_options,
    get_namespace,
    load_backup_keys,
    open_repository,
    parse_group,
)
from store.cli.output import Column, Row, human_size, human_time, print_json, render, say
from store.errors import InvalidName, NotFound

if TYPE_CHECKING:
    import argparse

    from store.cli.options import Parser
    from store.datastore.datastore import Datastore
    from store.heads import HeadInfo, Heads

NOTES = """\
A head is what was written to a group through a writable mount or export and is not in a snapshot
yet. It lies on this machine's disk, below ~/.local/state/vaultway/heads unless told otherwise.
A mount or export that has it open seals it itself when asked here, and goes on.
"""


def add_commands(subparsers: Any) -> None:  # noqa: ANN401 - argparse has no public type for it
    """Declare the commands."""
    noun = add_noun(subparsers, "head", "List, seal and discard what was written.", NOTES)
    command = add_command(
        noun,
        "list",
        list_heads,
        "List the heads of a repository on this machine.",
        "vaultway head list --repository /srv/vault",
    )
    _add_directory(command)
    add_repository_options(command)
    add_output_option(command)
    command = add_command(
        noun,
        "seal",
        seal,
        "Make a head the group's next snapshot.",
        "vaultway head seal host/web01 --repository /srv/vault",
    )
    _add_group(command)
    command.add_argument(
        "--strict",
        action="store_true",
        help="not if the group has a newer snapshot than the head stands on",
    )
    command.set_defaults(master_pubkey_file=None)  # the wrapped key of the snapshot below stays
    add_repository_options(command)
    add_key_options(command)
    add_output_option(command)
    command = add_command(
        noun,
        "discard",
        discard,
        "Drop a head, and all in it that was not sealed.",
        "vaultway head discard host/web01 --repository /srv/vault",
    )
    _add_group(command)
    command.add_argument("--yes", action="store_true", help="do not ask")
    add_repository_options(command)


def _add_group(command: "Parser") -> None:
    command.add_argument("group", metavar="GROUP", type=parse_group, help="for example host/web01")
    command.add_argument("--label", metavar="LABEL", default="", help="a clone, as `list` shows it")
    _add_directory(command)


def _add_directory(command: "Parser") -> None:
    command.add_argument(
        "--heads",
        metavar="DIRECTORY",
        help="where heads are (default: $XDG_STATE_HOME/vaultway/heads)",
    )


def list_heads(args: "argparse.Namespace") -> None:
    """Print one line a head."""
    from store.heads import Heads

    heads = Heads(open_repository(args), args.heads)
    rows = [_record(info) for info in heads.list()]
    columns = (
        Column("group"),
        Column("ns"),
        Column("label"),
        Column("base"),
        Column("archives", text=" ".join),
        Column("dirty", text=human_size, right=True),
        Column("changed", text=human_time),
        Column("holder"),
    )
    render(rows, args.output_format, columns)


def _record(info: "HeadInfo") -> Row:
    return {
        "group": str(info.group),
        "ns": str(info.namespace),
        "label": info.label,
        "base": None if info.base is None else str(info.base),
        "archives": list(info.archives),
        "dirty": info.dirty_bytes,
        "moved": info.moved_bytes,
        "created": info.created,
        "changed": info.changed,
        "holder": info.holder,
        "encrypted": info.encrypted,
    }


def seal(args: "argparse.Namespace") -> None:
    """Make the snapshot and print its name; who has the head open is asked to."""
    from store.heads import Heads
    from store.heads.control import is_served

    datastore = open_repository(args)
    heads = Heads(datastore, args.heads)
    info = _find(heads, args)
    path = heads.path(info.namespace, info.group, info.label)
    snapshot, base = _ask_holder(path, info, args) if is_served(path) else _seal(datastore, args)
    if args.output_format != "text":
        print_json({"snapshot": snapshot, "new": snapshot != base}, args.output_format)
    elif snapshot == base:
        say(f"nothing to seal: {args.group} is as {base} is")
    else:
        say(f"sealed {snapshot}")


def _ask_holder(path: str, info: "HeadInfo", args: "argparse.Namespace") -> tuple[str, str]:
    """The snapshot that a mount or export made of its head, and the one below.

    It has the key: nobody is asked for a passphrase here, in a cron job for example.
    """
    from store.heads.control import ask

    return str(ask(path, "seal", strict=args.strict)["snapshot"]), str(info.base)


def _seal(datastore: "Datastore", args: "argparse.Namespace") -> tuple[str, str]:
    """The same of a head that nobody has open."""
    from store.cli.progress_bar import make_progress
    from store.heads import Heads

    keys = load_backup_keys(args)
    heads = Heads(datastore, args.heads, key=keys.key, crypt_mode=keys.mode)
    with heads.open(get_namespace(args), args.group, label=args.label) as head:
        base = str(head.base)
        return str(head.seal(strict=args.strict, progress=make_progress(quiet=False))), base


def discard(args: "argparse.Namespace") -> None:
    """Ask, and drop it."""
    from store.heads import Heads

    heads = Heads(open_repository(args), args.heads)
    info = _find(heads, args)
    if not args.yes and not _is_sure(info):
        say("nothing discarded")
        return
    heads.discard(get_namespace(args), args.group, args.label)
    say(f"discarded the head of {args.group}")


def _find(heads: "Heads", args: "argparse.Namespace") -> "HeadInfo":
    namespace = get_namespace(args)
    for info in heads.list():
        if (info.namespace, info.group, info.label) == (namespace, args.group, args.label):
            return info
    raise NotFound(f"{args.group} has no head on this machine, in {heads.directory}")


def _is_sure(info: "HeadInfo") -> bool:
    if not sys.stdin.isatty():
        raise InvalidName("head discard: nobody to ask, use --yes")
    size = human_size(info.dirty_bytes)
    sys.stderr.write(f"Discard {size} written to {info.group} and not sealed? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
