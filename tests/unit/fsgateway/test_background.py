"""Going into the background: the command returns when it is up, or says why it is not.

Each in a process of its own: a test process has threads, and must not fork.
"""

import subprocess
import sys
import textwrap
from pathlib import Path

HEAD = """
import os, sys, time
from pathlib import Path
from fsgateway.background import log_to, start_in_background
from store.errors import Locked, StoreError
here = Path(sys.argv[1])
"""


def run(script: str, here: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HEAD + textwrap.dedent(script), str(here)]
    root = Path(__file__).parents[3]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=root, timeout=60
    )


def test_it_returns_when_ready_and_the_child_goes_on(tmp_path: Path) -> None:
    done = run(
        """
        def work(ready):
            ready()
            print("into the void")
            (here / "where").write_text(os.getcwd())
            (here / "session").write_text(str(os.getsid(0) == os.getpid()))
            (here / "done").touch()
        start_in_background(work)
        while not (here / "done").exists():
            time.sleep(0.01)
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "where").read_text() == "/"
    assert (tmp_path / "session").read_text() == "True"


def test_a_failed_start_is_raised_with_its_exit_code(tmp_path: Path) -> None:
    done = run(
        """
        def work(ready):
            raise Locked("it is taken")
        try:
            start_in_background(work)
        except StoreError as error:
            print(error, error.exit_code)
        """,
        tmp_path,
    )
    assert done.stdout == "it is taken 12\n"


def test_a_child_that_dies_is_noticed(tmp_path: Path) -> None:
    done = run(
        """
        for way in (lambda: os.kill(os.getpid(), 9), lambda: 1 // 0, lambda: os._exit(3)):
            try:
                start_in_background(lambda ready: way())
            except StoreError as error:
                print(error)
        """,
        tmp_path,
    )
    lines = done.stdout.splitlines()
    assert "-9" in lines[0]
    assert "ZeroDivisionError" in lines[1]
    assert "3" in lines[2]


def test_the_log_has_what_ends_it_later(tmp_path: Path) -> None:
    done = run(
        """
        def work(ready):
            log_to(str(here / "deep" / "log"))
            ready()
            try:
                raise Locked("too late")
            finally:
                (here / "done").touch()
        start_in_background(work)
        while "too late" not in (here / "deep" / "log").read_text():
            time.sleep(0.01)
        """,
        tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_log_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run(
        """
        try:
            log_to(str(here / "file" / "log"))
        except StoreError as error:
            print(error)
        """,
        tmp_path,
    )
    assert str(tmp_path / "file/log") in done.stdout
