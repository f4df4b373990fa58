"""Where an export listens, a Unix socket or a TCP port: tried out first, written as an NBD URI."""

import errno
import os
import socket
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from store.errors import AlreadyExists, InvalidName, Locked, NotFound, PermissionDenied, StoreError

DEFAULT_PORT = 10809
DEFAULT_ADDRESS = "127.0.0.1"
GREETING = b"NBDMAGICIHAVEOPT"
GREETING_FLAGS_SIZE = 2
# Client flags (fixed newstyle), then option ABORT without data: the polite way to leave.
FAREWELL = struct.pack(">I8sII", 1, b"IHAVEOPT", 2, 0)
NAME_SAFE = "/:@"  # may stand as they are in a URI's path
ANSWER_TIMEOUT_S = 5.0


class Address(Protocol):
    """A place to listen at."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """What nbdkit is told."""

    def claim(self) -> None:
        """Make sure that nbdkit can listen here. Raises StoreError saying why not."""

    def connect(self) -> socket.socket:
        """A connection to whoever listens. Raises OSError."""

    def uri(self, name: str) -> str:
        """The NBD URI of one export."""

    def release(self) -> None:
        """Take away what the listener left."""


@dataclass(frozen=True)
class UnixAddress:
    """A socket file; nbdkit makes it writable, and so open, to its owner (and root) only."""

    path: Path

    @property
    def arguments(self) -> tuple[str, ...]:
        """What nbdkit is told."""
        return ("-U", str(self.path))

    def claim(self) -> None:
        """Remove a dead socket, and try out a new one.

        Raises AlreadyExists (another kind of file), Locked (somebody listens), NotFound (no such
        folder), PermissionDenied, InvalidName (longer than a socket's name may be).
        """
        try:
            self._remove_dead()
            with socket.socket(socket.AF_UNIX) as probe:
                probe.bind(str(self.path))
            self.path.unlink()
        except OSError as error:
            if "too long" in str(error):
                raise InvalidName(f"socket {self.path}: its path is too long") from error
            raise translate(error, f"socket {self.path}") from error

    def _remove_dead(self) -> None:
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self.path.lstat().st_mode):
                raise AlreadyExists(f"{self.path} exists and is not a socket")
            try:
                self.connect().close()
            except ConnectionRefusedError:
                self.path.unlink()
                return
            raise Locked(f"socket {self.path}: another server listens on it")

    def connect(self) -> socket.socket:
        """A connection to whoever listens. Raises OSError."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(ANSWER_TIMEOUT_S)
        try:
            connection.connect(str(self.path))
        except OSError:
            connection.close()
            raise
        return connection

    def uri(self, name: str) -> str:
        """`nbd+unix:///NAME?socket=PATH`."""
        path = quote(os.fsencode(self.path.absolute()), safe="/")
        return f"nbd+unix:///{quote(name, safe=NAME_SAFE)}?socket={path}"

    def release(self) -> None:
        """Remove the socket file, unless another server has taken the place meanwhile."""
        with suppress(OSError, StoreError):
            self._remove_dead()


@dataclass(frozen=True)
class TcpAddress:
    """A port of one local address (or name)."""

    address: str = DEFAULT_ADDRESS
    port: int = DEFAULT_PORT

    @property
    def arguments(self) -> tuple[str, ...]:
        """What nbdkit is told."""
        return ("-i", self.address, "-p", str(self.port))

    def claim(self) -> None:
        """Try to listen.

        Raises Locked (in use), PermissionDenied, InvalidName (no address of this machine).
        """
        where = f"port {self.port} of {self.address}"
        try:
            found = socket.getaddrinfo(
                self.address, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            for family, kind, protocol, _, place in found:
                with socket.socket(family, kind, protocol) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    if family == socket.AF_INET6:
                        probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    probe.bind(place)
                    probe.listen()
        except socket.gaierror as error:
            raise InvalidName(f"address {self.address!r}: {error.strerror}") from error
        except OSError as error:
            raise translate(error, where) from error

    def connect(self) -> socket.socket:
        """A connection to whoever listens. Raises OSError."""
        return socket.create_connection((self.address, self.port), timeout=ANSWER_TIMEOUT_S)

    def uri(self, name: str) -> str:
        """`nbd://ADDRESS:PORT/NAME`."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"nbd://{host}:{self.port}/{quote(name, safe=NAME_SAFE)}"

    def release(self) -> None:
        """The system does."""


def translate(error: OSError, what: str) -> StoreError:
    """The reason why nobody can listen at `what`, in our words."""
    if error.errno == errno.EADDRINUSE:
        return Locked(f"{what}: another server listens on it")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return PermissionDenied(f"{what}: {error.strerror}")
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return NotFound(f"{what}: there is no such folder")
    if error.errno in {errno.EADDRNOTAVAIL, errno.ENAMETOOLONG}:
        return InvalidName(f"{what}: {error.strerror}")
    return StoreError(f"{what}: {error.strerror or error}")


def answers(address: Address) -> bool:
    """Whether an NBD server greets at `address`."""
    try:
        with address.connect() as connection:
            greeting = connection.recv(len(GREETING) + GREETING_FLAGS_SIZE, socket.MSG_WAITALL)
            connection.sendall(FAREWELL)
            connection.recv(len(FAREWELL))
            return greeting.startswith(GREETING)
    except OSError:
        return False
