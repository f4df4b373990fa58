"""One QEMU process: started, watched and ended.

It may not outlive us, whatever becomes of us: the kernel kills it when the thread that started it
ends (PR_SET_PDEATHSIG goes by threads), so one thread starts it, reads its console and waits for
its end. It leaves nothing behind: its files are inherited descriptors.
"""

import os
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread

from store.disks.microvm.protocol import printable
from store.errors import BackendError

CONSOLE_KEPT = 16 * 1024
END_TIMEOUT_S = 10
PANIC = "Kernel panic"

# From the two descriptors that the process inherits, its port and its first root.
Command = Callable[[int, int], list[str]]


class Machine:
    """A running QEMU. `port` talks to the agent in it.

    Args:
        command: makes the command line from the two descriptors it inherits, port and first root.
        first_root: contents of the second.
        name: of the disk, for messages.

    Raises BackendError: it cannot be started.
    """

    def __init__(self, command: Command, first_root: bytes, name: str) -> None:
        self.name = name
        self.port, theirs = socket.socketpair()
        self._console = bytearray()
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: OSError | None = None
        self._started, self._ended = Event(), Event()
        self._thread = Thread(
            target=self._live, args=(command, theirs, first_root), name="micro-vm", daemon=True
        )
        self._thread.start()
        self._started.wait()
        self._check_started()

    def _check_started(self) -> None:
        if self._failure is not None:
            self.port.close()
            why = self._failure.strerror
            raise BackendError(f"{self.name}: the micro-VM cannot be started: {why}")

    @property
    def pid(self) -> int:
        """Of QEMU."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether QEMU has not ended."""
        return not self._ended.is_set()

    def kill(self) -> None:
        """End it and wait until it has gone; again, and from any thread, does no harm."""
        with suppress(OSError):
            self.port.shutdown(socket.SHUT_RDWR)
        if self._process is not None and self.is_running:
            self._process.kill()
        self._thread.join(END_TIMEOUT_S)

    def last_words(self) -> str:
        """What its console said last, one line: of a panic if there was one."""
        self._ended.wait(1)
        lines = [line.strip() for line in printable(bytes(self._console)).splitlines()]
        told = [line for line in lines if PANIC in line] or [line for line in lines if line][-1:]
        return told[0][:200] if told else "it said nothing"

    def _live(self, command: Command, theirs: socket.socket, first_root: bytes) -> None:
        """The thread: it must not end before QEMU does."""
        with theirs:
            files = os.memfd_create("first-root")
            try:
                _write(files, first_root)
                self._process = self._start(command(theirs.fileno(), files), theirs, files)
            except OSError as error:
                self._failure = error
            finally:
                os.close(files)
                self._started.set()
        if self._process is not None:
            self._listen(self._process)
        self._ended.set()
        with suppress(OSError):
            self.port.shutdown(socket.SHUT_RDWR)  # whoever waits for a reply learns of it

    def _start(
        self, command: list[str], theirs: socket.socket, files: int
    ) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            pass_fds=(theirs.fileno(), files), start_new_session=True,
        )  # fmt: skip

    def _listen(self, process: "subprocess.Popen[bytes]") -> None:
        with process:
            assert process.stdout is not None
            while data := os.read(process.stdout.fileno(), 4096):
                self._console += data
                del self._console[:-CONSOLE_KEPT]


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
