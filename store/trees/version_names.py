"""What a version of a file is called: the time of its snapshot, and the file's own extension.

So that `report.docx/2026-01-02T03:04:05Z.docx` opens with the right program. A double extension
counts when its first half is `.tar`.
"""

import re

from store.names import format_backup_time

EXTENSION = re.compile(rb"\.?[^.].*?((?:\.tar)?\.[A-Za-z0-9]{1,16})", re.DOTALL)
VERSION = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ(?:\.[A-Za-z0-9.]{1,20})?")


def version_name(time: int, file: bytes) -> bytes:
    """The name of the version of a file that a snapshot of this time has.

    Args:
        time: in seconds since the epoch.
        file: its name.
    """
    match = EXTENSION.fullmatch(file)
    return format_backup_time(time).encode() + (match[1] if match else b"")


def is_version_name(name: bytes) -> bool:
    """Whether a version may be called so."""
    return VERSION.fullmatch(name) is not None
