"""How one process asks another, which has a head open, to seal it: by a Unix socket beside it.

One request a connection, one line of JSON each way:

    {"command": "seal", "strict": false}     {"snapshot": "host/web01/2026-01-02T03:04:05Z"}
                                             {"error": "...", "exit_code": 12}

The head's directory is its owner's alone, and so is the socket.
"""

import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any, Self

from store.errors import BackendError, NotFound, StoreError

log = logging.getLogger(__name__)

SOCKET = "control"
MAX_LINE = 64 * 1024
REQUEST_TIMEOUT_S = 10.0

Answer = Callable[[dict[str, Any]], dict[str, Any]]


class Control:
    """Answers requests about one open head, each in a thread of its own, until `close`."""

    def __init__(self, directory: str, commands: dict[str, Answer]) -> None:
        """`commands`: what to do for each; gets the request, gives the reply, may raise StoreError.

        Raises BackendError.
        """
        self._commands = commands
        self._directory = directory
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _address(directory) as address:
                with suppress(FileNotFoundError):  # left by a process that was killed
                    os.unlink(address)
                self._listener.bind(address)
            self._listener.listen()
        except OSError as error:
            self._listener.close()
            raise BackendError(f"head in {directory}: {error.strerror}") from error
        Thread(target=self._serve, name="head control", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take no more requests."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with suppress(OSError), _address(self._directory) as address:
            os.unlink(address)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(REQUEST_TIMEOUT_S)
            try:
                request = _read_line(connection)
                reply = self._commands[request["command"]](request)
            except StoreError as error:
                reply = {"error": str(error), "exit_code": error.exit_code}
            except (ValueError, KeyError) as error:
                reply = {"error": f"not a request: {error}", "exit_code": 2}
            connection.settimeout(None)
            connection.sendall(json.dumps(reply).encode() + b"\n")


def is_served(directory: str) -> bool:
    """Whether a process answers for the head in `directory`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            with _address(directory) as address:
                connection.connect(address)
        except OSError:
            return False
        return True


def ask(directory: str, command: str, **fields: object) -> dict[str, Any]:
    """What the process that has a head open answers; waits as long as that takes.

    Raises:
        NotFound: no process listens there.
        StoreError: what it answers, with its exit code.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            with _address(directory) as address:
                connection.connect(address)
            connection.sendall(json.dumps({"command": command, **fields}).encode() + b"\n")
            reply = _read_line(connection)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotFound(f"no process answers for the head in {directory}") from error
        except (OSError, ValueError) as error:
            raise BackendError(f"the process that has the head open: {error}") from error
    if "error" in reply:
        failure = StoreError(str(reply["error"]))
        failure.exit_code = int(reply.get("exit_code", 1))
        raise failure
    return reply


@contextmanager
def _address(directory: str) -> Iterator[str]:
    """The socket's address: through a descriptor, as an address has at most 107 bytes."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)


def _read_line(connection: socket.socket) -> dict[str, Any]:
    """One message. Raises ValueError when it is none."""
    with connection.makefile("rb") as lines:
        line = lines.readline(MAX_LINE)
    message = json.loads(line) if line.endswith(b"\n") else None
    if not isinstance(message, dict):
        raise ValueError("not a message")  # noqa: TRY004 - what it says is wrong, not its type
    return message
