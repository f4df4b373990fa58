"""What nbdkit is started with, and what is made of what it says. The real one: tests/e2e."""

import io
import shutil
import sys
from pathlib import Path

import pytest

from blockgw.address import UnixAddress
from blockgw.export import Selection
from blockgw.launch import ExportRequest, Said, check_nbdkit, command, environment, python_path
from blockgw.settings import Settings
from store.errors import InvalidName, StoreError
from store.names import Namespace, Snapshot
from store.repositories.settings import RepositorySettings

KEY = bytes(range(32))
REPOSITORY = RepositorySettings(
    "s3://bucket/vault",
    "prod",
    endpoint="https://s3.example.com",
    access_key="AK",
    secret_key="canary-secret",
    session_token="canary-token",
    memory_bytes=1 << 20,
    mirrors=(RepositorySettings("/srv/vault", retry_for_s=60.5),),
)
SETTINGS = Settings(REPOSITORY, Selection(Namespace()), 4, KEY)
REQUEST = ExportRequest(SETTINGS, UnixAddress(Path("/run/s")))


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        Settings(RepositorySettings("/ü"), Selection(Namespace.parse("a/b"), None, "x.img"), 1),
        Settings(
            RepositorySettings("/v"),
            Selection(Namespace(), Snapshot.parse("vm/1/2026-01-02T03:04:05Z")),
            2,
            KEY,
        ),
    ],
)
def test_settings_round_trip(settings: Settings) -> None:
    assert Settings.decode(settings.encode()) == settings


def test_settings_that_fill_the_pipe() -> None:
    many = RepositorySettings("/v", mirrors=(REPOSITORY,) * 500)
    with pytest.raises(InvalidName, match="longer than 64 KiB"):
        Settings(many, Selection(Namespace()), 1).encode()


def test_no_secret_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "PBS_ENCRYPTION_PASSWORD",
        "PBS_ENCRYPTION_PASSWORD_CMD",
        "PBS_PASSWORD",
        "PBS_PASSWORD_FD",
        "PBS_NEW_ENCRYPTION_PASSWORD",
        "PBS_MASTER_PASSWORD_FILE",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "VAULTWAY_SECRET_KEY",
    ):
        monkeypatch.setenv(name, "canary")
    monkeypatch.setenv("PBS_NAMESPACE", "stays")
    assert "canary" not in repr(environment())
    assert environment()["PBS_NAMESPACE"] == "stays"
    # The embedded Python takes its standard library from the first python3 that it finds.
    assert environment()["PATH"].startswith(str(Path(shutil.which("nbdkit") or "").parent) + ":")
    for text in (repr(REQUEST), repr(command(REQUEST, 9)), repr(environment())):
        assert KEY.hex() not in text
        assert "canary" not in text
        assert repr(KEY)[2:-1] not in text


def test_command_is_a_child_in_the_foreground() -> None:
    words = command(REQUEST, 9)
    assert {"--foreground", "--exit-with-parent", "--readonly", "config_fd=9"} <= set(words)
    assert words[words.index("python") + 1].endswith("blockgw/plugin.py")


def test_python_path_finds_the_program_and_its_packages() -> None:
    path = python_path()
    assert any((Path(entry) / "blockgw/plugin.py").is_file() for entry in path)
    assert any((Path(entry) / "zstandard").is_dir() for entry in path)
    assert not any((Path(entry) / "json/decoder.py").is_file() for entry in path), (
        "no standard library"
    )
    assert all(Path(entry).is_absolute() for entry in path)


def test_no_nbdkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StoreError, match="apt install nbdkit"):
        check_nbdkit()


@pytest.mark.parametrize(
    ("script", "message"),
    [("exit 1", "no Python plugin"), ("echo python_version=3.2.1", "embeds Python 3.2")],
)
def test_unfit_nbdkit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, message: str
) -> None:
    (tmp_path / "nbdkit").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nbdkit").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    with pytest.raises(StoreError, match=message):
        check_nbdkit()


def test_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    said = Said()
    bad = b"nbdkit: python.3: error: /opt/x/blockgw/plugin.py: pread: error: vm/1: chunk ab: bad\n"
    lines = [
        b"warning: mine\n",
        bad,
        bad,
        b"nbdkit: read reply: \xff\n",
        bad,
        b"nbdkit: /run/s: in use",
    ]
    said.relay(io.BytesIO(b"".join(lines)))
    assert stderr.getvalue().splitlines() == [
        "warning: mine",
        "error: vm/1: chunk ab: bad",
        "error: read reply: \ufffd",
        "error: /run/s: in use",
    ]
    assert said.last == "/run/s: in use"


def test_relay_remembers_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    said = Said()
    said.relay(io.BytesIO(b"".join(b"line %d\n" % number for number in range(5000))))
    assert len(said._shown) <= 256
