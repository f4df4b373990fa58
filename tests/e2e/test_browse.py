"""Looking into snapshots without a mount, with the program as people run it, against find, cmp and
the sources; and the shell at a real terminal."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.program import PROGRAM, environment, error_line, run

DAYS = ("2025-01-01T00:00:00Z", "2025-01-02T00:00:00Z")
MODES = ("legacy", "data")


def write_tree(tree: Path) -> None:
    """A few hundred files of every kind that an ordinary user can make."""
    for number in range(300):
        folder = tree / f"d{number % 7}" / f"e{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file-{number}.{'txt' if number % 2 else 'Log'}").write_bytes(b"x" * number * 37)
    (tree / "large.bin").write_bytes(os.urandom(20 << 20))
    (tree / "d1/link").symlink_to("../large.bin")
    (tree / "d2/twin").hardlink_to(tree / "d1/e1/file-1.txt")
    (tree / "d3/new\nline\x1b[31m").write_text("hostile")
    (tree / os.fsdecode(b"d3/\xff\xfe")).write_text("bytes")
    os.mkfifo(tree / "d4/fifo")
    for path in tree.rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000), follow_symlinks=False)


def change_tree(tree: Path) -> None:
    (tree / "d0/e0/file-0.Log").unlink()
    (tree / "d1/added").write_text("new")
    (tree / "d1/e1/file-1.txt").write_text("changed")
    (tree / "d2/e2/file-2.Log").chmod(0o600)
    (tree / "d4/fifo").unlink()
    (tree / "d4/fifo").write_text("now a file")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it is on the second day; the snapshots of the first have it before the change."""
    return tmp_path_factory.mktemp("browse") / "tree"


@pytest.fixture(scope="module")
def store(module_store: Path, tree: Path) -> Path:
    for day, change in zip(DAYS, (write_tree, change_tree), strict=True):
        change(tree)
        for mode in MODES:
            run(
                "backup", f"root.pxar:{tree}", "--repository", module_store, "--backup-id", mode,
                "--backup-time", day, "--change-detection-mode", mode, "--quiet",
            )  # fmt: skip
    return module_store


def output(store: Path, *arguments: object) -> bytes:
    done = subprocess.run(
        [PROGRAM, *map(str, arguments), "--repository", store],
        env=environment(), capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    assert not done.stderr
    return done.stdout


def find(tree: Path, *tests: str) -> set[bytes]:
    command = ["find", ".", "-mindepth", "1", *tests, "-printf", "root.pxar/%P\\0"]
    done = subprocess.run(command, cwd=tree, capture_output=True, check=True)
    return set(done.stdout.split(b"\0")) - {b""}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([], []),
        (["--name", "*.txt"], ["-name", "*.txt"]),
        (["--iname", "*.LOG", "--type", "f"], ["-iname", "*.LOG", "-type", "f"]),
        (["--type", "d,l"], ["-type", "d,l"]),
        (["--size", "+5k", "--type", "f"], ["-size", "+5120c", "-type", "f"]),
        (["--size", "-2k", "--type", "f"], ["-size", "-2048c", "-type", "f"]),
        (["--path", "/d1/**"], ["-path", "./d1/*"]),
        (["--newer", "2023-11-14T22:13:21Z"], ["-newermt", "@1700000000.5"]),
        (["--older", "2023-11-14T22:13:21Z"], ["!", "-newermt", "@1700000000.5"]),
    ],
)
def test_find_as_find(
    store: Path, tree: Path, mode: str, ours: list[str], theirs: list[str]
) -> None:
    found = output(store, "snapshot", "find", f"host/{mode}", "-0", *ours)
    assert set(found.split(b"\0")) - {b""} == find(tree, *theirs)


@pytest.mark.parametrize("mode", MODES)
def test_cat_is_exact(store: Path, tree: Path, mode: str, tmp_path: Path) -> None:
    for name in ("large.bin", "d1/e1/file-1.txt", "d2/twin", "d3/new\nline\x1b[31m"):
        found = output(store, "snapshot", "cat", f"host/{mode}", f"root.pxar/{name}")
        assert found == (tree / name).read_bytes()
    paths = ("root.pxar/d1/link", os.fsdecode(b"root.pxar/d3/\xff\xfe"))
    both = output(store, "snapshot", "cat", f"host/{mode}", *paths)
    assert both == (tree / "large.bin").read_bytes() + b"bytes"
    run("restore", f"host/{mode}", "root.pxar/large.bin", tmp_path / "x", "--repository", store)
    assert (tmp_path / "x").read_bytes() == (tree / "large.bin").read_bytes()


def test_control_characters_never_reach_the_terminal(store: Path) -> None:
    for command in (
        ["snapshot", "find", "host/data"],
        ["snapshot", "find", "host/data", "-l"],
        ["snapshot", "find", "host/data", "--output-format", "json"],
        ["snapshot", "files", "host/legacy", "root.pxar/d3"],
        ["catalog", "dump", "host/legacy"],
        ["snapshot", "diff", "host/data", "host/legacy", "root.pxar/d3", "--quiet"],
    ):
        out = output(store, *command)
        assert b"\x1b" not in out
        out.decode()


def test_json_lines(store: Path, tree: Path) -> None:
    out = output(store, "snapshot", "find", "host/data", "--type", "f", "--output-format", "json")
    found = [json.loads(line) for line in out.splitlines()]
    sizes = {record["path"]: record["size"] for record in found}
    assert sizes["root.pxar/large.bin"] == 20 << 20
    assert sizes["root.pxar/d2/twin"] == 7
    assert all(record["mtime"] >= 1_700_000_000 for record in found)


@pytest.mark.parametrize("before", MODES)
@pytest.mark.parametrize("after", MODES)
def test_diff(store: Path, before: str, after: str) -> None:
    done = run(
        "snapshot", "diff", f"host/{before}/{DAYS[0]}", f"host/{after}/{DAYS[1]}", "--content",
        "--repository", store,
    )  # fmt: skip
    changes = [line for line in done.stdout.splitlines() if not line.endswith("/")]
    assert sorted(changes) == [
        "+ root.pxar/d1/added",
        "- root.pxar/d0/e0/file-0.Log",
        "M root.pxar/d1/e1/file-1.txt",
        "M root.pxar/d2/twin",
        "T root.pxar/d4/fifo",
        "U root.pxar/d2/e2/file-2.Log",
    ]
    same = output(
        store, "snapshot", "diff", f"host/{before}", f"host/{after}", "--content", "--quiet"
    )
    assert same == b""


def test_a_damaged_chunk_costs_what_it_has(store: Path, tmp_path: Path) -> None:
    """Search goes on, with a warning, and the exit code says it."""
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", store, copy], check=True)
    subprocess.run(["find", copy / ".chunks", "-type", "f", "-delete"], check=True)
    cat = ("snapshot", "cat", "host/data", "root.pxar/large.bin", "--repository", copy)
    where = ("host/data", "--repository", copy)
    assert "chunk" in error_line(*cat, expect=15)
    done = run("snapshot", "find", *where, expect=15)
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("warning: root.pxar: ")


def test_a_slow_reader_gets_every_byte(store: Path, tree: Path) -> None:
    """Our timer's signal comes while the pipe is full; without a buffer Python lost the rest."""
    slow = "import sys, time; [time.sleep(0.7) or sys.stdin.buffer.read(3 << 20) for _ in range(3)]"
    slow += "; sys.stdout.buffer.write(sys.stdin.buffer.read())"
    expected = (tree / "large.bin").read_bytes()[9 << 20 :]
    for mode in MODES:
        command = f"{PROGRAM} snapshot cat host/{mode} root.pxar/large.bin --repository {store}"
        done = subprocess.run(
            ["bash", "-c", f"{command} | {sys.executable} -c '{slow}'"],
            env=environment({"PYTHONUNBUFFERED": "1"}), capture_output=True, check=True,
        )  # fmt: skip
        assert done.stdout == expected


def test_nobody_reads_any_more(store: Path) -> None:
    command = f"{PROGRAM} snapshot find host/data --repository {store} -l; echo $? >&2"
    done = subprocess.run(
        ["bash", "-c", f"( {command} ) | head -n 1"],
        env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.count("\n") == 1
    assert done.stderr in ("141\n", "0\n")


def test_shell_as_a_script(store: Path, tree: Path, tmp_path: Path) -> None:
    lines = f"cd d1\nls e1\nfind *.txt --select\nselect /d2/twin\nrestore-selected {tmp_path}/out\n"
    done = subprocess.run(
        [PROGRAM, "catalog", "shell", "host/legacy", "--repository", store],
        input=lines, env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "e1/" not in done.stdout.splitlines()
    expected = {path.relative_to(tree) for path in (tree / "d1").rglob("*.txt")}
    expected.add(Path("d2/twin"))
    found = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path / "out") for path in found} == expected
    for path in expected:
        assert (tree / path).read_bytes() == (tmp_path / "out" / path).read_bytes()
    assert (tmp_path / "out/d2/twin").samefile(tmp_path / "out/d1/e1/file-1.txt")
    assert (tmp_path / "out/d1").stat().st_mtime_ns == (tree / "d1").stat().st_mtime_ns


class Terminal:
    """The program at a pseudo terminal."""

    def __init__(self, file: int, pid: int) -> None:
        self.file, self.pid = file, pid
        self._rest = ""

    def expect(self, text: str) -> str:
        """Read until `text` is there, 20 seconds at most; what follows it is for the next call."""
        seen, deadline = self._rest, time.monotonic() + 20
        while text not in seen:
            ready, _, _ = select.select([self.file], [], [], deadline - time.monotonic())
            assert ready, f"no {text!r} in {seen!r}"
            try:
                seen += os.read(self.file, 65536).decode(errors="replace")
            except OSError:
                raise AssertionError(f"ended: {seen!r}") from None
        seen, _, self._rest = seen.partition(text)
        seen += text
        return re.sub(r"\x1b\[\?2004[hl]", "", seen)

    def type(self, text: str) -> None:
        os.write(self.file, text.encode())

    def exit_code(self) -> int:
        try:
            while os.read(self.file, 65536):
                pass
        except OSError:
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@contextmanager
def shell_at_a_terminal(store: Path) -> Iterator[Terminal]:
    pid, file = pty.fork()
    if pid == 0:
        arguments = ["catalog", "shell", "host/data", "--repository", str(store)]
        os.execve(PROGRAM, [str(PROGRAM), *arguments], environment({"TERM": "dumb"}))
    try:
        yield Terminal(file, pid)
    finally:
        os.close(file)


def test_shell_at_a_terminal(store: Path) -> None:
    with shell_at_a_terminal(store) as terminal:
        terminal.expect("root.pxar:/ > ")
        terminal.type("cd d1/e\t\t")
        listed = terminal.expect("d1/e2/")
        assert "d1/e0/" in listed
        terminal.type("1\t\n")
        terminal.expect("root.pxar:/d1/e1 > ")
        terminal.type("select fi\t1.t\t\n")
        terminal.expect("1 more selected, 1 in all\r\nroot.pxar:/d1/e1 > ")
        terminal.type("half a li\x03")
        terminal.expect("\r\nroot.pxar:/d1/e1 > ")  # what is typed before is lost
        terminal.type("pwd\n")
        terminal.expect("/d1/e1\r\n")
        terminal.type("cd /nowhere\n")
        terminal.expect("error: /nowhere")
        terminal.expect("root.pxar:/d1/e1 > ")
        terminal.type("\x1b[A\x1b[A\n")  # history
        terminal.expect("/d1/e1\r\nroot.pxar:/d1/e1 > ")
        terminal.type("\x04")
        assert terminal.exit_code() == 0


def test_shell_ends_with_the_program(store: Path) -> None:
    with shell_at_a_terminal(store) as terminal:
        terminal.expect("root.pxar:/ > ")
        os.kill(terminal.pid, signal.SIGTERM)
        assert terminal.exit_code() == 130
