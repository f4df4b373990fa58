"""Asking the process that has a head open."""

import socket
from pathlib import Path
from typing import Any

import pytest

from store.errors import Locked, NotFound, StoreError
from store.heads.control import SOCKET, Control, ask


def test_an_answer(tmp_path: Path) -> None:
    with Control(str(tmp_path), {"seal": lambda request: {"got": request["strict"]}}):
        assert ask(str(tmp_path), "seal", strict=True) == {"got": True}
        assert ask(str(tmp_path), "seal", strict=False) == {"got": False}
    assert not (tmp_path / SOCKET).exists()


def test_a_refusal_keeps_its_exit_code(tmp_path: Path) -> None:
    def refuse(request: dict[str, Any]) -> dict[str, Any]:
        raise Locked("someone else")

    with (
        Control(str(tmp_path), {"seal": refuse}),
        pytest.raises(StoreError, match="someone else") as raised,
    ):
        ask(str(tmp_path), "seal")
    assert raised.value.exit_code == Locked.exit_code


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no process answers"):
        ask(str(tmp_path), "seal")


def test_a_socket_left_by_a_killed_process(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    left.bind(str(tmp_path / SOCKET))
    left.close()
    with pytest.raises(NotFound):
        ask(str(tmp_path), "seal")
    with Control(str(tmp_path), {"seal": lambda _: {}}):
        assert ask(str(tmp_path), "seal") == {}


def test_a_long_directory(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 200)
    deep.mkdir()
    with Control(str(deep), {"seal": lambda _: {}}):
        assert ask(str(deep), "seal") == {}


def test_garbage_is_answered_and_forgotten(tmp_path: Path) -> None:
    with Control(str(tmp_path), {"seal": lambda _: {}}):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / SOCKET))
            client.sendall(b"garbage\n")
            assert b"error" in client.makefile("rb").readline()
        assert ask(str(tmp_path), "seal") == {}
