"""One keep-alive connection: a request, and its whole answer."""

import io
import select
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection, IncompleteRead
from typing import Any

from store.backends import patience
from store.backends.base import MAX_READ
from store.backends.s3.config import S3Config
from store.backends.s3.http.access import Endpoint
from store.backends.s3.temporary import scratch_map
from store.backends.s3.tls import check_fingerprint
from store.errors import FormatError
from store.format.buffer import Buffer

IDLE_S = 60.0
"""An older idle connection is not used: a firewall on the way may have forgotten it."""

PIECE = 256 << 10
"""Bytes given to the socket at once: its time-out is for one call."""

LEAST_BYTES_S = 16 << 10
"""An answer that comes slower, after its first `read_timeout_s`, does not come."""

MAX_ERROR = 64 << 10
MAP_FROM = 1 << 20
DISCONNECTED = (
    ConnectionResetError,
    ConnectionAbortedError,
    BrokenPipeError,
    ssl.SSLEOFError,
    ssl.SSLZeroReturnError,
)


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        what: the thing it is about, for messages.
        path, query: escaped.
        headers: all of them, once it is signed.
        parts: the body, which is sent without being joined.
        is_repeatable: may be sent again when nobody knows what became of the first.
        limit: bytes of the answer; what is longer is refused.
        to_file: an answer of a megabyte or more goes to an unlinked temporary file, as memory.
        room: where an answer that fits there goes.
    """

    method: str
    what: str
    path: str
    query: str
    headers: Mapping[str, str]
    parts: Sequence[Buffer] = ()
    is_repeatable: bool = True
    limit: int = MAX_READ
    to_file: bool = False
    room: memoryview | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer; of an error at most the first 64 KiB."""

    status: int
    headers: Message
    body: Buffer

    def header(self, name: str) -> str:
        """A header, "" when there is none."""
        return str(self.headers.get(name, ""))


class StaleConnectionError(Exception):
    """The server had closed it while it was idle: the request may go over another."""


class Connection:
    """Used by one thread at a time; `interrupt` may come from any."""

    def __init__(
        self, endpoint: Endpoint, config: S3Config, context: ssl.SSLContext | None
    ) -> None:
        """Connects with the first request; `context` is None for plain HTTP."""
        self._config = config
        self._http = (
            HTTPConnection(endpoint.host, endpoint.port, config.connect_timeout_s)
            if context is None
            else HTTPSConnection(
                endpoint.host, endpoint.port, timeout=config.connect_timeout_s, context=context
            )
        )
        self._http.response_class = _Response
        self._used_at: float | None = None
        self.is_reusable = False
        self.was_interrupted = False

    @property
    def is_stale(self) -> bool:
        """Whether it has been idle for long, or the server has closed it meanwhile."""
        if self._used_at is None or time.monotonic() - self._used_at > IDLE_S:
            return True
        poll = select.poll()
        poll.register(self._http.sock, select.POLLIN)
        return bool(poll.poll(0))

    def exchange(self, request: Request) -> Answer:
        """Send a request and read its answer.

        Raises OSError, HTTPException, StaleConnectionError, BackendError (another certificate),
        FormatError (longer than the limit), OutOfSpace (no room for the temporary file).
        """
        was_used, whole = self._used_at is not None, False
        self.is_reusable = False
        if not was_used:
            self._connect()
        self._http.sock.settimeout(min(self._config.read_timeout_s, patience.current().seconds))
        try:
            whole = self._send(request)
            response = self._http.getresponse()
        except DISCONNECTED as error:
            if was_used and not self.was_interrupted and (request.is_repeatable or not whole):
                raise StaleConnectionError from error
            raise
        with response:
            body = _read(response, request)
            self.is_reusable = whole and response.isclosed() and not response.will_close
        self._used_at = time.monotonic()
        return Answer(response.status, response.headers, body)

    def _connect(self) -> None:
        self._http.timeout = min(self._config.connect_timeout_s, patience.current().seconds)
        self._http.connect()
        if self.was_interrupted:
            raise ConnectionAbortedError
        if isinstance(self._http, HTTPSConnection) and self._config.fingerprint is not None:
            check_fingerprint(self._http, self._config.fingerprint)

    def _send(self, request: Request) -> bool:
        """Whether all of it went out. A server that hung up before may have answered why."""
        http = self._http
        target = f"{request.path}?{request.query}" if request.query else request.path
        http.putrequest(request.method, target, skip_host=True, skip_accept_encoding=True)
        for name, text in request.headers.items():
            http.putheader(name, text)
        try:
            http.endheaders()
            for part in request.parts:
                view = memoryview(part).cast("B")
                for start in range(0, len(view), PIECE):
                    http.send(view[start : start + PIECE])
        except DISCONNECTED:
            return False
        return True

    def interrupt(self) -> None:
        """Make the thread that uses it see its end."""
        self.was_interrupted = True
        sock = self._http.sock
        if sock is not None:
            with suppress(OSError):  # past TLS, whose state is the other thread's
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def close(self) -> None:
        self._http.close()


class _Response(HTTPResponse):
    """An answer that must come at some least rate as a whole, however often a byte comes."""

    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - HTTPResponse's
        super().__init__(sock, *arguments, **options)
        self.fp = io.BufferedReader(_Paced(sock, self.fp.detach()))


class _Paced(io.RawIOBase):
    """A socket's bytes. Raises TimeoutError when too few have come since it was made."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase) -> None:
        super().__init__()
        self._sock, self._raw = sock, raw
        self._timeout_s = sock.gettimeout() or 0.0
        self._deadline = time.monotonic() + self._timeout_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:  # noqa: ANN401 - RawIOBase's
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"the answer comes at less than {LEAST_BYTES_S} bytes a second")
        self._sock.settimeout(min(left_s, self._timeout_s))
        count = self._raw.readinto(buffer)
        self._deadline += (count or 0) / LEAST_BYTES_S
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def _read(response: HTTPResponse, request: Request) -> Buffer:
    """The body. Raises IncompleteRead, FormatError, OutOfSpace."""
    size = response.length
    if response.status >= 300:
        return response.read(MAX_ERROR)
    if size is None:
        if not response.chunked:  # its end would look like any broken connection
            raise IncompleteRead(b"")
        body: Buffer = response.read(request.limit + 1)
        size = len(body)
    elif request.to_file and size >= MAP_FROM:
        return _read_to_file(response, size)
    elif size <= request.limit:
        room = request.room
        fits = room is not None and size <= len(room)
        body = _read_into(response, room[:size]) if room and fits else response.read()
    if size > request.limit:
        raise FormatError(f"{request.what}: {size} bytes, more than any such object has")
    return body


def _read_to_file(response: HTTPResponse, size: int) -> Buffer:
    memory = scratch_map(size)
    with memoryview(memory) as view:
        _read_into(response, view)
    return memory


def _read_into(response: HTTPResponse, room: memoryview) -> memoryview:
    """Fill all of `room`, with all of the body. Raises IncompleteRead."""
    done = 0
    while done < len(room):
        count = response.readinto(room[done:])
        if not count:
            raise IncompleteRead(b"", len(room) - done)
        done += count
    response.read()  # nothing: says that it is at its end
    return room
