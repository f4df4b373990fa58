"""One QEMU process: started, watched and ended.

It may not outlive us, whatever becomes of us: the kernel kills it when the thread that started it
ends (PR_SET_PDEATHSIG goes by threads), so one thread starts it, reads its console and waits for
its end. It leaves nothing behind: its files are inherited descriptors.
"""

import os
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

from store.disks.microvm.appliance import QEMU, Kernel
from store.disks.microvm.protocol import printable
from store.errors import BackendError

MEMORY_MIB = 192
# Translated code, of an emulated processor.
CODE_MIB = 64
CONSOLE_KEPT = 16 * 1024
END_TIMEOUT_S = 10
PANIC = "Kernel panic"

# tsc, timer: no calibration against clocks that a busy host keeps late. mitigations: the guest has
# no secrets. lsm: no policies are loaded. panic, reboot: a panic ends QEMU at once.
KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet panic=-1 oops=panic reboot=t tsc=reliable no_timer_check "
    "mitigations=off random.trust_cpu=on lsm=none audit=0 8250.nr_uarts=1"
)
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def qemu_command(
    kernel: Kernel, accelerator: str, disk: Path, port: int, first_root: int
) -> list[str]:
    """The command line.

    Args:
        kernel: to boot.
        accelerator: `tcg` or `kvm`.
        disk: the Unix socket of an NBD server; the guest may write to what it serves.
        port: descriptor of the socket that the agent's serial port is.
        first_root: descriptor of the guest's first files, a cpio archive.
    """
    accel = f"tcg,tb-size={CODE_MIB}" if accelerator == "tcg" else accelerator
    return [
        # Not the machine "microvm": its clock is not found on a busy host (note 0020).
        QEMU, "-machine", "pc,usb=off,vmport=off,hpet=on", "-accel", accel, "-cpu", "max",
        "-m", f"{MEMORY_MIB}M", "-smp", "1", "-nodefaults", "-no-user-config", "-sandbox", _SANDBOX,
        "-display", "none", "-no-reboot", "-serial", "stdio", "-nic", "none",
        "-kernel", str(kernel.image), "-initrd", f"/proc/self/fd/{first_root}",
        "-append", KERNEL_ARGUMENTS,
        "-chardev", f"socket,id=port,fd={port}", "-device", "virtio-serial-pci,max_ports=2",
        "-device", "virtserialport,chardev=port",
        "-blockdev", f"driver=nbd,node-name=disk,server.type=unix,server.path={disk}",
        "-device", "virtio-blk-pci,drive=disk",
    ]  # fmt: skip


class Machine:
    """A running QEMU. `port` talks to the agent in it.

    Args:
        command: makes the command line from the two descriptors it inherits, port and first root.
        first_root: contents of the second.
        name: of the disk, for messages.

    Raises BackendError: it cannot be started.
    """

    def __init__(self, command: "Command", first_root: bytes, name: str) -> None:
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

    def _live(self, command: "Command", theirs: socket.socket, first_root: bytes) -> None:
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


class Command:
    """Makes a command line: for tests that start something else than QEMU, a Protocol's place."""

    def __init__(self, kernel: Kernel, accelerator: str, disk: Path) -> None:
        self._kernel, self._accelerator, self._disk = kernel, accelerator, disk

    def __call__(self, port: int, first_root: int) -> list[str]:
        return qemu_command(self._kernel, self._accelerator, self._disk, port, first_root)


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
