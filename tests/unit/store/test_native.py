"""C modules that do not fit: what they do is done without them, or one line says what to do."""

import ast
import logging
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from store.native import INTERFACES, is_usable

ROOT = Path(__file__).parents[3]
OUTDATED = """
import sys, types
for name in {names!r}:
    sys.modules[name] = types.ModuleType(name)
from store.cli.main import main
"""


@pytest.fixture(autouse=True)
def asked_anew() -> None:
    is_usable.cache_clear()


@pytest.mark.parametrize("name", INTERFACES)
def test_ours_fit_and_are_declared_as_they_are(name: str) -> None:
    """It may be missing elsewhere; here nothing else would be tested."""
    assert is_usable(name)
    module = import_module(name)
    declared = (ROOT / name.replace(".", "/")).with_suffix(".pyi").read_text()
    functions = {
        node.name for node in ast.parse(declared).body if isinstance(node, ast.FunctionDef)
    }
    assert functions == {what for what in dir(module) if callable(getattr(module, what))} - {
        "__loader__"
    }


def test_one_that_was_not_built_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "store.format._md5", None)
    assert not is_usable("store.format._md5")


@pytest.mark.expect_warnings
def test_one_of_other_sources_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "store.format._md5", ModuleType("store.format._md5"))
    assert not is_usable("store.format._md5")
    assert not is_usable("store.format._md5")
    assert [record.getMessage() for record in caplog.records] == [
        "store.format._md5 is not used, it was built from other sources; run scripts/setup"
    ]


@pytest.mark.expect_warnings
def test_one_of_another_python_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "_for_another.so").write_bytes(b"\x7fELF of another machine")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(INTERFACES, "_for_another", 1)
    assert not is_usable("_for_another")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("_for_another is not used: ")
    assert record.getMessage().endswith("; run scripts/setup")


def run(script: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_outdated_ones_do_no_harm(tmp_path: Path) -> None:
    """A backup and a restore, with all that there is in C missing."""
    (tmp_path / "source").mkdir()
    for number in range(20):
        (tmp_path / "source" / f"f{number}").write_bytes(bytes([number]) * number * 1000)
    script = OUTDATED.format(names=[*INTERFACES])
    commands = (
        f"datastore create {tmp_path}/vault",
        f"backup root.pxar:{tmp_path}/source --repository {tmp_path}/vault --backup-id x",
        f"restore host/x root.pxar {tmp_path}/restored --repository {tmp_path}/vault",
    )
    for command in commands:
        script += f"assert main({command.split()!r}) == 0\n"
    done = run(script)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "store.operations._inode is not used" in done.stderr
    for number in range(20):
        content = (tmp_path / "restored" / f"f{number}").read_bytes()
        assert content == bytes([number]) * number * 1000


@pytest.mark.needs("fuse")
def test_what_cannot_do_without_says_so(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    script = OUTDATED.format(names=["fsgateway._fuse_extra"])
    script += f"main(['datastore', 'create', '{tmp_path}/vault'])\n"
    script += f"sys.exit(main('mount {tmp_path}/vault {tmp_path}/m -o rw'.split()))\n"
    done = run(script)
    assert done.returncode == 16
    assert done.stderr.splitlines()[-1] == (
        "vaultway: mount option rw: fsgateway._fuse_extra is missing or does not fit; "
        "run scripts/setup"
    )


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("zstandard", "snapshot list --repository VAULT"),
        ("store.cli.snapshot", "snapshot list --repository VAULT"),
        ("pyfuse3", "mount VAULT MOUNTPOINT"),
        ("pyfuse3", "mount --foreground VAULT MOUNTPOINT"),
        ("fsgateway.cli", "mount VAULT MOUNTPOINT"),
        ("store.progress", "export vm/1 --repository VAULT"),
    ],
)
def test_a_package_that_does_not_load(tmp_path: Path, package: str, command: str) -> None:
    """One that we need: built for another Python, say."""
    (tmp_path / "MOUNTPOINT").mkdir()
    arguments = [f"{tmp_path}/{word}" if word.isupper() else word for word in command.split()]
    script = "import sys\nfrom store.cli.main import main\n"
    script += f"sys.modules[{package!r}] = None\nsys.exit(main({arguments!r}))\n"
    done = run(script)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"vaultway: import of {package} halted; None in sys.modules")
    assert line.endswith(": a package is missing, or for another Python; run scripts/setup")
