"""`vaultway snapshot files`: what a snapshot consists of, and what is in its archives."""

from typing import TYPE_CHECKING, Any

from store.cli.disks import add_disk_options
from store.cli.options import (
    add_command,
    add_key_options,
    add_output_option,
    add_repository_options,
    add_snapshot_argument,
    get_namespace,
    open_repository,
)
from store.cli.output import Column, render
from store.errors import InvalidName

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from store.cli.entries import Problems
    from store.format.pxar.entries import Entry
    from store.operations.browse.contents import Place
    from store.trees.base import FileTree

NOTES = """\
Without ARCHIVE it lists the snapshot's own files: indexes and blobs. With it what is in there, one
path a line, directories with a slash behind; of a disk image the partitions, and files in them:
  vaultway snapshot files vm/100 drive-scsi0.img/part1/etc

As JSON that is one object a line.
"""


def add_command_to(noun: Any) -> None:  # noqa: ANN401 - argparse has no public type for it
    """Declare the command."""
    command = add_command(
        noun,
        "files",
        files,
        "List the files of a snapshot, or those in one of its archives.",
        "vaultway snapshot files host/web01 root.pxar/etc -l",
        NOTES,
    )
    add_snapshot_argument(command)
    add = command.add_argument
    add("where", metavar="ARCHIVE[/PATH]", nargs="?", help="a tree or disk, or a directory in it")
    add("-R", "--recursive", action="store_true", help="all that is below, too")
    add("-l", "--long", action="store_true", help="with mode, owner, size and time")
    add_repository_options(command)
    add_key_options(command)
    add_disk_options(command)
    add_output_option(command)


def files(args: "argparse.Namespace") -> int:
    """Print one line a file."""
    if args.where is None:
        if args.long or args.recursive:
            raise InvalidName("name an archive to list with -l or -R, for example root.pxar")
        _list_files(args)
        return 0
    return _list_archive(args)


def _list_files(args: "argparse.Namespace") -> None:
    from store.cli.listing import file_records

    datastore, namespace = open_repository(args), get_namespace(args)
    snapshot = datastore.resolve_snapshot(namespace, args.snapshot)
    manifest = datastore.read_manifest(namespace, snapshot)
    rows = file_records(datastore, namespace, snapshot, manifest)
    if args.output_format == "text":
        rows.sort(key=lambda row: str(row["filename"]))
    columns = (Column("filename"), Column("crypt-mode"), Column("size", right=True))
    render(rows, args.output_format, columns)


def _list_archive(args: "argparse.Namespace") -> int:
    from store.cli.entries import Lines, Problems, entry_record, long_line, mark
    from store.cli.reading import Reading
    from store.trees.names import quote

    problems, reading = Problems(), Reading(args, args.snapshot)
    snapshot = reading.resolve(args.snapshot)
    with reading.contents(snapshot, args.where) as contents, Lines() as lines:
        place = contents.enter(args.where)
        if place.tree is None:
            raise InvalidName(f"{place}: is a file, not a tree; `snapshot cat` prints it")
        for path, entry in _below(place, place.tree, problems, recursive=args.recursive):
            if args.output_format != "text":
                with problems.noted(path):
                    lines.write_json(entry_record(path, entry, place.tree))
            elif args.long:
                lines.write(long_line(mark(path, entry), entry, place.tree))
            else:
                lines.write(quote(mark(path, entry)))
    return problems.exit_code


def _below(
    place: "Place", tree: "FileTree", problems: "Problems", *, recursive: bool
) -> "Iterator[tuple[bytes, Entry]]":
    """Paths, with the archive's name, and entries; of a file itself."""
    from store.format.pxar.entries import EntryKind
    from store.operations.browse.contents import spot_of
    from store.trees.walk import Walk

    spot = spot_of(place)
    head = place.archive.encode() + b"/"
    if spot.entry.kind is not EntryKind.DIRECTORY:
        yield head + spot.path, spot.entry
    elif recursive:
        walk = Walk(tree, lambda path, error: problems(head + path, error))
        for prefix, entry in walk.below(spot.entry, head + spot.prefix):
            yield prefix + entry.name, entry
    else:
        for entry in tree.iterate(spot.entry):
            yield head + spot.prefix + entry.name, entry
