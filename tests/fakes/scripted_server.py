"""A server on loopback that answers requests one after the other as a test says."""

import socket
import ssl
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from types import TracebackType
from typing import BinaryIO, Self

DATE = formatdate(1_700_000_000, usegmt=True)


@dataclass(frozen=True)
class Step:
    """What becomes of one request: the bytes of an answer, then perhaps the end of the connection.

    `unread`: the answer comes before the body is read. `hold`: nothing comes until the test ends.
    `drip`: the answer comes a byte every hundredth of a second.
    """

    answer: bytes = b""
    close: bool = False
    unread: bool = False
    hold: bool = False
    drip: bool = False


def answer(
    status: int = 200, body: bytes = b"", *, close: bool = False, unread: bool = False,
    size: int | None = None, **headers: str,
) -> Step:  # fmt: skip
    """An HTTP answer; `size` is a Content-Length that is not the body's."""
    lines = [
        f"HTTP/1.1 {status} Because",
        f"Date: {DATE}",
        f"Content-Length: {len(body) if size is None else size}",
        *(f"{name.replace('_', '-')}: {text}" for name, text in headers.items()),
    ]
    return Step("\r\n".join([*lines, "", ""]).encode() + body, close, unread)


@dataclass
class Received:
    """One request: its first line, its headers (names in lower case), its body."""

    line: str
    headers: dict[str, str]
    body: bytes
    connection: int


class ScriptedServer:
    """Use in a `with`. `requests` are those that came; a further one than `steps` is closed on."""

    def __init__(self, steps: Sequence[Step], context: ssl.SSLContext | None = None) -> None:
        self._steps, self._context = list(steps), context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._open: list[socket.socket] = []
        self.requests: list[Received] = []
        self.asked = threading.Semaphore(0)

    @property
    def endpoint(self) -> str:
        scheme = "http" if self._context is None else "https"
        return f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection, len(self._open)))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with suppress(OSError):  # the client is gone
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as stream:
                while self._answer(connection, stream, number):
                    pass

    def _answer(self, connection: socket.socket, stream: BinaryIO, number: int) -> bool:
        line = stream.readline().decode().strip()
        if not line:
            return False
        headers = {}
        while header := stream.readline().decode().strip():
            name, _, text = header.partition(":")
            headers[name.lower()] = text.strip()
        step = self._steps.pop(0) if self._steps else Step(close=True)
        body = b"" if step.unread else stream.read(int(headers.get("content-length", "0")))
        self.requests.append(Received(line, headers, body or b"", number))
        self.asked.release()
        if step.hold:
            self._ended.wait()
            return False
        for position in range(len(step.answer) if step.drip else 0):
            connection.sendall(step.answer[position : position + 1])
            if self._ended.wait(0.01):
                return False
        connection.sendall(b"" if step.drip else step.answer)
        return not step.close
