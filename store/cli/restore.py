"""`vaultway restore`: get an archive back."""

from typing import TYPE_CHECKING, Any

from store.cli.disks import add_disk_options
from store.cli.options import (
    add_command,
    add_key_options,
    add_output_option,
    add_repository_options,
    add_snapshot_argument,
)
from store.cli.output import has_stdout, human_rate, human_size, print_json, say
from store.cli.reading import Reading
from store.errors import InvalidName

if TYPE_CHECKING:
    import argparse

    from store.names import Snapshot
    from store.operations.restore.request import RestoreResult


STDOUT = "-"
OPERATION = "store.operations.restore.place"
NOTES = """\
target:
  of a tree (.pxar), or of a directory in one or in a disk
                        a directory, new or empty
  of a disk (.img)      a new file, or a block device
  of anything else      a new file
  -                     standard output, for a disk or file

patterns (as lines of .pxarexclude, taking instead of leaving out; the last match decides):
  etc/ssh               what is named so, anywhere: a directory with all in it
  /etc/ssh              only at the top
  **/*.conf             by ending      !**/*.bak    but not these
"""


def add_commands(subparsers: Any) -> None:  # noqa: ANN401 - argparse has no public type for it
    """Declare the command."""
    command = add_command(
        subparsers,
        "restore",
        restore,
        "Restore an archive of a snapshot: a tree, a disk or a file.",
        "vaultway restore host/web01 root.pxar /tmp/back --pattern '**/*.conf'",
        NOTES,
    )
    add_snapshot_argument(command)
    add = command.add_argument
    add("archive", metavar="ARCHIVE[/PATH]", help="root.pxar, drive-scsi0.img/part1/etc, …")
    add("target", metavar="TARGET", help="where to (below); - is standard output")
    add(
        "--pattern",
        metavar="PATTERN",
        action="append",
        default=[],
        help="of a tree, only what matches; repeatable",
    )
    add("--overwrite", action="store_true", help="replace files, merge into directories")
    add("--ignore-ownership", action="store_true", help="everything belongs to you")
    add(
        "--skip-zeros",
        action="store_true",
        help="on a block device, do not write zero blocks: it is zero there already",
    )
    add("--quiet", action="store_true", help="no progress, no summary")
    add_repository_options(command)
    add_key_options(command)
    add_disk_options(command)
    add_output_option(command)


def restore(args: "argparse.Namespace") -> None:
    """Restore the archive and say what it took."""
    import time

    if args.target == STDOUT and not has_stdout():
        raise InvalidName("standard output is closed; name another target")
    reading = Reading(args, args.snapshot, OPERATION)
    from store.cli.progress_bar import make_progress, write_line
    from store.operations.restore.place import restore_path
    from store.operations.restore.request import RestoreOptions

    snapshot = reading.resolve(args.snapshot)
    started = time.monotonic()
    with reading.contents(snapshot, args.archive) as contents:
        result = restore_path(
            contents,
            args.archive,
            args.target,
            RestoreOptions(
                overwrite=args.overwrite,
                ignore_ownership=args.ignore_ownership,
                skip_zeros=args.skip_zeros,
                progress=make_progress(quiet=args.quiet),
                on_warning=lambda text: write_line(f"warning: {text}"),
            ),
            patterns=args.pattern,
        )
    if not args.quiet:
        _say(result, snapshot, time.monotonic() - started, args)


def _say(
    result: "RestoreResult", snapshot: "Snapshot", seconds: float, args: "argparse.Namespace"
) -> None:
    from store.cli.progress_bar import write_line

    if args.output_format != "text" and args.target != STDOUT:
        record = {
            "snapshot": str(snapshot),
            "archive": result.archive,
            "target": result.target,
            "entries": result.entries,
            "size": result.bytes,
            "duration": round(seconds, 3),
            "warnings": result.warnings,
        }
        print_json(record, args.output_format)
        return
    size, rate = human_size(result.bytes), human_rate(result.bytes, seconds)
    is_tree = result.archive.endswith(".pxar") or result.entries > 1
    entries = f"{result.entries} entries, " if is_tree else ""
    warnings = f", {result.warnings} warnings" if result.warnings else ""
    text = f"{result.archive} of {snapshot}: {entries}{size} in {seconds:.1f} s, {rate}{warnings}"
    (write_line if args.target == STDOUT else say)(text)
