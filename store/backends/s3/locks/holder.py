"""Who holds a lock: what a claim's body says of the process, and whether that process has died."""

import json
import os
import socket
from dataclasses import asdict, dataclass
from typing import Self

from store.errors import InvalidName
from store.names import format_backup_time

MAX_PID = 1 << 22
BOOT_ID = "/proc/sys/kernel/random/boot_id"
NAMESPACES = ("/proc/self/ns/pid", "/proc/self/ns/time")
STATE, START_TIME = 0, 19
"""Fields of /proc/PID/stat, counted from behind the name, which may hold anything."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process, so that another of the same host can tell whether it still runs.

    Attributes:
        host: its name, for people.
        boot_id, namespaces: the kernel that runs it, since it started, and the namespaces that
            give `pid` and `started` their meaning.
        started: in clock ticks after boot, because pids come again; 0 is not known.
        since: when it took the lock, seconds since the epoch by its own clock.
    """

    host: str = ""
    boot_id: str = ""
    namespaces: str = ""
    pid: int = 0
    started: int = 0
    since: int = 0

    @classmethod
    def this_process(cls, since: float) -> Self:
        pid = os.getpid()
        namespaces = " ".join(map(_link, NAMESPACES))
        started = (_status(pid) or ("", 0))[1]
        return cls(socket.gethostname(), _line(BOOT_ID), namespaces, pid, started, int(since))

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """What `encode` made; whatever else it is, a holder of which nothing is known."""
        try:
            holder = cls(**json.loads(body))
            whole = all(isinstance(n, int) for n in (holder.pid, holder.started, holder.since))
            return holder if whole and 0 < holder.pid <= MAX_PID else cls()
        except (ValueError, TypeError):
            return cls()

    def __str__(self) -> str:
        if not self.pid:
            return "an unknown process"
        try:
            return f"process {self.pid} on {self.host}, since {format_backup_time(self.since)}"
        except InvalidName:
            return f"process {self.pid} on {self.host}"

    def has_died(self) -> bool:
        """Whether it ran on this very host and no longer does; False where that can't be seen.

        Another user's process may be hidden in /proc, but not from kill.
        """
        here = Holder.this_process(0)
        if not self.boot_id or self._place != here._place:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        status = _status(self.pid)
        if status is None:
            return False
        state, started = status
        return state in "ZX" or (self.started != 0 and started != self.started)

    @property
    def _place(self) -> tuple[str, str, str]:
        return self.host, self.boot_id, self.namespaces


def _status(pid: int) -> tuple[str, int] | None:
    """State and start time of a process; None where they can't be seen."""
    fields = _line(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (fields[STATE], int(fields[START_TIME])) if len(fields) > START_TIME else None


def _line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
