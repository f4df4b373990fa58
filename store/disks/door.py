"""A door for other programs: a stream as a block device, over NBD on a private Unix socket.

e2fsck (through nbdfuse) and QEMU come in by it. Over an Overlay they may write; over any other
stream they can only read.
"""

import errno
import logging
import os
import shutil
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Protocol, Self, runtime_checkable
from weakref import finalize

from store.disks.nbd import (
    CMD_DISC,
    CMD_FLUSH,
    CMD_READ,
    CMD_TRIM,
    CMD_WRITE,
    CMD_WRITE_ZEROES,
    IHAVEOPT,
    MAX_OPTION,
    MAX_REQUEST,
    OLD_EXPORT,
    OPT_ABORT,
    OPT_EXPORT_NAME,
    OPT_GO,
    OPT_INFO,
    OPT_LIST,
    OPTION,
    REP_ACK,
    REP_ERR_UNSUP,
    REP_SERVER,
    REQUEST,
    Request,
    export_replies,
    greeting,
    option_reply,
    parse_request,
    reply,
    transmission_flags,
)
from store.errors import OutOfSpace, StoreError
from store.format.buffer import Buffer, ReadAt

log = logging.getLogger(__name__)

# An address of a Unix socket has at most 107 bytes.
LONGEST_FOLDER = 107 - len("/nbd.sock")


@runtime_checkable
class Writable(Protocol):
    """A stream that takes writes: an Overlay."""

    size: int

    def read(self, offset: int, size: int) -> bytes:
        """As ReadAt."""

    def write(self, offset: int, data: Buffer) -> None:
        """Put `data` at `offset`."""

    def zero(self, offset: int, size: int) -> None:
        """Put zeros there."""


def short_folder() -> Path:
    """A private folder in which the socket's address fits, whatever TMPDIR says."""
    folder = Path(tempfile.mkdtemp(prefix="vaultway-door-"))
    if len(os.fsencode(folder)) <= LONGEST_FOLDER:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="vaultway-door-", dir="/tmp"))


class Door:
    """Serves one stream until it is closed; a context manager.

    Args:
        stream: what is served; read-only unless it is Writable.

    Attributes:
        path: the socket, alone in a directory of mode 0700, removed with it.
    """

    def __init__(self, stream: ReadAt) -> None:
        self._stream = stream
        self._flags = transmission_flags(writable=isinstance(stream, Writable))
        self._folder = short_folder()
        # At the latest when the program ends, if nobody closes it.
        self._remove = finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self.path = self._folder / "nbd.sock"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen(16)
        self._clients: set[socket.socket] = set()
        self._closing = False
        self._threads = [Thread(target=self._accept, name="disk-door", daemon=True)]
        self._threads[0].start()

    @property
    def uri(self) -> str:
        """The door's address, as nbdfuse, qemu-img and QEMU take it."""
        return f"nbd+unix:///?socket={self.path}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up on everybody and remove the socket; waits for a read that is under way."""
        self._closing = True
        for connection in (self._listener, *self._clients):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()
        self._remove()

    def _is_closing(self) -> bool:
        return self._closing

    def shut(self) -> None:
        """Let nobody else in; whoever is in stays. Nothing is left if we are killed after it."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def let_in(self) -> socket.socket:
        """A connection for a program that inherits it: it needs no right to the socket's place."""
        ours, theirs = socket.socketpair()
        self._welcome(ours)
        return theirs

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._welcome(client)

    def _welcome(self, client: socket.socket) -> None:
        self._clients.add(client)
        thread = Thread(target=self._serve, args=(client,), name="disk-door", daemon=True)
        self._threads.append(thread)
        thread.start()
        if self._is_closing():  # it came in while the others were being shown out
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                if self._shake_hands(client):
                    self._transmit(client)
            except OSError as error:
                log.debug("disk door: %s", error)
            finally:
                self._clients.discard(client)

    def _shake_hands(self, client: socket.socket) -> bool:
        """Whether the client wants to go on to read and write."""
        client.sendall(greeting())
        _receive(client, 4)
        while True:
            magic, option, length = OPTION.unpack(_receive(client, OPTION.size))
            if magic != IHAVEOPT or length > MAX_OPTION:
                return False
            _receive(client, length)  # the export's name; there is but one
            if option == OPT_EXPORT_NAME:
                client.sendall(OLD_EXPORT.pack(self._stream.size, self._flags))
                return True
            client.sendall(self._answer(option))
            if option in (OPT_GO, OPT_ABORT):
                return bool(option == OPT_GO)

    def _answer(self, option: int) -> bytes:
        if option in (OPT_GO, OPT_INFO):
            return export_replies(option, self._stream.size, self._flags)
        if option == OPT_LIST:
            return option_reply(option, REP_SERVER, bytes(4)) + option_reply(option, REP_ACK)
        return option_reply(option, REP_ACK if option == OPT_ABORT else REP_ERR_UNSUP)

    def _transmit(self, client: socket.socket) -> None:
        while True:
            request = parse_request(_receive(client, REQUEST.size))
            if request is None or request.kind == CMD_DISC:
                return
            if request.kind in (CMD_READ, CMD_WRITE) and request.length > MAX_REQUEST:
                return
            data = _receive(client, request.length) if request.kind == CMD_WRITE else b""
            code, answer = self._try(request, data)
            client.sendall(reply(request.cookie, code) + answer)

    def _try(self, request: Request, data: bytes) -> tuple[int, bytes]:
        """Error number (0: none) and data."""
        try:
            return 0, self._do(request, data)
        except OutOfSpace:
            return errno.ENOSPC, b""
        except (StoreError, OSError) as error:
            log.debug("disk door: %s", error)
            return error.errno or errno.EIO, b""

    def _do(self, request: Request, data: bytes) -> bytes:
        stream = self._stream
        if request.kind == CMD_READ:
            return stream.read(request.offset, request.length)
        if request.kind in (CMD_FLUSH, CMD_TRIM):
            return b""  # nothing is kept past the end, and nothing need be given back
        if not isinstance(stream, Writable):
            raise PermissionError(errno.EPERM, "this disk is read-only")
        if request.kind == CMD_WRITE:
            stream.write(request.offset, data)
        elif request.kind == CMD_WRITE_ZEROES:
            stream.zero(request.offset, request.length)
        else:
            raise OSError(errno.EINVAL, f"NBD command {request.kind}")
        return b""


def _receive(client: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes. Raises ConnectionError when the client hangs up before."""
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = client.recv_into(view)
        if not count:
            raise ConnectionError("the client hung up")
        view = view[count:]
    return bytes(data)
