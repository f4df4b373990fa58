"""Secrets, from the environment in PBS's four forms, from systemd, or from the terminal.

For a variable such as PBS_ENCRYPTION_PASSWORD the first line of the first that is set:

    NAME         the secret itself
    NAME_FD      number of an open file descriptor to read it from
    NAME_FILE    path of a file to read it from
    NAME_CMD     a command that prints it (split like a shell would, but run without one)
    and then the service credential of the same purpose, where systemd sets CREDENTIALS_DIRECTORY

Source: proxmox-backup pbs-client/src/tools/mod.rs, get_secret_from_env
"""

import os
import sys

from store.errors import InvalidName, KeyRequired
from store.repositories.secret_sources import (
    SECRET_SIZE,
    first_line,
    read_secret_file,
    run_secret_command,
)

CREDENTIALS = {
    "PBS_PASSWORD": "proxmox-backup-client.password",
    "PBS_ENCRYPTION_PASSWORD": "proxmox-backup-client.encryption-password",
}


def read_secret(variable: str) -> bytes | None:
    """Return the secret that `variable` or one of its forms gives; None when none is set.

    Raises:
        InvalidName: the descriptor is not a number, the command not a command line.
        KeyRequired: the file, descriptor or command did not give one.
    """
    forms = (
        ("", os.fsencode),
        ("_FD", _from_fd),
        ("_FILE", read_secret_file),
        ("_CMD", _from_command),
    )
    for form, read in forms:
        name = variable + form
        if (value := os.environ.get(name)) is not None:
            try:
                return first_line(read(value))
            except (OSError, TypeError) as error:  # the latter: a descriptor past all numbers
                reason = getattr(error, "strerror", None) or error
                raise KeyRequired(f"{name}={value}: {reason}") from error
    return _credential(variable)


def get_password(variable: str, prompt: str) -> bytes:
    """Return the secret of `variable`, or ask on the terminal. Raises KeyRequired without one."""
    secret = read_secret(variable)
    return ask(variable, prompt) if secret is None else secret


def get_new_password(variable: str, prompt: str) -> bytes:
    """Return a secret not used before: asked for twice. Raises InvalidName when they differ."""
    secret = read_secret(variable)
    if secret is not None:
        return secret
    answer = ask(variable, prompt)
    if ask(variable, "Verify " + prompt) != answer:
        raise InvalidName("the two passphrases differ")
    return answer


def ask(variable: str, prompt: str) -> bytes:
    """Read a line from the terminal unseen. Raises KeyRequired where there is no terminal."""
    if not sys.stdin.isatty():
        raise KeyRequired(
            f"{prompt}: no terminal to ask on;"
            f" set {variable}, {variable}_FILE, {variable}_CMD or {variable}_FD"
        )
    import getpass

    try:
        return getpass.getpass(prompt + ": ").encode()
    except EOFError as error:
        raise KeyRequired(f"{prompt}: none given") from error


def _from_fd(text: str) -> bytes:
    if not (text.isascii() and text.isdecimal()):
        raise InvalidName(f"file descriptor {text!r}: not a number")
    descriptor = int(text)
    with open(descriptor, "rb") as file:
        return file.read(SECRET_SIZE)


def _from_command(command: str) -> bytes:
    return run_secret_command(command, KeyRequired, "password command")


def _credential(variable: str) -> bytes | None:
    directory, name = os.environ.get("CREDENTIALS_DIRECTORY"), CREDENTIALS.get(variable)
    if not directory or not name:
        return None
    try:
        return first_line(read_secret_file(f"{directory}/{name}"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeyRequired(f"credential {name}: {error.strerror}") from error
