"""One QEMU process: started, watched and ended.

It may not outlive us, whatever becomes of us: the kernel kills it when the thread that started it
ends (PR_SET_PDEATHSIG goes by threads), so one thread starts it, reads its console and waits for
its end. It leaves nothing behind: its files are inherited descriptors.

What a guest's disk makes of QEMU must not hurt anybody: it is confined to what it inherits, its own
programs' files and /dev/kvm.
"""

import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event, Thread

from store.disks.confined import Confinement, confined, environment
from store.disks.microvm.protocol import printable
from store.errors import BackendError

CONSOLE_KEPT = 16 * 1024
END_TIMEOUT_S = 10
PANIC = "Kernel panic"

KVM = Path("/dev/kvm")

# From the descriptors that the process inherits: its port, disk, kernel and first root.
Command = Callable[[int, int, int, int], list[str]]


class Machine:
    """A running QEMU. `port` talks to the agent in it.

    Args:
        command: makes the command line from the descriptors it inherits.
        disk: the second, which is closed here: a connection to the door of its disk.
        kernel: contents of the third.
        first_root: of the fourth.
        name: of the disk, for messages.

    Raises BackendError: it cannot be started.
    """

    def __init__(
        self, command: Command, disk: socket.socket, kernel: bytes, first_root: bytes, name: str
    ) -> None:
        self.name = name
        self.port, theirs = socket.socketpair()
        self._console = bytearray()
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: OSError | None = None
        self._started, self._ended = Event(), Event()
        self._thread = Thread(
            target=self._live,
            args=(command, theirs, disk, kernel, first_root),
            name="micro-vm",
            daemon=True,
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

    def _live(
        self, command: Command, theirs: socket.socket, disk: socket.socket, *contents: bytes
    ) -> None:
        """The thread: it must not end before QEMU does."""
        try:
            with theirs, disk, ExitStack() as files:
                inherited = [theirs.fileno(), disk.fileno()]
                inherited += [_in_memory(files, each) for each in contents]
                self._process = self._start(command(*inherited), inherited)
        except OSError as error:
            self._failure = error
        finally:
            self._started.set()
        if self._process is not None:
            self._listen(self._process)
        self._ended.set()
        with suppress(OSError):
            self.port.shutdown(socket.SHUT_RDWR)  # whoever waits for a reply learns of it

    def _start(self, command: list[str], inherited: list[int]) -> "subprocess.Popen[bytes]":
        confinement = Confinement(
            writable=(str(KVM),) if KVM.exists() else (),
            groups=(KVM.stat().st_gid,) if KVM.exists() else (),
            has_threads=True,
            ends_with_parent=True,
        )
        return subprocess.Popen(
            confined([_path_of(command[0]), *command[1:]], confinement),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            pass_fds=inherited, start_new_session=True, env=os.environ | environment(),
        )  # fmt: skip

    def _listen(self, process: "subprocess.Popen[bytes]") -> None:
        with process:
            assert process.stdout is not None
            while data := os.read(process.stdout.fileno(), 4096):
                self._console += data
                del self._console[:-CONSOLE_KEPT]


def _path_of(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise FileNotFoundError(errno.ENOENT, f"no {program}")
    return path


def _in_memory(files: ExitStack, data: bytes) -> int:
    """A file that anybody may open who has it."""
    file = os.memfd_create("micro-vm")
    files.callback(os.close, file)
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
    return file
