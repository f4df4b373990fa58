"""`vaultway snapshot`: list, look into, annotate, protect and forget snapshots."""

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from store.cli import snapshot_cat, snapshot_diff, snapshot_files, snapshot_find
from store.cli.options import (
    add_command,
    add_noun,
    add_output_option,
    add_repository_options,
    add_snapshot_argument,
    get_namespace,
    open_repository,
    parse_boolean,
    parse_group,
    parse_text,
)
from store.cli.output import Column, human_size, human_time, print_json, render, render_record, say
from store.errors import InvalidName, NotFound
from store.names import BackupGroup, Snapshot

if TYPE_CHECKING:
    import argparse

    from store.datastore.datastore import Datastore
    from store.names import Namespace


def add_commands(subparsers: Any) -> None:  # noqa: ANN401 - argparse has no public type for it
    """Declare the commands."""
    noun = add_noun(subparsers, "snapshot", "List, look into, annotate, protect, forget snapshots.")
    command = add_command(
        noun,
        "list",
        list_snapshots,
        "List the snapshots of a namespace, or of one group, oldest first.",
        "vaultway snapshot list host/web01 --repository /srv/vault",
    )
    command.add_argument(
        "group", metavar="GROUP", nargs="?", type=parse_group, help="for example host/web01"
    )
    add_repository_options(command)
    add_output_option(command)
    for module in (snapshot_files, snapshot_find, snapshot_diff, snapshot_cat):
        module.add_command_to(noun)
    _add(noun, "show", show, "Show a snapshot's facts; as JSON, its manifest.")
    command = add_command(
        noun,
        "forget",
        forget,
        "Remove a snapshot. Its chunks stay until garbage collection.",
        "vaultway snapshot forget host/web01/2026-01-02T03:04:05Z --repository /srv/vault",
    )
    command.add_argument("snapshot", metavar="SNAPSHOT", help="type/id/time; never just type/id")
    add_repository_options(command)
    _add_notes(noun)
    _add_protected(noun)


def _add(
    noun: Any,  # noqa: ANN401 - argparse has no public type for it
    name: str,
    handler: "Any",  # noqa: ANN401
    text: str,
    output: str = "--output-format json-pretty",
    prefix: str = "",
) -> "argparse.ArgumentParser":
    """Declare a command on one SNAPSHOT."""
    example = f"vaultway snapshot {prefix}{name} host/web01 {output}".rstrip()
    command = add_command(noun, name, handler, text, example)
    add_snapshot_argument(command)
    add_repository_options(command)
    if output.startswith("--output-format"):
        add_output_option(command)
    return command


def _add_notes(noun: Any) -> None:  # noqa: ANN401
    notes = add_noun(noun, "notes", "Read or write a snapshot's notes.")
    _add(notes, "show", show_notes, "Print the notes.", prefix="notes ")
    text = "Replace the notes; an empty text removes them."
    command = _add(notes, "update", update_notes, text, '"before the upgrade"', "notes ")
    command.add_argument("notes", metavar="TEXT", type=parse_text)


def _add_protected(noun: Any) -> None:  # noqa: ANN401
    protected = add_noun(noun, "protected", "Read or set a snapshot's protection from removal.")
    _add(protected, "show", show_protected, "Print the protection.", prefix="protected ")
    text = "Protect a snapshot from removal, or no longer."
    command = _add(protected, "update", update_protected, text, "true", "protected ")
    command.add_argument("protected", metavar="true|false", type=parse_boolean)
    command = _add(noun, "protect", update_protected, "Protect a snapshot from removal.", "")
    command.set_defaults(protected=True)


def _target(args: "argparse.Namespace") -> "tuple[Datastore, Namespace, Snapshot]":
    datastore, namespace = open_repository(args), get_namespace(args)
    return datastore, namespace, datastore.resolve_snapshot(namespace, args.snapshot)


def list_snapshots(args: "argparse.Namespace") -> None:
    """Print one line a snapshot."""
    from store.cli.listing import short_names, snapshot_record

    datastore, namespace = open_repository(args), get_namespace(args)
    groups = [args.group] if args.group else sorted(datastore.list_groups(namespace))
    rows = []
    for group in groups:
        for snapshot in datastore.list_snapshots(namespace, group):
            with suppress(NotFound):  # removed meanwhile
                rows.append(snapshot_record(datastore, namespace, snapshot))
    if args.output_format == "text":
        for row in rows:
            group = BackupGroup(row["backup-type"], row["backup-id"])
            row["snapshot"] = Snapshot(group, row["backup-time"])
            row["files"] = short_names([file["filename"] for file in row["files"]])
    columns = (
        Column("snapshot"),
        Column("size", text=human_size, right=True),
        Column("files"),
    )
    render(rows, args.output_format, columns)


def show(args: "argparse.Namespace") -> None:
    """Print what is known of a snapshot."""
    import json

    from store.cli.listing import short_names, snapshot_record

    datastore, namespace, snapshot = _target(args)
    manifest = datastore.read_manifest(namespace, snapshot)
    if args.output_format != "text":
        print_json(json.loads(manifest.encode()), args.output_format)
        return
    record = snapshot_record(datastore, namespace, snapshot)
    record |= {"snapshot": snapshot, "notes": manifest.unprotected.get("notes")}
    columns = (
        Column("snapshot"),
        Column("backup-time", "local time", human_time),
        Column("owner"),
        Column("protected", text=lambda value: "yes" if value else "no"),
        Column("size", text=human_size),
        Column("files", text=lambda rows: short_names([row["filename"] for row in rows])),
        Column("fingerprint", "key fingerprint"),
        Column("verification", text=lambda state: str(state.get("state"))),
        Column("notes"),
    )
    render_record(record, "text", columns)


def forget(args: "argparse.Namespace") -> None:
    """Remove a snapshot. Only a full name will do: the newest one must not go by accident."""
    datastore, namespace = open_repository(args), get_namespace(args)
    if args.snapshot.count("/") != 2:
        raise InvalidName(f"snapshot {args.snapshot!r}: name it in full, as type/id/time")
    snapshot = Snapshot.parse(args.snapshot)
    datastore.forget_snapshot(namespace, snapshot)
    say(f"removed {snapshot}")


def show_notes(args: "argparse.Namespace") -> None:
    """Print the notes as they are, or as a JSON object."""
    datastore, namespace, snapshot = _target(args)
    notes = datastore.read_manifest(namespace, snapshot).unprotected.get("notes") or ""
    if args.output_format != "text":
        print_json({"notes": notes}, args.output_format)
    elif notes:
        say(str(notes))


def update_notes(args: "argparse.Namespace") -> None:
    """Replace the notes."""
    datastore, namespace, snapshot = _target(args)
    notes = args.notes or None
    datastore.update_manifest(
        namespace, snapshot, lambda manifest: manifest.with_unprotected(notes=notes)
    )


def show_protected(args: "argparse.Namespace") -> None:
    """Print true or false."""
    datastore, namespace, snapshot = _target(args)
    protected = datastore.is_protected(namespace, snapshot)
    if args.output_format == "text":
        say("true" if protected else "false")
    else:
        print_json({"protected": protected}, args.output_format)


def update_protected(args: "argparse.Namespace") -> None:
    """Set or lift the protection."""
    datastore, namespace, snapshot = _target(args)
    datastore.set_protected(namespace, snapshot, args.protected)
