"""A proxy before an S3 server: it delays, breaks and loses what it is told to, one request a time.

The client signs for the proxy's address and the Host header is passed on as it is, so the server
still checks every signature.
"""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

BLOCK = 256 << 10
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
METHODS = (b"GET", b"PUT", b"HEAD", b"POST", b"DELETE")

ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>made to fail</Message></Error>"


class Request(NamedTuple):
    """What a client asked for: `number` counts all requests, from 0."""

    number: int
    method: str
    target: str


@dataclass(frozen=True)
class Fault:
    """What happens to a request.

    kind: "answer" (`status` and `code`, nothing reaches the server), "reset" (the connection is
    reset before the server hears of it), "lost" (after the server did it), "half" (an answer that
    ends in its middle), "wrong" (a byte of the answer's body is another), "stall" (no answer until
    the client goes away). An answer without a body is lost where it can't be halved or spoilt.
    """

    kind: str
    status: int = 500
    code: str = "InternalError"
    headers: tuple[tuple[str, str], ...] = ()


FAULTS = {
    "500": Fault("answer", 500, "InternalError"),
    "503": Fault("answer", 503, "SlowDown", (("Retry-After", "0"),)),
    "403": Fault("answer", 403, "AccessDenied"),
    "expired": Fault("answer", 400, "ExpiredToken"),
    "skew": Fault("answer", 403, "RequestTimeTooSkewed"),
    "full": Fault("answer", 507, "XMinioStorageFull"),
    "reset": Fault("reset"),
    "lost": Fault("lost"),
    "half": Fault("half"),
    "wrong": Fault("wrong"),
    "stall": Fault("stall"),
}

Plan = Callable[[Request], Fault | None]


@dataclass
class Proxy:
    """Listens on `port` of 127.0.0.1; `plan` may be replaced at any time, `requests` grows."""

    upstream: tuple[str, int]
    delay_s: float = 0.0
    plan: Plan = lambda _request: None
    requests: list[Request] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.come_up()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def come_up(self) -> None:
        """Listen, after `go_down` at the port of before."""
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self.port = self._listener.getsockname()[1]
        threading.Thread(
            target=self._accept, args=(self._listener,), name="proxy", daemon=True
        ).start()

    def go_down(self) -> None:
        """As a server that dies: connections break, new ones are refused."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with (
            self._tracked(client),
            suppress(OSError),
            self._tracked(socket.create_connection(self.upstream)) as server,
        ):
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while self._exchange(client, server):
                pass

    @contextmanager
    def _tracked(self, connection: socket.socket) -> Iterator[socket.socket]:
        with self._lock:
            self._open.add(connection)
        try:
            yield connection
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _exchange(self, client: socket.socket, server: socket.socket) -> bool:
        """One request and its answer; whether the connection goes on."""
        head, rest = _read_head(client)
        if not head:
            return False
        request = self._note(head)
        fault = self.plan(request)
        if self.delay_s:
            time.sleep(self.delay_s)
        if fault is not None and fault.kind in {"answer", "reset", "stall"}:
            return self._refuse(client, fault, head, rest)
        server.sendall(head + rest)
        _pass_on(client, server, _content_length(head) - len(rest))
        head, rest = _plain_length(server, *_read_head(server))
        if not head:  # the server had closed an idle connection
            return _reset(client)
        size = 0 if request.method == "HEAD" or b" 204 " in head[:16] else _content_length(head)
        if fault is None:
            client.sendall(head + rest)
            _pass_on(server, client, size - len(rest))
            return b"connection: close" not in head.lower()
        return self._spoil(client, server, fault, head, rest, size)

    def _note(self, head: bytes) -> Request:
        method, target, _ = head.split(b"\r\n", 1)[0].split(b" ")
        with self._lock:
            request = Request(len(self.requests), method.decode(), target.decode())
            self.requests.append(request)
        return request

    def _refuse(self, client: socket.socket, fault: Fault, head: bytes, rest: bytes) -> bool:
        if fault.kind == "reset":
            return _reset(client)
        if fault.kind == "stall":
            while client.recv(BLOCK):
                pass
            return False
        _drop(client, _content_length(head) - len(rest))
        body = ERROR.format(code=fault.code).encode()
        lines = [f"HTTP/1.1 {fault.status} Fault", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in fault.headers]
        answer = "\r\n".join([*lines, "", ""]).encode()
        client.sendall(answer if head.startswith(b"HEAD") else answer + body)
        return True

    def _spoil(
        self,
        client: socket.socket,
        server: socket.socket,
        fault: Fault,
        head: bytes,
        rest: bytes,
        size: int,
    ) -> bool:
        body = bytearray(rest)
        while len(body) < size and (part := server.recv(BLOCK)):
            body += part
        if fault.kind == "lost" or not body:
            return _reset(client)
        if fault.kind == "half":
            client.sendall(head + body[: len(body) // 2])
            return False
        body[len(body) // 2] ^= 1
        client.sendall(head + body)
        return True


def _read_head(source: socket.socket) -> tuple[bytes, bytes]:
    """The head of a message, its empty line included, and what came of the body with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = source.recv(BLOCK)
        if not part:
            return b"", b""
        data += part
    end = data.index(b"\r\n\r\n") + 4
    if data.startswith(METHODS) and b"100-continue" in data[:end].lower():
        source.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        lines = data[:end].split(b"\r\n")
        data = b"\r\n".join(line for line in lines if not line.lower().startswith(b"expect:"))
        end = data.index(b"\r\n\r\n") + 4
    return data[:end], data[end:]


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def _plain_length(server: socket.socket, head: bytes, rest: bytes) -> tuple[bytes, bytes]:
    """An answer in pieces (a listing) with all its body and a Content-Length instead."""
    lines = head.split(b"\r\n")
    kept = [line for line in lines if not line.lower().startswith(b"transfer-encoding:")]
    if len(kept) == len(lines):
        return head, rest
    body, raw = b"", rest
    while True:
        while b"\r\n" not in raw:
            raw += server.recv(BLOCK)
        size, _, raw = raw.partition(b"\r\n")
        need = int(size, 16) + 2
        while len(raw) < need:
            raw += server.recv(BLOCK)
        body, raw = body + raw[: need - 2], raw[need:]
        if need == 2:
            break
    kept.insert(1, b"Content-Length: %d" % len(body))
    return b"\r\n".join(kept), body


def _pass_on(source: socket.socket, target: socket.socket, size: int) -> None:
    while size > 0:
        part = source.recv(min(BLOCK, size))
        if not part:
            raise ConnectionResetError
        target.sendall(part)
        size -= len(part)


def _drop(source: socket.socket, size: int) -> None:
    while size > 0:
        part = source.recv(min(BLOCK, size))
        if not part:
            raise ConnectionResetError
        size -= len(part)


def _reset(client: socket.socket) -> bool:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    return False


@contextmanager
def proxy_before(host: str, port: int, **options: object) -> Iterator[Proxy]:
    """A proxy before the server at `host:port`, ended on the way out."""
    proxy = Proxy((host, port), **options)  # type: ignore[arg-type]
    try:
        yield proxy
    finally:
        proxy.go_down()
