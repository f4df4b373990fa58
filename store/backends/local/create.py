"""Laying out a new datastore (spec 1.1).

`.chunks` gets its name last, so its presence means a whole datastore.
"""

import os
import pwd
import stat
from collections.abc import Callable
from contextlib import suppress

from store.backends.base import Lock, storage_error
from store.errors import AlreadyExists, InvalidName
from store.progress import SILENT, Progress

CHUNKS = ".chunks"
UNFINISHED_CHUNKS = ".chunks.tmp_create"
LOCK = ".lock"
MODE = 0o750
CHUNK_DIRECTORIES = 0x10000
OURS = frozenset((UNFINISHED_CHUNKS, LOCK, ".vaultway"))
HARMLESS = frozenset(("lost+found",))
PBS_USER = "backup"


def create_layout(root: str, lock: Callable[[], Lock], progress: Progress = SILENT) -> None:
    """Make `root` a datastore, or finish what an interrupted call began, holding `lock`.

    A disk takes seconds for its 65,536 directories: `progress` counts them.
    Raises AlreadyExists (it is one), InvalidName (it holds something else), Locked (another is
    creating it), PermissionDenied, OutOfSpace, BackendError.
    """
    try:
        os.makedirs(root, 0o755, exist_ok=True)
        with lock():
            _check_empty(root)
            _lay_out(root, pbs_user(), progress)
    except OSError as error:
        raise storage_error(error, _whole(root, error.filename)) from error


def _whole(root: str, name: str | None) -> str:
    """The path of what failed: below `.chunks` the calls know only a name."""
    if name is None or os.path.isabs(name):
        return name or root
    return f"{root}/{UNFINISHED_CHUNKS}/{name}"


def _check_empty(root: str) -> None:
    names = set(os.listdir(root))
    if CHUNKS in names:
        raise AlreadyExists(f"{root}: there is a datastore already")
    foreign = sorted(names - OURS - HARMLESS)
    if foreign:
        raise InvalidName(
            f"{root}: not empty (it holds {foreign[0]!r}); give an empty or a new directory"
        )


def _lay_out(root: str, owner: tuple[int, int] | None, progress: Progress) -> None:
    lock, unfinished = f"{root}/{LOCK}", f"{root}/{UNFINISHED_CHUNKS}"
    os.chmod(root, 0o755)  # noqa: S103 - PBS wants this mode and checks it
    with suppress(FileExistsError):
        os.close(os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    os.chmod(lock, 0o644)
    if owner is not None:
        os.chown(root, *owner)
        os.chown(lock, *owner)
    with suppress(FileExistsError):
        os.mkdir(unfinished)
    parent = os.open(unfinished, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    progress.start(CHUNK_DIRECTORIES, "directories")
    try:
        _make_chunk_directories(parent, owner, progress)
    finally:
        progress.done()
        os.close(parent)
    os.rename(unfinished, f"{root}/{CHUNKS}")


def _make_chunk_directories(parent: int, owner: tuple[int, int] | None, progress: Progress) -> None:
    """Make `0000` to `ffff`.

    `chmod` only where the umask took from mkdir's mode: it would double the time.
    """
    os.chmod(".", MODE, dir_fd=parent)
    for prefix in range(CHUNK_DIRECTORIES):
        name = f"{prefix:04x}"
        with suppress(FileExistsError):
            os.mkdir(name, MODE, dir_fd=parent)
        if prefix == 0:
            cut_by_umask = stat.S_IMODE(os.stat(name, dir_fd=parent).st_mode) != MODE
        if cut_by_umask:
            os.chmod(name, MODE, dir_fd=parent)
        if owner is not None:
            os.chown(name, *owner, dir_fd=parent)
        progress.advance(1)
    if owner is not None:
        os.chown(".", *owner, dir_fd=parent)


def pbs_user() -> tuple[int, int] | None:
    """Uid and gid of the user `backup`, if we may give files away and there is one."""
    if os.geteuid() != 0:
        return None
    try:
        user = pwd.getpwnam(PBS_USER)
    except KeyError:
        return None
    return user.pw_uid, user.pw_gid
