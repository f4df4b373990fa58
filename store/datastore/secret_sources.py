"""Secrets that a file has or a command prints: their first line. Cheap to import."""

from pathlib import Path

from store.errors import InvalidName, StoreError

SECRET_SIZE = 64 << 10
COMMAND_TIMEOUT_S = 60.0


def first_line(data: bytes) -> bytes:
    """Without its end."""
    return data.partition(b"\n")[0].removesuffix(b"\r")


def read_secret_file(path: str | Path) -> bytes:
    """What a file begins with. Raises OSError."""
    with Path(path).open("rb") as file:
        return file.read(SECRET_SIZE)


def run_secret_command(command: str, failure: type[StoreError]) -> bytes:
    """What a command prints; split as a shell would, but run without one.

    Raises OSError, InvalidName (not a command line), and `failure` for an exit code, or no end
    within COMMAND_TIMEOUT_S.
    """
    import shlex
    import subprocess

    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise InvalidName(f"password command {command!r}: {error}") from error
    if not arguments:
        raise InvalidName("the password command is empty")
    try:
        done = subprocess.run(
            arguments, stdout=subprocess.PIPE, check=False, timeout=COMMAND_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        late = f"no answer within {COMMAND_TIMEOUT_S:g} s, ended"
        raise failure(f"password command {arguments[0]}: {late}") from error
    if done.returncode:
        raise failure(f"password command {arguments[0]}: exit code {done.returncode}")
    return done.stdout
