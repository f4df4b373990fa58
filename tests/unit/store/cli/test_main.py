"""Exit codes, one-line errors, signals, pipes, and how cheap `--help` is."""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from store import errors
from store.cli import main as main_module
from tests.fakes.datastores import bare_backend
from tests.unit.store.cli.conftest import KEYS, Vaultway

MAIN = [sys.executable, "-m", "store.cli.main"]
HEAVY = (
    "boto3",
    "botocore",
    "numpy",
    "trio",
    "pyfuse3",
    "cryptography",
    "zstandard",
    "tqdm",
    "pickle",
)


def fail_with(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Let `datastore status` do `action`."""
    monkeypatch.setattr("store.cli.datastore.open_repository", lambda _: action())


def raising(error: BaseException) -> Callable[[], object]:
    def action() -> object:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidName("one\nline"), 2),
        (errors.NotFound("one\nline"), 10),
        (errors.AlreadyExists("one\nline"), 10),
        (errors.PermissionDenied("one\nline"), 11),
        (errors.Locked("one\nline"), 12),
        (errors.KeyRequired("one\nline"), 13),
        (errors.WrongKey("one\nline"), 13),
        (errors.FormatError("one\nline"), 14),
        (errors.ChunkMissing("one\nline"), 15),
        (errors.OutOfSpace("one\nline"), 16),
        (errors.SourceError("one\nline"), 17),
    ],
)
def test_store_errors(
    vaultway: Vaultway, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    fail_with(monkeypatch, raising(error))
    assert vaultway("datastore", "status") == (code, "", "vaultway: one line\n")


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), errors.Cancelled(), main_module.Terminated()]
)
def test_interrupted(
    vaultway: Vaultway, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    fail_with(monkeypatch, raising(error))
    assert vaultway("datastore", "status") == (130, "", "vaultway: interrupted\n")


def test_unexpected_error(vaultway: Vaultway, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, raising(RuntimeError("odd")))
    done = vaultway("datastore", "status")
    assert done.code == 70
    assert done.err == "vaultway: internal error: RuntimeError: odd (--debug shows where)\n"
    assert "Traceback" in vaultway("datastore", "status", "--debug").err
    monkeypatch.setenv("VAULTWAY_DEBUG", "1")
    assert "Traceback" in vaultway("datastore", "status").err


@pytest.mark.parametrize("error", [BrokenPipeError(), errors.SourceError("output: Broken pipe")])
def test_broken_pipe_is_quiet(
    vaultway: Vaultway, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    error.__cause__ = BrokenPipeError()
    monkeypatch.setattr(main_module, "close_stream", lambda _: None)
    fail_with(monkeypatch, raising(error))
    assert vaultway("datastore", "status") == (141, "", "")


def test_sigterm_runs_cleanup(vaultway: Vaultway, monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned = []

    def action() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    fail_with(monkeypatch, action)
    assert vaultway("datastore", "status").code == 130
    assert cleaned
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_an_import_wrapped(
    vaultway: Vaultway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.11 makes a RuntimeError of what is raised while a class is made."""
    error = RuntimeError("Error calling __set_name__")
    error.__cause__ = main_module.Terminated("SIGHUP")
    fail_with(monkeypatch, raising(error))
    assert vaultway("datastore", "status") == (130, "", "vaultway: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_after_the_end_changes_no_exit_code(number: signal.Signals) -> None:
    code = (
        "import atexit, os, sys; from store.cli.main import main;"
        f" atexit.register(os.kill, os.getpid(), {int(number)}); sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "key", "show", KEYS / "none.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("snapshot",),
        ("snapshot", "list", "--nonsense"),
        ("snapshot", "list", "x"),
    ],
)
def test_wrong_usage(vaultway: Vaultway, arguments: tuple[str, ...]) -> None:
    done = vaultway(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("vaultway: ")
    assert done.err.count("\n") == 1


def test_options_are_not_abbreviated(vaultway: Vaultway) -> None:
    assert vaultway("datastore", "status", "--repo", "/tmp").code == 2


def test_no_repository(vaultway: Vaultway) -> None:
    done = vaultway("snapshot", "list")
    assert done.code == 2
    assert "PBS_REPOSITORY" in done.err


def test_every_command_has_an_example(vaultway: Vaultway) -> None:
    """Help that teaches: each leaf of the tree shows a line to copy that names it."""
    leaves = list(_leaves(main_module.build_parser()))
    assert len(leaves) > 20
    for parser in leaves:
        text = parser.format_help()
        example = text.partition("example:\n  ")[2].partition("\n")[0]
        assert example.startswith(parser.prog.split(" [")[0]), text
        assert max(map(len, text.splitlines())) <= 110 or "usage" in text


def _leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    groups = [a for a in parser._actions if hasattr(a, "choices") and isinstance(a.choices, dict)]
    if not groups:
        yield parser
    for group in groups:
        for below in group.choices.values():
            yield from _leaves(below)


def test_help_is_cheap() -> None:
    """No heavy module for `--help`; the time is a promise to people who use completion."""
    code = f"""
import sys
from store.cli.main import main
try:
    main(["--help"])
except SystemExit:
    pass
print("HEAVY", sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("HEAVY []")
    assert "PBS_ENCRYPTION_PASSWORD" in done.stdout
    assert time.perf_counter() - started < 2, "it is 0.1 s on a quiet machine"


def test_a_command_of_ours_looks_for_no_others() -> None:
    """That takes as long as all the rest of a start; `email` comes with it."""
    code = f"""
import sys
from store.cli.main import main
main(["key", "show", {str(KEYS / "none.json")!r}])
print("LOADED", sorted({{"importlib.metadata", "email"}} & set(sys.modules)))
print("NOUNS", sorted(name for name in sys.modules if name.startswith("store.cli.snap")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LOADED []\nNOUNS []" in done.stdout


def test_mount_calls_us_without_a_command(vaultway: Vaultway, tmp_path: Path) -> None:
    """As `mount -t fuse.vaultway /srv/vault /mnt/vault -o ro` does."""
    done = vaultway("/srv/vault", tmp_path / "missing", "-o", "ro,nofail")
    assert (done.code, done.err) == (
        10,
        f"vaultway: mount point {tmp_path}/missing does not exist\n",
    )


def test_a_plain_path_loads_nothing_of_what_it_does_not_need(tmp_path: Path) -> None:
    """No TOML without a file, no client of S3 without a bucket."""
    bare_backend(tmp_path).close()
    heavy = {"boto3", "tomllib", "store.repositories.configuration_file", "store.backends.s3"}
    code = f"""
import sys
from store.cli.main import main
main(["snapshot", "list", "--repository", {str(tmp_path)!r}, "--config", ""])
print("LOADED", sorted({heavy!r} & set(sys.modules)))
"""
    env = {**os.environ, "XDG_CONFIG_HOME": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout == "LOADED []\n"


@pytest.mark.parametrize(
    ("arguments", "is_mount"),
    [
        (("/srv/vault", "/mnt"), True),
        (("s3://bucket/vault", "/mnt", "-o", "ro"), True),
        (("prod", "/mnt", "-o", "ro"), True),
        (("backup", "/mnt", "-o", "ro"), True),
        (("mount", "/mnt", "-o", "ro"), False),
        (("mount", "prod", "/mnt", "-o", "ro"), False),
        (("prod", "/mnt"), False),
        (("backup", "a.pxar:/mnt"), False),
        ((), False),
    ],
)
def test_what_mount_calls(arguments: tuple[str, ...], is_mount: bool) -> None:
    assert main_module.is_called_by_mount(arguments) is is_mount


def test_a_signal_is_noticed_whatever_the_main_thread_waits_for() -> None:
    """Also when another thread got it, or it came just before the wait: nothing ends that then."""
    code = """
import signal, threading, time
from store.cli.main import Terminated, terminating

def strike():
    time.sleep(0.3)  # the main thread waits by then
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

with terminating(last=True):
    threading.Thread(target=strike).start()
    taken = threading.Lock()
    taken.acquire()
    try:
        taken.acquire()
    except Terminated:
        print("noticed")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert (done.stdout, done.stderr) == ("noticed\n", "")


def test_results_are_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    """And a name that is not comes out as it is."""
    path = os.fsencode(tmp_path / "näm\udcffe.json")
    for arguments, expected in (
        (["create", path, "--kdf", "none"], path),
        (["show", KEYS / "none.json"], "┌──".encode()),
    ):
        done = subprocess.run(
            [*MAIN, "key", *arguments],
            env={**os.environ, "PYTHONIOENCODING": "latin-1"},
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert expected in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("key", "create", "KEY", "--hint", "\udcff"),
        ("key", "paperkey", "KEY", "--subject", "\udcff"),
        ("snapshot", "notes", "update", "host/a", "\udcff"),
    ],
)
def test_text_that_is_not_utf_8(vaultway: Vaultway, arguments: tuple[str, ...]) -> None:
    done = vaultway(*arguments)
    assert done.code == 2
    assert r"'\udcff': not in UTF-8" in done.err


def test_messages_that_nobody_can_read_change_nothing() -> None:
    for arguments, code in (("key show /nonexistent", 10), ("no-such-command", 2)):
        command = f"{' '.join(MAIN)} {arguments} 2>/dev/full"
        assert subprocess.run(["bash", "-c", command], check=False).returncode == code


def test_a_broken_gateway_does_not_break_the_rest(
    vaultway: Vaultway, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        name = "broken"

        def load(self) -> None:
            raise ImportError("no such module")

    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [Broken()])
    assert vaultway("key", "show", "/nonexistent").code == 10


def test_a_reader_that_goes_away() -> None:
    """`vaultway … | head -1`: no traceback, whoever notices first."""
    command = f"{' '.join(MAIN)} --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: vaultway")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", ["--help", "--version", "key show KEY"])
def test_a_full_disk_below_stdout(tmp_path: Path, arguments: str) -> None:
    """`vaultway … > file`: one line says so, and the exit code."""
    key = KEYS / "none.json"
    command = f"{' '.join(MAIN)} {arguments.replace('KEY', str(key))} >/dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        16,
        "vaultway: standard output: No space left on device\n",
    )


def test_version(vaultway: Vaultway) -> None:
    done = vaultway("--version")
    assert done.code == 0
    assert done.out.startswith("vaultway ")


def test_closed_stderr_and_stdout(tmp_path: Path) -> None:
    """Cron may start us without them."""
    command = f"{' '.join(MAIN)} key create {tmp_path}/key.json --kdf none >&- 2>&-"
    done = subprocess.run(["bash", "-c", command], check=False)
    assert done.returncode == 0
    assert (tmp_path / "key.json").stat().st_size > 200


def test_nothing_is_restored_to_a_closed_stdout() -> None:
    command = f"{' '.join(MAIN)} restore host/x a.conf - --repository /nonexistent >&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "standard output is closed" in done.stderr
