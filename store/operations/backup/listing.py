"""The names in a directory of the source, in archive order and in little memory."""

import os

DIRECTORY, FILE, OTHER = b"dfo"
"""The last byte of a listed name: what it is the name of, as far as the directory says."""
KIND_SIZE = 2
_DIRECTORY, _FILE, _OTHER = b"\0d", b"\0f", b"\0o"


def read_names(file: int) -> tuple[list[bytes], OSError | None]:
    """List an open directory: names with their kind behind them, the last one first.

    One bytes object a name, which `pop()` gives back when it is used: a million names take 70 MB.
    The kind begins with a NUL, which sorts before all that a name may have, so the order is that of
    the names. A file system may list a name twice while its directory changes.

    Returns:
        The names, and what ended the listing early, if something did.
    """
    names: list[bytes] = []
    failed = None
    try:
        with os.scandir(file) as entries:
            for entry in entries:
                names.append(os.fsencode(entry.name) + _kind(entry))  # noqa: PERF401 - kept on error
    except OSError as error:
        failed = error
    names.sort(reverse=True)
    return names, failed


def has_file(names: list[bytes], name: bytes) -> bool:
    """Whether a regular file of this name was listed."""
    return name + _FILE in names


def _kind(entry: "os.DirEntry[str]") -> bytes:
    try:
        if entry.is_file(follow_symlinks=False):
            return _FILE
        return _DIRECTORY if entry.is_dir(follow_symlinks=False) else _OTHER
    except OSError:  # the directory has no kinds, and lstat failed: whoever opens it will see why
        return _OTHER
