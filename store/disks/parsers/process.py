"""Starts, asks, watches and kills the children that parse.

A child that breaks the rules, or is too slow, is killed and costs its asker one IntegrityError; the
next who asks gets a new one. Whoever asks serves the child's blocks meanwhile, in the same thread:
what the image itself cannot give (no key, no storage) is raised as it is.
"""

import logging
import socket
import struct
import subprocess
import sys
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from threading import Lock

from store.disks.parsers import wire
from store.disks.parsers.sandbox import PACKAGES
from store.errors import IntegrityError, KeyRequired
from store.format.buffer import ReadAt

log = logging.getLogger(__name__)

CHILD = "store.disks.parsers.child"
CHILDREN = 4
ENCRYPTED = ("luks", "bitlocker")
# A key is made from a passphrase slowly on purpose, with up to 1 GiB.
UNLOCKING_S = 90.0
UNLOCKING_MEMORY = 1280 << 20
START_S = 30.0
ROUNDS = 15


@dataclass(frozen=True, slots=True)
class Limits:
    """What one child may use.

    seconds: of its own time for one request; what it waits for blocks is not counted.
    memory: bytes of address space.
    entries: in one directory.
    fetched: bytes of the image for one request.
    """

    seconds: float = 10.0
    memory: int = 768 << 20
    entries: int = 2_000_000
    fetched: int = 512 << 20


class Crew:
    """The children of a mount: the `limit` used last live, the others are ended. Thread-safe."""

    def __init__(self, limit: int = CHILDREN, limits: Limits = Limits()) -> None:
        self.limits = limits
        self._limit = limit
        self._lock = Lock()
        self._living: OrderedDict[ParserProcess, None] = OrderedDict()

    def used(self, process: "ParserProcess") -> None:
        """It is about to work: make room for it, if it is not among the living."""
        with self._lock:
            self._living[process] = None
            self._living.move_to_end(process)
            surplus = [*self._living][: max(0, len(self._living) - self._limit)]
        for old in surplus:
            if old.rest():
                self.gone(old)

    def gone(self, process: "ParserProcess") -> None:
        """It is closed."""
        with self._lock:
            self._living.pop(process, None)

    def close(self) -> None:
        """End all of them."""
        with self._lock:
            living = [*self._living]
            self._living.clear()
        for process in living:
            process.close()


class ParserProcess:
    """One child over one stream, started when it is asked and not there. Thread-safe.

    Args:
        stream: the disk, or the part of it.
        kind: which parser; `table` for the partition tables.
        crew: among whom it lives.
        name: of the stream, for messages.
        keys: what an encrypted disk may be opened with.
    """

    def __init__(
        self, stream: ReadAt, kind: str, crew: Crew, name: str, keys: tuple[bytes, ...] = ()
    ) -> None:
        self.stream, self.kind, self.name = stream, kind, name
        self._keys = keys
        self._crew, self._limits = crew, crew.limits
        if kind in ENCRYPTED:
            memory = crew.limits.memory + UNLOCKING_MEMORY
            self._limits = replace(crew.limits, seconds=UNLOCKING_S, memory=memory)
        self._lock = Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._start_s = 0.0
        self._closed = False

    @property
    def most_entries(self) -> int:
        """How many a directory may have."""
        return self._limits.entries

    def ask(self, op: int, number: int = 0, a: int = 0, size: int = 0, name: bytes = b"") -> bytes:
        """The payload of the answer.

        Raises IntegrityError (the parser's complaint, or its end), KeyRequired (no key given opens
        it), and what the stream raises.
        """
        request = wire.REQUEST.pack(op, number, a, size, len(name)) + name
        self._crew.used(self)
        with self._lock:
            for _ in range(ROUNDS):
                kind, payload = self._try(request)
                if kind != wire.AGAIN:
                    break
            if kind == wire.DONE:
                return payload
            said = payload.decode("utf-8", "replace") if kind == wire.FAILED else "too slow"
            raise IntegrityError(f"{self.name}: {_printable(said)}")

    def _try(self, request: bytes) -> tuple[int, bytes]:
        try:
            return self._exchange(self._started(), request)
        except (_Broken, OSError, struct.error) as error:
            self._kill()
            why = error if isinstance(error, _Broken) else "its parser ended"
            raise IntegrityError(f"{self.name}: {why}") from error
        except BaseException:
            self._kill()  # in the middle of an exchange there is no going on
            raise

    def _started(self) -> socket.socket:
        if self._closed:
            raise _Broken("closed")
        if self._child is not None and self._child.poll() is not None:
            self._kill()  # it was killed by somebody else while it had nothing to do
        if self._link is None:
            self._link, self._start_s = self._start(), START_S
            if self.kind in ENCRYPTED:
                self._unlock(self._link)
        return self._link

    def _exchange(self, link: socket.socket, request: bytes) -> tuple[int, bytes]:
        start_s, self._start_s = self._start_s, 0.0
        return _Exchange(link, self.stream, self._limits, start_s).answer(request)

    def _unlock(self, link: socket.socket) -> None:
        keys = wire.encode_keys(self._keys)
        request = wire.REQUEST.pack(wire.UNLOCK, 0, 0, 0, len(keys)) + keys
        kind, payload = self._exchange(link, request)
        said = _printable(payload.decode("utf-8", "replace"))
        if kind == wire.LOCKED:
            raise KeyRequired(f"{self.name}: {said}")
        if kind != wire.DONE:
            raise _Broken(said)

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        limits = self._limits
        # -P: else Python looks for modules in the directory we happen to be in, anybody's perhaps.
        with theirs:
            self._child = subprocess.Popen(
                [
                    sys.executable, "-P", "-s", "-m", CHILD,
                    str(theirs.fileno()), str(self.stream.size), self.kind,
                    str(limits.memory), str(limits.seconds), str(limits.entries),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env={"PYTHONPATH": str(PACKAGES), "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C in a terminal is for the mount
            )  # fmt: skip
        log.debug("%s: parser %s started as %d", self.name, self.kind, self._child.pid)
        return ours

    def rest(self) -> bool:
        """End the child, unless it is at work; it is started again when it is asked."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self._kill()
        finally:
            self._lock.release()
        return True

    def close(self) -> None:
        """End the child for good. Who is asking it gets IntegrityError."""
        self._closed = True
        child = self._child
        if child is not None:
            child.kill()
        with self._lock:
            self._kill()
        self._crew.gone(self)

    def _kill(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None


class _Broken(Exception):
    """The child did what it must not, or nothing."""


class _Exchange:
    """One request and its answer, and the blocks between them.

    `start_s`: how much longer than others the first word may take, of a child that is starting.
    """

    def __init__(self, link: socket.socket, stream: ReadAt, limits: Limits, start_s: float) -> None:
        self._link, self._stream, self._limits = link, stream, limits
        self._left_s = limits.seconds + start_s
        self._fetched = 0

    def answer(self, request: bytes) -> tuple[int, bytes]:
        """Kind and payload. Raises _Broken, OSError, and what the stream raises."""
        self._link.settimeout(self._left_s)
        self._link.sendall(request)
        while True:
            kind, length = wire.ANSWER.unpack(self._receive(wire.ANSWER.size))
            if length > wire.MAX_ANSWER:
                raise _Broken(f"its parser answered with {length} bytes")
            payload = self._receive(length)
            self._left_s = min(self._left_s, self._limits.seconds)
            if kind != wire.WANT:
                return kind, payload
            self._serve(*wire.WANT_BLOCKS.unpack(payload))

    def _serve(self, offset: int, size: int) -> None:
        self._fetched += size
        if size > wire.MAX_FETCH or offset + size > self._stream.size:
            raise _Broken("its parser asked for what is not there")
        if self._fetched > self._limits.fetched:
            raise _Broken(f"its parser reads more than {self._limits.fetched} bytes for one answer")
        data = self._stream.read(offset, size)
        self._link.settimeout(self._limits.seconds)
        self._link.sendall(wire.ANSWER.pack(1, size) + data)

    def _receive(self, size: int) -> bytes:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            if self._left_s <= 0:
                raise _Broken("its parser takes too long")
            started = time.monotonic()
            self._link.settimeout(self._left_s)
            try:
                count = self._link.recv_into(view)
            except TimeoutError as error:
                raise _Broken("its parser takes too long") from error
            self._left_s -= time.monotonic() - started
            if not count:
                raise _Broken("its parser ended: out of memory or time, or of its mind")
            view = view[count:]
        return bytes(data)


def _printable(said: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in said)[:300]
