"""`vaultway catalog`: the interactive restore shell, and a list of all that snapshots hold."""

import io
import sys
from typing import TYPE_CHECKING, Any

from store.cli.disks import add_disk_options
from store.cli.options import (
    add_command,
    add_key_options,
    add_noun,
    add_repository_options,
    add_snapshot_argument,
)
from store.errors import InvalidName, NotFound

if TYPE_CHECKING:
    import argparse

    from store.operations.browse.contents import Place, SnapshotContents

SHELL_NOTES = """\
commands: ls, cd, pwd, find, select, deselect, list-selected, clear-selected, restore,
  restore-selected, stat, cat, help, exit; `help` explains them. Tab completes, Ctrl-C ends a
  command, Ctrl-D the shell. Without a terminal it reads commands from standard input, and its exit
  code is that of the first one that failed.
"""


def add_commands(subparsers: Any) -> None:  # noqa: ANN401 - argparse has no public type for it
    """Declare the commands."""
    noun = add_noun(subparsers, "catalog", "Browse a snapshot in a shell; dump its catalog.")
    command = add_command(
        noun,
        "shell",
        shell,
        "Browse a tree or disk of a snapshot, and pick files to restore.",
        "vaultway catalog shell host/web01 root.pxar",
        SHELL_NOTES,
    )
    add_snapshot_argument(command)
    command.add_argument(
        "where",
        metavar="ARCHIVE[/PATH]",
        nargs="?",
        help="a tree (.pxar) or disk (.img), and where to begin (default: the only one)",
    )
    add_repository_options(command)
    add_key_options(command)
    add_disk_options(command)
    command = add_command(
        noun,
        "dump",
        dump,
        "Print kind and path of every entry of a snapshot's trees; of files size and time.",
        "vaultway catalog dump host/web01",
    )
    add_snapshot_argument(command)
    add_repository_options(command)
    add_key_options(command)


def shell(args: "argparse.Namespace") -> int:
    """Read commands until there are no more."""
    from store.cli.catalog_shell import Shell
    from store.cli.reading import Reading
    from store.cli.shell_terminal import batch, terminal
    from store.operations.browse.contents import spot_of

    reading = Reading(args, args.snapshot)
    with reading.contents(reading.resolve(args.snapshot), args.where) as contents:
        place = contents.enter(args.where) if args.where else _only_tree(contents)
        if place.tree is None:
            raise InvalidName(f"{place}: is a file, not a tree; `snapshot cat` prints it")
        session = Shell(contents.reader, place.tree, place.archive, spot_of(place))
        if sys.stdin.isatty() and sys.stdout.isatty():
            terminal(session)
            return 0
        if isinstance(sys.stdin, io.TextIOWrapper):  # names are bytes
            sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
        return batch(session, sys.stdin)


def _only_tree(contents: "SnapshotContents") -> "Place":
    """The archive that is meant when none is named. Raises NotFound, InvalidName."""
    names = contents.trees
    if not names:
        raise NotFound(f"{contents.reader.snapshot} has no tree of files")
    if len(names) > 1:
        raise InvalidName(f"name one of the snapshot's archives: {', '.join(names)}")
    return contents.enter(names[0])


def dump(args: "argparse.Namespace") -> int:
    """Print one line an entry."""
    from store.cli.entries import Lines, Problems, utc_time
    from store.cli.reading import Reading
    from store.format.pxar.entries import EntryKind
    from store.operations.browse.contents import TREE
    from store.operations.browse.find import find_in_snapshot
    from store.trees.matching import Query
    from store.trees.names import quote

    reading, problems = Reading(args, args.snapshot), Problems()
    with reading.contents(reading.resolve(args.snapshot)) as contents, Lines() as lines:
        for archive in [name for name in contents.archives if name.endswith(TREE)]:
            lines.write(f"d {archive}")
            for path, entry, _ in find_in_snapshot(
                contents, Query(), archive, names_only=True, on_error=problems
            ):
                line = f"{entry.kind.value.decode()} {quote(path)}"
                if entry.kind is EntryKind.FILE:
                    line += f" {entry.size} {utc_time(entry.metadata.mtime_s)}"
                lines.write(line)
    return problems.exit_code
