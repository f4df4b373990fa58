"""`vaultway snapshot diff`: what differs between two snapshots."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from store.cli.disks import add_disk_options
from store.cli.options import (
    add_command,
    add_key_options,
    add_output_option,
    add_repository_options,
)
from store.cli.output import human_size

if TYPE_CHECKING:
    import argparse

    from store.operations.browse.diff import Difference

NOTES = """\
letters:
  +  only in B          -  only in A
  M  modified           U  other owner, mode, time or attributes only
  T  another type       ?  other content, but the same metadata (--content finds those)

Without --content a file is modified when its size or time is another. Directories have a slash
behind their name. Images are compared by their indexes: no chunk is read.
A tree costs what differs: directories that are stored alike are not looked into.
"""
WORDS = {"+": "added", "-": "removed", "M": "modified", "U": "changed", "T": "of another type"}


def add_command_to(noun: Any) -> None:  # noqa: ANN401 - argparse has no public type for it
    """Declare the command."""
    command = add_command(
        noun,
        "diff",
        diff,
        "Show what differs between two snapshots: files of trees, stretches of images.",
        "vaultway snapshot diff host/web01/2026-01-02T03:04:05Z host/web01 root.pxar",
        NOTES,
    )
    add = command.add_argument
    add("before", metavar="A", help="a snapshot: type/id/time, or type/id for the newest")
    add("after", metavar="B", help="another")
    add("where", metavar="ARCHIVE[/PATH]", nargs="?", help="what to compare (default: all)")
    add("--content", action="store_true", help="compare what files contain, not their times")
    add("-v", "--verbose", action="store_true", help="of images each stretch")
    add("--quiet", action="store_true", help="no summary")
    add_repository_options(command)
    add_key_options(command)
    add_disk_options(command)
    add_output_option(command)


def diff(args: "argparse.Namespace") -> int:
    """Print one line a difference, and on stderr how many."""
    from store.cli.entries import Lines, Problems
    from store.cli.progress_bar import write_line
    from store.cli.reading import Reading
    from store.operations.browse.diff import diff_snapshots

    problems = Problems()
    counts: Counter[str] = Counter()
    reading = Reading(args, args.before)
    with (
        reading.contents(reading.resolve(args.before), args.where) as before,
        reading.contents(reading.resolve(args.after), args.where) as after,
        Lines() as lines,
    ):
        for found in diff_snapshots(
            before, after, args.where, content=args.content, on_error=problems
        ):
            counts[found.letter.value] += 1
            if args.output_format != "text":
                lines.write_json(_record(found))
            else:
                for line in _lines(found, verbose=args.verbose):
                    lines.write(line)
    if not args.quiet and args.output_format == "text":
        write_line(_summary(counts, incomplete=bool(problems.exit_code)))
    return problems.exit_code


def _lines(found: "Difference", *, verbose: bool) -> list[str]:
    from store.operations.browse.tree_diff import Change
    from store.trees.names import quote

    slash = "/" if isinstance(found, Change) and found.is_directory else ""
    line = f"{found.letter.value} {quote(found.path)}{slash}"
    if isinstance(found, Change) or not found.stretches:
        return [line]
    plural = "" if found.chunks == 1 else "s"
    lines = [f"{line}: {found.chunks} chunk{plural}, {human_size(found.bytes)}"]
    if verbose:
        lines += [f"    {offset:#x} {human_size(size)}" for offset, size, _ in found.stretches]
    return lines


def _record(found: "Difference") -> dict[str, Any]:
    from store.cli.entries import json_text
    from store.operations.browse.tree_diff import Change

    record: dict[str, Any] = {"change": found.letter.value, **json_text("path", found.path)}
    if not isinstance(found, Change) and found.stretches:
        record |= {"chunks": found.chunks, "bytes": found.bytes}
        record["stretches"] = [{"offset": o, "size": s} for o, s, _ in found.stretches]
    return record


def _summary(counts: "Counter[str]", *, incomplete: bool) -> str:
    parts = [f"{counts[letter]} {word}" for letter, word in WORDS.items() if counts[letter]]
    if counts["?"]:
        parts.append(f"{counts['?']} with other content and the same metadata")
    text = ", ".join(parts) or "no differences"
    return f"{text} in what could be compared" if incomplete else text
