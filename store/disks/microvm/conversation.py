"""Questions to an agent and its answers, many at a time, over one socket."""

import itertools
import socket
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from threading import Lock, Thread

from store.disks.microvm.protocol import (
    READY_ID,
    Key,
    Op,
    Ready,
    Reply,
    ReplyReader,
    decode_ready,
    encode_request,
)
from store.errors import FormatError

RECEIVED_AT_ONCE = 256 * 1024


class Broken(Exception):
    """The other side is gone, silent or talks nonsense: no further question makes sense.

    Never leaves this room: `guest` makes it an error that names the disk.
    """


class Conversation:
    """Thread-safe. Ends when the socket does, which its owner closes."""

    def __init__(self, port: socket.socket) -> None:
        self._port = port
        self._sending, self._lock = Lock(), Lock()
        self._numbers = itertools.count(READY_ID + 1)
        self._ready: Future[Reply] = Future()
        self._waiting: dict[int, Future[Reply]] = {READY_ID: self._ready}
        self._failure = ""
        Thread(target=self._receive, name="micro-vm-replies", daemon=True).start()

    def ready(self, timeout_s: float) -> tuple[int, Ready]:
        """The agent's first words: an errno (0: all is well) and what it says.

        Raises Broken.
        """
        reply = _result(self._ready, timeout_s, "it did not start")
        try:
            return reply.error, decode_ready(reply.payload)
        except FormatError as error:
            raise Broken(str(error)) from error

    def ask(self, op: Op, key: Key, offset: int, size: int, name: bytes, timeout_s: float) -> Reply:
        """One question. Raises Broken; FormatError for a name that no file can have."""
        answer: Future[Reply] = Future()
        number = next(self._numbers) & 0xFFFF_FFFF
        request = encode_request(number, op, key, offset, size, name)
        with self._lock:
            if self._failure:
                raise Broken(self._failure)
            self._waiting[number] = answer
        try:
            with self._sending:
                self._port.sendall(request)
        except OSError as error:
            raise Broken("it has gone") from error
        return _result(answer, timeout_s, "no answer")

    def _receive(self) -> None:
        reader, failure = ReplyReader(), "it has gone"
        try:
            while data := self._port.recv(RECEIVED_AT_ONCE):
                for reply in reader.feed(data):
                    self._take(reply)
        except FormatError as error:
            failure = str(error)
        except OSError:
            pass  # closed
        with self._lock:
            self._failure = failure
            left = [*self._waiting.values()]
            self._waiting.clear()
        for answer in left:
            with suppress(InvalidStateError):
                answer.set_exception(Broken(failure))

    def _take(self, reply: Reply) -> None:
        with self._lock:
            answer = self._waiting.pop(reply.id, None)
        if answer is None:
            raise FormatError(f"micro-VM: an answer to question {reply.id}, which is not open")
        answer.set_result(reply)


def _result(answer: "Future[Reply]", timeout_s: float, what: str) -> Reply:
    try:
        return answer.result(timeout_s)
    except FutureTimeout as error:
        raise Broken(f"{what} within {timeout_s:g} s") from error
