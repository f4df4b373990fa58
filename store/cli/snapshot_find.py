"""`vaultway snapshot find`: which files are in a snapshot, or in all of a group."""

import argparse
from typing import TYPE_CHECKING, Any

from store.cli.disks import add_disk_options
from store.cli.options import (
    add_command,
    add_key_options,
    add_output_option,
    add_repository_options,
)
from store.errors import InvalidName, NotFound, StoreError
from store.names import BackupGroup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from store.cli.entries import Lines, Problems
    from store.cli.reading import Reading
    from store.names import Snapshot
    from store.operations.browse.contents import SnapshotContents
    from store.operations.browse.find import Found
    from store.trees.matching import Query

KINDS = "fdlbcps"
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
NOTES = """\
All tests given must hold; of several names (--name, --iname), and of several --path, one.

globs:
  *  ?  [a-z]           within one name; ** is any number of directories
  --path /etc/**/*.conf from the top of the archive
  --path ssh/*          anywhere

sizes (of files and symbolic links) and times:
  --size +1M            larger than 1 MiB; -1M smaller, 1M exactly; units k, M, G, T
  --newer 2d            modified in the last two days (s, m, h, d, w), or
  --newer 2026-01-02T03:04:05Z, --older the same

What is damaged or locked is left out with a warning, and makes the exit code its own.
As JSON that is one object a line.
"""


def add_command_to(noun: Any) -> None:  # noqa: ANN401 - argparse has no public type for it
    """Declare the command."""
    command = add_command(
        noun,
        "find",
        find,
        "Find files in a snapshot by name, kind, size and time; prints their paths.",
        "vaultway snapshot find host/web01 root.pxar/etc --name '*.conf' --newer 7d",
        NOTES,
    )
    add = command.add_argument
    add("snapshot", metavar="SNAPSHOT", help="type/id/time; type/id is the newest")
    add("where", metavar="ARCHIVE[/PATH]", nargs="?", help="where to look (default: everywhere)")
    add("--all-snapshots", action="store_true", help="in every snapshot of the group SNAPSHOT")
    for name, what in (
        ("name", "the name matches"),
        ("iname", "the same, whatever the case"),
        ("path", "the path in the archive matches (below)"),
    ):
        add(f"--{name}", metavar="GLOB", action="append", default=[], help=what)
    add("--type", metavar="KINDS", type=parse_kinds, default=(), help="f,d,l,b,c,p or s; several")
    add("--size", metavar="SIZE", action="append", default=[], help="+1M, -10k, 512 (below)")
    add("--newer", metavar="TIME", type=parse_when, help="modified then or later (below)")
    add("--older", metavar="TIME", type=parse_when, help="modified before")
    add("-l", "--long", action="store_true", help="with mode, owner, size and time")
    add("-0", "--print0", action="store_true", help="paths as they are, with a NUL after each")
    add_repository_options(command)
    add_key_options(command)
    add_disk_options(command)
    add_output_option(command)


def parse_kinds(text: str) -> tuple[str, ...]:
    """An argparse type: `f,d` or `fd`."""
    kinds = tuple(text.replace(",", ""))
    if not kinds or set(kinds) - set(KINDS):
        raise argparse.ArgumentTypeError(f"{text!r}: use letters of {','.join(KINDS)}")
    return kinds


def parse_when(text: str) -> int:
    """An argparse type: a time, or how long ago (`2d`)."""
    import time

    from store.cli.options import parse_time

    number, unit = text[:-1], text[-1:]
    if unit in UNITS_S and number.isascii() and number.isdigit():
        return int(time.time()) - int(number) * UNITS_S[unit]
    return parse_time(text)


def find(args: argparse.Namespace) -> int:
    """Print what matches while it is found."""
    from store.cli.entries import Lines, Problems
    from store.cli.reading import Reading

    query, problems = _query(args), Problems()
    reading = Reading(args, None if args.all_snapshots else args.snapshot)
    with Lines() as lines:
        for snapshot in _snapshots(args, reading):
            try:
                _find_in(args, reading, snapshot, query, lines, problems)
            except StoreError as error:
                if not args.all_snapshots:
                    raise
                # One has no such archive or path, or is damaged: the others are worth having.
                if not isinstance(error, NotFound):
                    problems(str(snapshot).encode(), error)
    return problems.exit_code


def _query(args: argparse.Namespace) -> "Query":
    from store.trees.matching import Query, SizeTest

    query = Query(
        names=args.name,
        inames=args.iname,
        paths=args.path,
        kinds=args.type,
        sizes=[SizeTest.parse(text) for text in args.size],
        newer=args.newer,
        older=args.older,
    )
    query.test(lambda entry: entry)  # a bad glob is found before anything is opened
    return query


def _snapshots(args: argparse.Namespace, reading: "Reading") -> "Iterator[Snapshot]":
    if not args.all_snapshots:
        yield reading.resolve(args.snapshot)
        return
    if args.snapshot.count("/") != 1:
        raise InvalidName(f"{args.snapshot!r}: --all-snapshots takes a group, type/id")
    group = BackupGroup.parse(args.snapshot)
    reading.datastore.latest_snapshot(reading.namespace, group)  # NotFound: there is none
    yield from reading.datastore.list_snapshots(reading.namespace, group)


def _find_in(
    args: argparse.Namespace,
    reading: "Reading",
    snapshot: "Snapshot",
    query: "Query",
    lines: "Lines",
    problems: "Problems",
) -> None:
    from store.operations.browse.find import find_in_snapshot

    names_only = args.output_format == "text" and not args.long
    head = f"{snapshot}/".encode() if args.all_snapshots else b""
    with reading.contents(snapshot, args.where) as contents:
        _check_trees(contents, args.where)
        for found in find_in_snapshot(
            contents,
            query,
            args.where,
            names_only=names_only,
            on_error=lambda path, error: problems(head + path, error),
        ):
            _print(args, found._replace(path=head + found.path), lines, problems)


def _check_trees(contents: "SnapshotContents", where: str | None) -> None:
    """Say so where there is nothing that could be searched. Raises NotFound."""
    if where is None and not contents.trees:
        raise NotFound(
            f"{contents.reader.snapshot} has no tree of files; it has "
            f"{', '.join(contents.archives)}"
        )


def _print(args: argparse.Namespace, found: "Found", lines: "Lines", problems: "Problems") -> None:
    from store.cli.entries import entry_record, long_line
    from store.trees.names import quote

    if args.print0:
        lines.write(found.path.decode("utf-8", "surrogateescape"), end="\0")
    elif args.output_format != "text":
        with problems.noted(found.path):
            lines.write_json(entry_record(found.path, found.entry, found.tree))
    elif args.long:
        lines.write(long_line(found.path, found.entry, found.tree))
    else:
        lines.write(quote(found.path))
