"""Secrets that a file has or a command prints: their first line. Cheap to import."""

import os
import stat
from pathlib import Path

from store.errors import InvalidName, PermissionDenied, StoreError

SECRET_SIZE = 64 << 10
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
READABLE_BY_OTHERS = stat.S_IRGRP | stat.S_IROTH
WRITABLE = stat.S_IWUSR | WRITABLE_BY_OTHERS
COMMAND_TIMEOUT_S = 60.0


def first_line(data: bytes) -> bytes:
    """Without its end."""
    return data.partition(b"\n")[0].removesuffix(b"\r")


def read_secret_file(path: str | Path) -> bytes:
    """What a file begins with. Raises OSError."""
    with Path(path).open("rb") as file:
        return file.read(SECRET_SIZE)


def check_private(status: os.stat_result, what: str) -> None:
    """Refuse a secret's file that others can write, or read: but root's that nobody can write.

    Those are a container's secrets, 0444. What is no regular file, such as a pipe, passes.

    Raises PermissionDenied, beginning with `what`.
    """
    mode = status.st_mode
    is_given_by_root = status.st_uid == 0 and not mode & WRITABLE
    if not stat.S_ISREG(mode):
        return
    for others, verb in ((WRITABLE_BY_OTHERS, "write"), (READABLE_BY_OTHERS, "read")):
        if mode & others and not is_given_by_root:
            raise PermissionDenied(f"{what}: others can {verb} it; run chmod 600 on it")


def run_secret_command(command: str, failure: type[StoreError], what: str) -> bytes:
    """What a command prints; split as a shell would, but run without one.

    Messages begin with `what`, which names where the command was given.

    Raises OSError, InvalidName (not a command line), and `failure` for an exit code, or no end
    within COMMAND_TIMEOUT_S.
    """
    import shlex
    import subprocess

    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise InvalidName(f"{what} {command!r}: {error}") from error
    if not arguments:
        raise InvalidName(f"{what} is empty")
    try:
        done = subprocess.run(
            arguments, stdout=subprocess.PIPE, check=False, timeout=COMMAND_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        late = f"no answer within {COMMAND_TIMEOUT_S:g} s, ended"
        raise failure(f"{what} {arguments[0]}: {late}") from error
    if done.returncode:
        raise failure(f"{what} {arguments[0]}: exit code {done.returncode}")
    return done.stdout
