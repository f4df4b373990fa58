"""`vaultway backup`: make a snapshot of trees, disks and files."""

from typing import TYPE_CHECKING, Any

from store.cli.options import (
    add_command,
    add_key_options,
    add_output_option,
    add_repository_options,
    get_namespace,
    load_backup_keys,
    open_repository,
    parse_time,
)
from store.cli.output import Column, Row, human_rate, human_size, print_json, render, say
from store.errors import InvalidName
from store.names import BACKUP_TYPES, BackupGroup

if TYPE_CHECKING:
    import argparse

    from store.operations.backup import BackupRequest, BackupResult

EXIT_INCOMPLETE = 3

NOTES = """\
what to back up:
  NAME.pxar:DIRECTORY    a tree, with all its metadata
  NAME.img:DISK          a disk image or block device
  NAME.conf:FILE         a small file; also NAME.log:FILE

change detection of trees:
  legacy      every file is read; one archive and a catalog (PBS's default)
  data        every file is read; metadata and contents in an archive each
  metadata    as data, but files unchanged since the last backup are not read
"""


def add_commands(subparsers: Any) -> None:  # noqa: ANN401 - argparse has no public type for it
    """Declare the command."""
    command = add_command(
        subparsers,
        "backup",
        backup,
        "Back up trees, disks and files into a new snapshot.",
        "vaultway backup root.pxar:/ disk.img:/dev/vg/data --keyfile ~/vault.json",
        NOTES,
    )
    command.add_argument(
        "sources", metavar="NAME.TYPE:PATH", nargs="+", help="what to back up (below)"
    )
    _add_snapshot_options(command)
    _add_source_options(command)
    add_repository_options(command)
    add_key_options(command, master=True)
    add_output_option(command)


def _add_snapshot_options(command: "argparse.ArgumentParser") -> None:
    add = command.add_argument
    add("--backup-type", choices=BACKUP_TYPES, default="host", help="default: host")
    add("--backup-id", metavar="ID", help="default: this machine's name")
    add(
        "--backup-time",
        metavar="TIME",
        type=parse_time,
        help="seconds since 1970 or RFC 3339 (default: now)",
    )
    add("--owner", metavar="USER@REALM", help="owner of the group (default: keep, or root@pam)")
    add(
        "--sync-level",
        choices=("none", "filesystem", "file"),
        default="filesystem",
        help="how writes are made durable (default: filesystem)",
    )
    add("--dry-run", action="store_true", help="say what would be done, store nothing")
    add("--quiet", action="store_true", help="no progress, no summary")


def _add_source_options(command: "argparse.ArgumentParser") -> None:
    add = command.add_argument
    add(
        "--change-detection-mode",
        choices=("legacy", "data", "metadata"),
        default="legacy",
        help="how trees are written and changes found (default: legacy)",
    )
    add(
        "--exclude",
        metavar="PATTERN",
        action="append",
        default=[],
        help="leave out what matches, as a .pxarexclude line; repeatable",
    )
    add(
        "--include-dev",
        metavar="PATH",
        action="append",
        default=[],
        help="also the file system mounted there; repeatable",
    )
    add("--all-file-systems", action="store_true", help="all file systems mounted below")
    add("--skip-lost-and-found", action="store_true", help="leave out lost+found directories")
    add(
        "--chunk-size",
        metavar="KIB",
        type=int,
        default=4096,
        help="average chunk of trees, 64 to 4096, a power of two (default: 4096)",
    )
    add(
        "--payload-growth",
        metavar="FACTOR",
        type=float,
        help="metadata mode: how much larger than its files a re-used archive may get",
    )


def backup(args: "argparse.Namespace") -> int:
    """Make the snapshot and print what it took; EXIT_INCOMPLETE if it lacks what can't be read."""
    from store.cli.progress_bar import make_progress, write_line
    from store.operations.backup import run_backup

    request = _build_request(args)
    if args.dry_run:
        _explain(request, args.output_format)
        return 0
    result = run_backup(
        request,
        make_progress(quiet=args.quiet),
        lambda text: write_line(f"warning: {text}"),
    )
    if args.output_format != "text":
        print_json(_record(result, request), args.output_format)
    elif not args.quiet:
        _summarize(result)
    if not result.unreadable:
        return 0
    write_line(f"{result.unreadable} {_names(result)} could not be read: not in {result.snapshot}")
    return EXIT_INCOMPLETE


def _build_request(args: "argparse.Namespace") -> "BackupRequest":
    import time

    from store.datastore.snapshots import SyncLevel
    from store.operations.backup import BackupRequest, BackupSource, ChangeDetectionMode

    if args.all_file_systems and args.include_dev:
        raise InvalidName("--all-file-systems and --include-dev exclude each other")
    sources = tuple(BackupSource.parse(text) for text in args.sources)
    group = BackupGroup(
        args.backup_type, _host_name() if args.backup_id is None else args.backup_id
    )
    growth = {} if args.payload_growth is None else {"payload_growth": args.payload_growth}
    namespace, datastore, keys = get_namespace(args), open_repository(args), load_backup_keys(args)
    return BackupRequest(
        datastore=datastore,
        namespace=namespace,
        group=group,
        time=int(time.time()) if args.backup_time is None else args.backup_time,
        sources=sources,
        key=keys.key,
        crypt_mode=keys.mode,
        master_public_key=keys.master_public_key,
        key_file=keys.key_file,
        change_detection_mode=ChangeDetectionMode(args.change_detection_mode),
        exclude=tuple(args.exclude),
        include_devices=tuple(args.include_dev),
        all_file_systems=args.all_file_systems,
        skip_lost_and_found=args.skip_lost_and_found,
        chunk_size=args.chunk_size << 10,
        owner=args.owner,
        sync_level=SyncLevel(args.sync_level),
        **growth,
    )


def _names(result: "BackupResult") -> str:
    return "file or directory" if result.unreadable == 1 else "files and directories"


def _host_name() -> str:
    import platform

    return platform.node()


def _explain(request: "BackupRequest", output_format: str) -> None:
    """What --dry-run prints."""
    from pathlib import Path

    from store.errors import SourceError

    for source in request.sources:
        if not Path(source.path).exists():
            raise SourceError(f"{source.path}: not there")
    if output_format != "text":
        print_json({**_ident(request), "dry-run": True}, output_format)
        return
    for source in request.sources:
        say(f"would back up {source.path} as {source.archive}")
    say(f"would create {request.snapshot} (encryption: {request.crypt_mode})")


def _ident(request: "BackupRequest") -> Row:
    return {
        "backup-type": request.group.type,
        "backup-id": request.group.id,
        "backup-time": request.time,
        "ns": str(request.namespace),
    }


def _record(result: "BackupResult", request: "BackupRequest") -> Row:
    return {
        **_ident(request),
        "duration": round(result.duration_s, 3),
        "files": [
            {"filename": file.filename, "crypt-mode": str(file.crypt_mode), "size": file.size}
            for file in result.files
        ],
        "size": result.source_bytes,
        "stored": result.stored_bytes,
        "reused": result.reused_bytes,
        "new-chunks": result.new_chunks,
        "known-chunks": result.known_chunks,
        "warnings": result.warnings,
        "unreadable": result.unreadable,
    }


def _summarize(result: "BackupResult") -> None:
    rows = [{"filename": file.filename, "size": file.size} for file in result.files]
    render(rows, "text", (Column("filename"), Column("size", text=human_size, right=True)))
    rate = human_rate(result.source_bytes, result.duration_s)
    size = human_size(result.source_bytes)
    say(f"{result.snapshot}: {size} in {result.duration_s:.1f} s, {rate}")
    new, known = _count(result.new_chunks, "new chunk"), _count(result.known_chunks, "chunk")
    say(f"stored {human_size(result.stored_bytes)} in {new}; {known} known already")
    if result.reused_bytes:
        say(f"re-used {human_size(result.reused_bytes)} without reading")
    if result.warnings:
        say(_count(result.warnings, "warning"))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
