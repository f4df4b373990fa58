"""The commands cost nothing until they run, and take arguments as mount(8) users write them."""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fsgateway import cli
from store.cli.options import Parser
from store.errors import BackendError, InvalidName, NotFound
from store.repositories.settings import RepositorySettings


def parse(*arguments: str) -> argparse.Namespace:
    parser = Parser()
    cli.add_commands(parser.add_subparsers())
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("mount", "/repo", "/mnt", "-o", "ro", "-o", "noatime,memory=1G"),
        ("mount", "-o", "ro", "-o", "noatime,memory=1G", "/repo", "/mnt"),
        ("mount", "-f", "-o", "ro", "-o", "noatime,memory=1G", "/repo", "/mnt"),
    ],
)
def test_mount_arguments(arguments: tuple[str, ...]) -> None:
    args = parse(*arguments)
    assert (args.repository, args.mountpoint) == ("/repo", "/mnt")
    assert args.options == ["ro", "noatime,memory=1G"]


def test_the_repository_may_come_from_the_environment() -> None:
    args = parse("mount", "/mnt")
    assert (args.repository, args.mountpoint) == (None, "/mnt")


def test_importing_the_commands_imports_no_fuse() -> None:
    script = (
        "import sys, fsgateway.cli; "
        "print([m for m in ('pyfuse3', 'trio', 'cryptography', 'boto3') if m in sys.modules])"
    )
    root = Path(__file__).parents[3]
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root
    )
    assert found.stdout == "[]\n"


def test_a_repository_that_is_no_path_is_an_error_of_ours(tmp_path: Path) -> None:
    loop, mountpoint = tmp_path / "loop", tmp_path / "mnt"
    loop.symlink_to(loop)
    mountpoint.mkdir()
    for repository in (str(loop), f"/{'x' * 5000}"):
        args = parse("mount", "-f", repository, str(mountpoint))
        with pytest.raises((NotFound, InvalidName)):
            args.handler(args)


@pytest.mark.parametrize("place", [".", "..", "host", "ns/prod/vm"])
def test_a_datastore_is_not_mounted_over_itself(tmp_path: Path, place: str) -> None:
    """Nor over a part of it: reading that would wait for itself."""
    store = tmp_path / "store"
    (store / place).mkdir(parents=True, exist_ok=True)
    args = parse("mount", "-f", str(store), str(store / place))
    with pytest.raises(InvalidName, match=r"would hide|is in the datastore"):
        args.handler(args)


def test_the_datastore_is_opened_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads and connections do not survive a fork. What may ask somebody is done before it."""
    works: list[Any] = []
    opened: list[RepositorySettings] = []

    def refuse(settings: RepositorySettings) -> None:
        opened.append(settings)
        raise BackendError("no answer")

    monkeypatch.setattr("fsgateway.background.start_in_background", works.append)
    monkeypatch.setattr("fsgateway.background.log_to", lambda _: None)
    monkeypatch.setattr("store.repositories.repository.open_datastore", refuse)
    monkeypatch.setenv("VAULTWAY_CONFIG", "/dev/null")
    (tmp_path / "m").mkdir()
    options = "access-key=a,secret-key-cmd=echo s,retry-for=1h"
    args = parse("mount", "s3://bucket/store", str(tmp_path / "m"), "--region", "nl", "-o", options)
    assert args.handler(args) == 0
    assert not opened
    with pytest.raises(BackendError):
        works[0](lambda: None)
    assert opened == [
        RepositorySettings(
            "s3://bucket/store", region="nl", access_key="a", secret_key="s", retry_for_s=3600.0
        )
    ]


def test_a_mount_does_not_hide_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULTWAY_CONFIG", "/dev/null")
    (tmp_path / "m").mkdir()
    cache = f"cache={tmp_path}/m/chunks"
    args = parse("mount", "-f", "s3://bucket/store", str(tmp_path / "m"), "-o", cache)
    with pytest.raises(InvalidName, match=r"would hide what it reads, .*/m/chunks"):
        args.handler(args)


def test_a_mount_with_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULTWAY_CONFIG", "/dev/null")
    (tmp_path / "m").mkdir()
    args = parse("mount", "-f", "s3://bucket/store", str(tmp_path / "m"), "-o", "memory=1M")
    with pytest.raises(InvalidName, match=r"^-o memory 1M: a mount needs at least 32M"):
        args.handler(args)
