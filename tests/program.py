"""The program as a user runs it: `.venv/bin/vaultway` in a child, its mounts and its exports."""

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PROGRAM = Path(sys.executable).parent / "vaultway"
TIMEOUT_S = 240
STATE = tempfile.mkdtemp(prefix="vaultway-state-")
"""For the logs of mounts, where there is no syslog: not in the home of who runs the tests."""
atexit.register(shutil.rmtree, STATE, ignore_errors=True)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours without what may steer the program from outside, plus `extra`."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PBS_", "VAULTWAY_"))}
    # No default key and no configuration of the person, or the machine, that runs the tests.
    ours = {
        "XDG_CONFIG_HOME": "/nonexistent",
        "VAULTWAY_CONFIG": os.devnull,
        "XDG_STATE_HOME": STATE,
        "XDG_CACHE_HOME": f"{STATE}/cache",
        "LC_ALL": "C.UTF-8",
    }
    return inherited | ours | dict(extra or {})


def run(
    *arguments: object, env: Mapping[str, str] | None = None, expect: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run the program without a terminal; fails the test unless it exits with `expect`."""
    done = subprocess.run(
        [PROGRAM, *map(str, arguments)],
        env=environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == expect, (
        f"{arguments}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def error_line(*arguments: object, env: Mapping[str, str] | None = None, expect: int) -> str:
    """Run what must fail with exit code `expect`; returns its last line, the one that names the
    thing."""
    lines = run(*arguments, env=env, expect=expect).stderr.strip().splitlines()
    assert lines, "failed without a word"
    assert lines[-1].startswith("vaultway: "), lines
    return lines[-1]


@contextmanager
def started(
    *arguments: object, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run the program beside the test; on the way out it gets SIGTERM and has to end."""
    process = subprocess.Popen(
        [PROGRAM, *map(str, arguments)],
        env=environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            assert process.stdout
            process.stdout.close()


@contextmanager
def mounted(
    repository: Path | str, mountpoint: Path, *options: object, env: Mapping[str, str] | None = None
) -> Iterator[Path]:
    """Mount `repository`; yields the mount point, and takes the mount away whatever the test
    did."""
    mountpoint.mkdir(exist_ok=True)
    run("mount", repository, mountpoint, *options, env=env)
    try:
        yield mountpoint
    finally:
        done = subprocess.run(
            [PROGRAM, "umount", mountpoint], capture_output=True, text=True, check=False
        )
        if os.path.ismount(mountpoint):
            subprocess.run(["fusermount3", "-u", "-z", mountpoint], check=False)
    assert done.returncode == 0, done.stderr


@contextmanager
def exported(
    *arguments: object, socket: Path, env: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Export over the Unix socket `socket`; yields the base of its URIs: `nbd+unix://{base of
    names}`."""
    with started("export", *arguments, "--socket", socket, env=env) as process:
        assert process.stdout
        line = process.stdout.readline()
        assert "nbd" in line, f"no ready line: {line!r}, exit {process.poll()}"
        yield line.strip()


def uri(socket: Path, name: str = "") -> str:
    """The URI of export `name` on a Unix socket."""
    return f"nbd+unix:///{name}?socket={socket}"
