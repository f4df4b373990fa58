"""Key files on disk: read whole, never overwritten by accident, never readable by others."""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from store.errors import (
    AlreadyExists,
    BackendError,
    FormatError,
    NotFound,
    OutOfSpace,
    PermissionDenied,
    StoreError,
)

if TYPE_CHECKING:
    from store.format.keys import KeyFile

DEFAULT_KEY_NAME = "encryption-key.json"
DEFAULT_MASTER_KEY_NAME = "master-public.pem"
KEY_FILE_SIZE = 1 << 20


def find_default(name: str) -> Path | None:
    """Return the path of a default key file, the user's or that of /etc/xdg, if it is there."""
    system = os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg"
    places = [default_place(name), *(Path(d, "proxmox-backup", name) for d in system.split(":"))]
    return next((path for path in places if path.is_file()), None)


def default_place(name: str) -> Path:
    """Return where the user's own default key file belongs."""
    config = os.environ.get("XDG_CONFIG_HOME") or str(Path("~").expanduser() / ".config")
    return Path(config, "proxmox-backup", name)


def read_key_text(path: Path) -> bytes:
    """Return a small file whole. Raises NotFound, PermissionDenied or BackendError."""
    try:
        with path.open("rb") as file:
            return file.read(KEY_FILE_SIZE)
    except OSError as error:
        raise _key_file_error(error, path) from error


def read_key_file(path: Path) -> "KeyFile":
    """Return the key file at `path`. Raises what `read_key_text` does, and FormatError."""
    from store.format.keys import KeyFile

    try:
        return KeyFile.decode(read_key_text(path))
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def refuse_existing(path: Path) -> None:
    """Raise AlreadyExists when `path` is taken, before anybody is asked for a passphrase."""
    if os.path.lexists(path):
        raise AlreadyExists(f"{path}: there already; keys are never overwritten")


def write_new(path: Path, text: bytes) -> None:
    """Create `path` with mode 0600, durably, or not at all. Raises AlreadyExists."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _key_file_error(error, path) from error
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor has no path
            file.write(text)
            file.flush()
            os.fsync(descriptor)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _key_file_error(error, path) from error
        raise


def replace(path: Path, text: bytes) -> None:
    """Put `text` at `path`, mode 0600, durably; a reader finds the old file or the new."""
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    write_new(temporary, text)
    try:
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _key_file_error(error, path) from error


def make_default_directory() -> None:
    """Make ~/.config/proxmox-backup for the user alone."""
    directory = default_place(DEFAULT_KEY_NAME).parent
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise _key_file_error(error, directory) from error


def _key_file_error(error: OSError, path: Path) -> StoreError:
    message = f"key file {path}: {error.strerror}"
    match error:
        case FileNotFoundError():
            return NotFound(message)
        case FileExistsError():
            return AlreadyExists(f"{path}: there already; keys are never overwritten")
        case PermissionError():
            return PermissionDenied(message)
    import errno

    kind = OutOfSpace if error.errno in {errno.ENOSPC, errno.EDQUOT} else BackendError
    return kind(message)
