"""Helpers and unit start this program, wherever it is; the helper reads what mount(8) gives it."""

import subprocess
import sys
from pathlib import Path

import pytest

from fsgateway import installing
from fsgateway.installing import HELPERS, install_helpers, program, unit


@pytest.fixture
def echo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that prints how it was called, at a place that needs quotes."""
    place = tmp_path / "a b" / "vaultway"
    place.parent.mkdir()
    place.write_text('#!/bin/sh\nfor word; do printf "<%s>" "$word"; done\n')
    place.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(place)])
    install_helpers(tmp_path)
    return tmp_path


def helper(folder: Path, name: str, *arguments: str) -> tuple[int, str]:
    done = subprocess.run([folder / name, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.parametrize("name", ["mount.vaultway", "mount.fuse.vaultway"])
@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((), "ro"),
        (("-o", "rw"), "ro"),
        (("-s", "-v", "-o", "rw,uid=3"), "ro,uid=3"),
        (("-o", "ro,keyfile=/a b", "-t", "fuse.vaultway"), "ro,keyfile=/a b"),
        (("-o", "ro,cache-size=1G,rw"), "ro,cache-size=1G,rw"),
    ],
)
def test_mount(echo: Path, name: str, arguments: tuple[str, ...], options: str) -> None:
    assert helper(echo, name, "s3://b/s", "/m t", *arguments) == (
        0,
        f"<mount><s3://b/s></m t><-o><{options}>",
    )


def test_mount_that_only_pretends(echo: Path) -> None:
    assert helper(echo, "mount.vaultway", "prod", "/m", "-f", "-o", "rw") == (0, "")


def test_umount(echo: Path) -> None:
    assert helper(echo, "umount.fuse.vaultway", "/m t") == (0, "<umount></m t>")
    assert helper(echo, "umount.fuse.vaultway", "/m", "-n", "-l") == (0, "<umount><--lazy></m>")


@pytest.mark.parametrize("name", HELPERS)
def test_a_flag_nobody_knows(echo: Path, name: str) -> None:
    places = ("/m",) if name.startswith("umount") else ("prod", "/m")
    assert helper(echo, name, *places, "-q")[0] != 0


def test_started_as_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"{installing.__file__}"])
    assert program().endswith(" -m store.cli.main")
    assert f"ExecStart={sys.executable} -m store.cli.main mount --foreground %i" in unit()


def test_nothing_is_left_to_fill_in(echo: Path) -> None:
    texts = [unit(), *((echo / name).read_text() for name in HELPERS)]
    assert not [text for text in texts if "@PROGRAM@" in text]


def test_the_unit_has_no_mounts_of_its_own() -> None:
    """Any of these would hide the mount from everybody else."""
    settings = [line.partition("=")[0] for line in unit().splitlines() if line[:1].isalpha()]
    assert "Type" in settings
    assert not [
        name
        for name in settings
        if name.startswith(("Protect", "Private", "ReadOnly", "ReadWrite", "Inaccessible", "Bind"))
    ]
