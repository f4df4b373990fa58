"""scripts/demo: does what it says, and leaves nothing behind, also when it is interrupted."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.machine import scratch_parent

pytestmark = pytest.mark.needs("fuse", "nbd", "qemu", "root")

DEMO = Path(__file__).parent.parent.parent / "scripts/demo"


@pytest.fixture
def work() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vaultway-test-", dir=scratch_parent()) as folder:
        yield Path(folder)


def start(work: Path, tree: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [DEMO, tree, "--work", work],
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def assert_nothing_left(work: Path) -> None:
    assert not os.listdir(work)
    assert str(work) not in Path("/proc/self/mounts").read_text()
    running = [
        text
        for folder in Path("/proc").glob("[0-9]*")
        if (text := command_line(folder)) and str(work) in text
    ]
    assert not running


def command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""  # it has ended


def test_whole(work: Path, source_tree: Callable[[int], Path]) -> None:
    with start(work, source_tree(1) / "tree") as demo:
        output = demo.communicate(timeout=200)[0]
    assert demo.returncode == 0, output
    for step in (
        "first backup",
        "again, metadata mode",
        "mount",
        "identical",
        "marker on the console",
    ):
        assert step in output
    assert_nothing_left(work)


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        pytest.param("vaultway backup root", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("entries with attributes", signal.SIGTERM, marks=pytest.mark.slow),
        ("vaultway umount", signal.SIGINT),
        pytest.param("guest:", signal.SIGINT, marks=pytest.mark.slow),
        ("guest:", signal.SIGTERM),
    ],
)
def test_interrupted(
    work: Path, source_tree: Callable[[int], Path], moment: str, number: signal.Signals
) -> None:
    """Ctrl-C goes to all of the terminal's processes, SIGTERM to the one that was started."""
    with start(work, source_tree(1) / "tree") as demo:
        assert demo.stdout
        seen = next((line for line in demo.stdout if moment in line), "")
        assert seen, "never came so far"
        if number == signal.SIGINT:
            os.killpg(demo.pid, number)
        else:
            demo.send_signal(number)
        demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert_nothing_left(work)


def test_no_such_directory(work: Path) -> None:
    with start(work, Path("/no/such/tree")) as demo:
        output = demo.communicate(timeout=60)[0]
    assert demo.returncode == 1
    assert "/no/such/tree" in output.splitlines()[-1]
    assert_nothing_left(work)
