"""Where secrets come from."""

import os
import sys
from pathlib import Path

import pytest

from store.cli.password import get_new_password, get_password, read_secret
from store.errors import InvalidName, KeyRequired
from store.repositories import secret_sources

NAME = "PBS_ENCRYPTION_PASSWORD"


def descriptor_with(data: bytes) -> int:
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return reader


@pytest.mark.parametrize("data", [b"secret", b"secret\n", b"secret\r\n", b"secret\nsecond\n"])
def test_every_form_gives_the_first_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: bytes
) -> None:
    file = tmp_path / "a file"
    file.write_bytes(data)
    forms = {
        "": data.decode(),
        "_FD": str(descriptor_with(data)),
        "_FILE": str(file),
        "_CMD": f"cat '{file}'",
    }
    for form, value in forms.items():
        with monkeypatch.context() as patch:
            patch.setenv(NAME + form, value)
            assert read_secret(NAME) == b"secret", form


def test_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of the file")
    assert read_secret(NAME) is None
    monkeypatch.setenv(NAME + "_CMD", "echo of the command")
    assert read_secret(NAME) == b"of the command"
    monkeypatch.setenv(NAME + "_FILE", str(tmp_path / "file"))
    assert read_secret(NAME) == b"of the file"
    monkeypatch.setenv(NAME + "_FD", str(descriptor_with(b"of the descriptor")))
    assert read_secret(NAME) == b"of the descriptor"
    monkeypatch.setenv(NAME, "itself")
    assert read_secret(NAME) == b"itself"


def test_systemd_credential(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_secret(NAME) is None
    (tmp_path / "proxmox-backup-client.encryption-password").write_text("from systemd\n")
    assert read_secret(NAME) == b"from systemd"
    assert read_secret("PBS_OTHER") is None


def test_bytes_that_are_not_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, os.fsdecode(b"\xff\xfe12345"))
    assert read_secret(NAME) == b"\xff\xfe12345"


@pytest.mark.parametrize(
    ("form", "value", "error"),
    [
        ("_FILE", "/nonexistent/file", KeyRequired),
        ("_FILE", "/", KeyRequired),
        ("_FD", "999", KeyRequired),
        ("_FD", "seven", InvalidName),
        ("_FD", "-1", InvalidName),
        ("_FD", "9" * 30, KeyRequired),
        ("_CMD", "/nonexistent/program", KeyRequired),
        ("_CMD", "false", KeyRequired),
        ("_CMD", "", InvalidName),
        ("_CMD", "echo 'open", InvalidName),
    ],
)
def test_failures(
    monkeypatch: pytest.MonkeyPatch, form: str, value: str, error: type[Exception]
) -> None:
    monkeypatch.setenv(NAME + form, value)
    with pytest.raises(error):
        read_secret(NAME)


def test_a_command_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_sources, "COMMAND_TIMEOUT_S", 0.1)
    with pytest.raises(KeyRequired, match="password command sleep: no answer within"):
        secret_sources.run_secret_command("sleep 100", KeyRequired, "password command")


def test_no_terminal_names_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    with pytest.raises(KeyRequired, match=f"{NAME}, {NAME}_FILE, {NAME}_CMD or {NAME}_FD"):
        get_password(NAME, "Passphrase")


def test_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["one", "two", "two", "two", "three"])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("getpass.getpass", lambda _: next(answers))
    assert get_password(NAME, "Passphrase") == b"one"
    assert get_new_password(NAME, "Passphrase") == b"two"
    with pytest.raises(InvalidName, match="differ"):
        get_new_password(NAME, "Passphrase")
