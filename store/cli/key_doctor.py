"""`vaultway key doctor`: what could not be restored today with the keys at hand."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from store.cli.encryption import unlock
from store.cli.key_files import DEFAULT_KEY_NAME, default_place, find_default, read_key_file
from store.cli.master_key import open_master_key
from store.cli.options import (
    KEY_HELP,
    add_command,
    add_output_option,
    add_repository_options,
    get_namespace,
)
from store.cli.output import print_json, say
from store.cli.repository import configured_keyfile, open_without_cache
from store.errors import KeyRequired, StoreError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from store.cli.output import Row
    from store.format.crypt import CryptConfig
    from store.names import Fingerprint
    from store.operations.doctor import Diagnosis, Finding, HeldKeys

log = logging.getLogger(__name__)

PVE_KEYS = Path("/etc/pve/priv/storage")
"""Where a Proxmox VE host keeps the keys of its storages, `NAME.enc`: in PBS's format."""

NOTES = f"""\
Reads every snapshot's manifest, indexes and small files, and opens the first chunk that is not
zeros of each archive; what snapshots share is opened once. For every chunk, verify.

exit code: 0 all opens; 13 a key is missing; 15 something is damaged; 16 the storage failed.

{KEY_HELP}"""


def add_commands(noun: Any) -> None:  # noqa: ANN401 - argparse has no public type for it
    """Declare the command, below `key`."""
    command = add_command(
        noun,
        "doctor",
        doctor,
        "Open one chunk of every archive with what you hold; list what could not be restored.",
        "vaultway key doctor --repository /srv/vault --keyfile ~/vault.json --keyfile old.json",
        NOTES,
    )
    add = command.add_argument
    add(
        "--keyfile",
        dest="keyfiles",  # a repository has one at most
        metavar="PATH",
        action="append",
        help="a key you hold, beside the repository's; repeatable (default: the default key)",
    )
    add(
        "--master-keyfile",
        metavar="PATH",
        help="a master private key you hold: opens what carries its key for it",
    )
    add("--quiet", action="store_true", help="no progress")
    add_repository_options(command)
    add_output_option(command)


def doctor(args: "argparse.Namespace") -> int:
    """Examine the namespace and all below it; the exit code says what was found."""
    from store.cli.progress_bar import make_progress
    from store.operations.doctor import examine

    namespace, configured = get_namespace(args), configured_keyfile(args)
    paths = [*map(Path, args.keyfiles or ()), *([configured] if configured else [])]
    keys = hold_keys(paths, args.master_keyfile)
    with open_without_cache(args) as datastore:
        diagnosis = examine(datastore, namespace, keys, make_progress(quiet=args.quiet))
    _render(diagnosis, args.output_format)
    return diagnosis.exit_code


def hold_keys(paths: list[Path], master_path: str | None) -> "HeldKeys":
    """Open the key files of `paths`, or the default one, and look for others to point at.

    One that does not open is reported where it is missed: the rest is examined all the same.

    Raises:
        NotFound, PermissionDenied, FormatError: a named file can't be read, or is no key file.
    """
    from store.operations.doctor import HeldKeys

    default = find_default(DEFAULT_KEY_NAME)
    opened: dict[Fingerprint, CryptConfig] = {}
    known: dict[Fingerprint, str] = dict(_key_files_elsewhere())
    for path in paths or ([default] if default is not None else []):
        key_file = read_key_file(path)
        try:
            key = unlock(key_file, f"Passphrase of {path}")
        except KeyRequired as error:
            log.warning("%s was not opened: %s", path, error)
            if key_file.fingerprint is not None:
                known[key_file.fingerprint] = f"{path}, which was not opened: {error}"
        else:
            opened[key.fingerprint] = key
    return HeldKeys(opened, known, _master_key(master_path))


def _key_files_elsewhere() -> "Iterator[tuple[Fingerprint, str]]":
    """Key files in the usual places: their fingerprints are readable without a passphrase."""
    for folder, pattern in (
        (default_place(DEFAULT_KEY_NAME).parent, "*.json"),
        (PVE_KEYS, "*.enc"),
    ):
        for path in sorted(folder.glob(pattern)) if os.access(folder, os.R_OK) else ():
            try:
                fingerprint = read_key_file(path).fingerprint
            except StoreError:
                continue  # some other file
            if fingerprint is not None:
                yield fingerprint, f"{path} (give it with --keyfile)"


def _master_key(path: str | None) -> "Callable[[bytes], CryptConfig] | None":
    if path is None:
        return None
    unwrap = open_master_key(Path(path))
    return lambda wrapped: unwrap(wrapped).unlock()


def _render(diagnosis: "Diagnosis", output_format: str) -> None:
    rows = [_row(finding) for finding in diagnosis.findings]
    if output_format != "text":
        counts = {"snapshots": diagnosis.snapshots, "chunks": diagnosis.chunks}
        print_json({**counts, "findings": rows}, output_format)
        return
    for finding in diagnosis.findings:
        say(f"{_name(finding)}: {finding.reason}")
    bad = len({(finding.namespace, finding.snapshot) for finding in diagnosis.findings})
    verdict = f"{bad} could not be restored in full today" if bad else "all can be opened"
    say(f"{diagnosis.snapshots} snapshots, {diagnosis.chunks} chunks opened: {verdict}")


def _name(finding: "Finding") -> str:
    where = f" in namespace {finding.namespace}" if finding.namespace.components else ""
    archive = f"/{finding.archive}" if finding.archive else ""
    return f"{finding.snapshot}{archive}{where}"


def _row(finding: "Finding") -> "Row":
    row: Row = {
        "ns": str(finding.namespace),
        "snapshot": str(finding.snapshot),
        "archive": finding.archive,
        "reason": finding.reason,
        "exit-code": finding.exit_code,
    }
    if finding.fingerprint is not None:
        row["fingerprint"] = str(finding.fingerprint)
        row["key-file"] = finding.key_file
        row["rsa-encrypted-key"] = finding.has_wrapped_key
    return row
