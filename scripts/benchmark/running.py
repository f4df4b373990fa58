"""Running and timing programs."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).parent.parent.parent
PROGRAM = TOP / ".venv/bin/vaultway"
READY_TIMEOUT_S = 60


class BenchError(Exception):
    """Something could not be measured; the message says what."""


@dataclass(frozen=True)
class Run:
    """One program, run to its end."""

    seconds: float
    output: str
    peak_mib: float  # resident, of the process itself
    cpu_s: float  # of user and system


def run(
    command: Sequence[object], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Run:
    """Run `command`; raises BenchError with its last words when it fails."""
    words = [str(word) for word in command]
    began = time.perf_counter()
    process = subprocess.Popen(
        words, cwd=cwd, env=_environment() | dict(env or {}), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout
    with process.stdout:
        output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise BenchError(
            f"{' '.join(words[:3])}: exit {process.returncode}: {output[-300:].strip()}"
        )
    return Run(seconds, output, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime)


def _environment() -> dict[str, str]:
    """Ours, but Python keeps what it has compiled, as a user's does: a tenth of a second."""
    return {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """What is started inside, threads too, has only these processors."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_seconds(pid: int) -> float:
    """What a running process has used up to now, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def limit(*arguments: object) -> float:
    """Seconds of a bare loop of limits.py."""
    command = [sys.executable, "-m", "scripts.benchmark.limits", *arguments]
    return float(run(command, cwd=TOP).output)


@contextmanager
def running(
    command: Sequence[object],
    *,
    env: Mapping[str, str] | None = None,
    output: int = subprocess.DEVNULL,
) -> Iterator[subprocess.Popen[str]]:
    """A process beside us, ended on the way out."""
    process = subprocess.Popen(
        [str(word) for word in command], env=os.environ | dict(env or {}), text=True,
        stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()


def wait_until(ready: "object", process: subprocess.Popen[str], what: str) -> None:
    """Wait until `ready()`; raises BenchError when the process ends first, or after a minute."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not ready():  # type: ignore[operator]
        if process.poll() not in {None, 0} or time.monotonic() > deadline:
            raise BenchError(f"{what} did not get ready")
        time.sleep(0.005)


@contextmanager
def mounted_by(
    command: Sequence[object], mountpoint: Path, env: Mapping[str, str] | None = None
) -> Iterator[None]:
    """A file system that a foreground process serves."""
    mountpoint.mkdir(exist_ok=True)
    with running(command, env=env) as process:
        wait_until(lambda: os.path.ismount(mountpoint), process, str(command[0]))
        try:
            yield
        finally:
            for _ in range(50):
                done = subprocess.run(
                    ["fusermount3", "-u", mountpoint], capture_output=True, check=False
                )
                if done.returncode == 0:
                    break
                time.sleep(0.1)
            else:
                subprocess.run(["fusermount3", "-u", "-z", mountpoint], check=False)


def raise_read_ahead(mountpoint: Path) -> None:
    """Let the kernel read 1 MiB ahead, as our own mount does for itself."""
    device = mountpoint.stat().st_dev
    knob = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    if os.access(knob, os.W_OK):
        knob.write_text("1024")
