"""systemd is told where it asked to be, and nobody else is."""

import socket
from pathlib import Path

import pytest

from fsgateway.notify import PLACE, forget, notify


@pytest.mark.parametrize("abstract", [False, True])
def test_both_kinds_of_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    place = f"@{tmp_path}" if abstract else f"{tmp_path}/notify"
    monkeypatch.setenv(PLACE, place)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(place.replace("@", "\0"))
        notify("READY=1", "STATUS=Mounted")
        assert manager.recv(100) == b"READY=1\nSTATUS=Mounted"


def test_without_a_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PLACE, raising=False)
    notify("READY=1")


def test_who_goes_to_the_background_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PLACE, f"{tmp_path}/nobody")
    forget()
    notify("READY=1")


@pytest.mark.expect_warnings
def test_a_manager_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(PLACE, f"{tmp_path}/nobody")
    notify("READY=1")
    assert "nobody" in caplog.text
