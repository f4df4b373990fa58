"""What programs cannot do that look at what a guest wrote, be it root's or an ordinary user's."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.disks import landlock
from store.disks.confined import Confinement, confined, environment
from store.disks.parsers.sandbox import NOBODY
from tests.conftest import scratch_folder

# A system's own, for ours may be in somebody's home.
PYTHON = "/usr/bin/python3"
ORDINARY = 12345
NOTHING = Confinement()
pytestmark = pytest.mark.needs("root")  # only root can be two users


@pytest.fixture(params=["root", "ordinary"])
def user(request: pytest.FixtureRequest) -> int | None:
    """Who starts the program: None is who runs the tests."""
    return None if request.param == "root" else ORDINARY


@pytest.fixture
def folder(user: int | None) -> Iterator[Path]:
    """The user's own."""
    with scratch_folder() as folder:
        folder.chmod(0o755)
        if user is not None:
            os.chown(folder, user, user)
        yield folder


def ran(
    code: str, user: int | None, confinement: Confinement = NOTHING
) -> subprocess.CompletedProcess[str]:
    """A program in Python, confined."""
    return subprocess.run(
        confined([PYTHON, "-I", "-S", "-c", code], confinement),
        capture_output=True, text=True, timeout=60, check=False, user=user, group=user,
        env={"PATH": "/usr/bin:/bin"} | environment(),
        pass_fds=[file for file in confinement.writable if isinstance(file, int)],
    )  # fmt: skip


def said(code: str, user: int | None, confinement: Confinement = NOTHING) -> str:
    done = ran(code, user, confinement)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_nobody_is_root(user: int | None) -> None:
    expected = NOBODY if user is None else user
    assert said("import os; print(os.getuid(), os.getgroups())", user) == f"{expected} []"
    status = said("print(open('/proc/self/status').read())", user)
    assert "NoNewPrivs:\t1" in status
    assert "CapEff:\t0000000000000000" in status
    assert "Seccomp:\t2" in status
    assert said("import os; print('PYTHONPATH' in os.environ)", user) == "False"


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.socket()",
        "import socket; socket.socketpair()",
        "import os; os.fork()",
        "import os; os.kill(os.getppid(), 0)",
        "import _thread; _thread.start_new_thread(print, ())",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
    ],
)
def test_what_is_refused(user: int | None, code: str) -> None:
    done = ran(code, user)
    assert done.returncode == 1
    assert "Operation not permitted" in done.stderr or "can't start new thread" in done.stderr


@pytest.mark.skipif(not landlock.version(), reason="this kernel has no Landlock")
class TestFiles:
    def test_nothing_of_the_users_is_read_or_written(self, user: int | None, folder: Path) -> None:
        secret = folder / "secret"
        secret.write_text("secret")
        secret.chmod(0o666)
        folder.chmod(0o777)
        for code in (
            f"open({str(secret)!r})",
            f"open({str(secret)!r}, 'w')",
            f"open({str(folder / 'new')!r}, 'w')",
            "open('/etc/hostname')",
            f"import os; os.unlink({str(secret)!r})",
            f"import os; os.listdir({str(folder)!r})",
            f"import os; os.mkdir({str(folder / 'new')!r})",
            f"import os; os.rename({str(secret)!r}, {str(folder / 'other')!r})",
        ):
            done = ran(code, user)
            assert done.returncode == 1, code
            assert "Permission denied" in done.stderr, done.stderr
        assert os.listdir(folder) == ["secret"]
        assert secret.read_text() == "secret"

    def test_the_file_it_is_for_is_written(self, user: int | None, folder: Path) -> None:
        path = folder / "disk"
        path.write_bytes(b"old")
        path.chmod(0o666)
        with path.open("r+b") as file:
            path.unlink()
            descriptor = file.fileno()
            code = f"open('/proc/self/fd/{descriptor}', 'r+b').write(b'new')"
            said(code, user, Confinement((descriptor,)))
            assert file.read() == b"new"


def test_limits(user: int | None) -> None:
    assert "MemoryError" in ran("x = bytes(1 << 30)", user, Confinement(memory=1 << 29)).stderr
    assert ran("while True: pass", user, Confinement(cpu_s=1)).returncode == -9


def test_threads_where_they_are_needed(user: int | None) -> None:
    code = "import threading; t = threading.Thread(target=print, args=('hi',)); t.start(); t.join()"
    assert said(code, user, Confinement(has_threads=True)) == "hi"


def test_it_ends_with_the_thread_that_started_it(user: int | None) -> None:
    processes = []

    def start() -> None:
        command = [PYTHON, "-I", "-S", "-c", "print(flush=True); import time; time.sleep(60)"]
        process = subprocess.Popen(
            confined(command, Confinement(ends_with_parent=True)),
            stdout=subprocess.PIPE, env=environment(), user=user, group=user,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        processes.append(process)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    with processes[0] as process:
        started = time.monotonic()
        assert process.wait(30) == -9
        assert time.monotonic() - started < 20


def test_what_cannot_be_started_is_said(user: int | None) -> None:
    done = subprocess.run(
        confined(["/usr/bin/no-such-program"], NOTHING),
        capture_output=True, text=True, check=False, env=environment(), cwd=sys.prefix, user=user,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "cannot be confined: [Errno 2] No such file or directory\n"
