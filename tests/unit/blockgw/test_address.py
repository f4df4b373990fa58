"""Where exports listen: what is refused and why, what is cleaned up, how it is written."""

import os
import pwd
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blockgw.address import FAREWELL, GREETING, TcpAddress, UnixAddress, answers
from store.errors import AlreadyExists, InvalidName, Locked, NotFound, PermissionDenied

NAME = "ns/a b/vm/100/2026-01-02T03:04:05Z/ü?&#%.img"
QUOTED = "ns/a%20b/vm/100/2026-01-02T03:04:05Z/%C3%BC%3F%26%23%25.img"


def listen(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    return server


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Without root's power to write anywhere."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(pwd.getpwnam("nobody").pw_uid)
    try:
        yield
    finally:
        os.seteuid(before)


def test_uris() -> None:
    assert UnixAddress(Path("/run/a b?&#+%.sock")).uri(NAME) == (
        f"nbd+unix:///{QUOTED}?socket=/run/a%20b%3F%26%23%2B%25.sock"
    )
    assert TcpAddress("127.0.0.1", 10809).uri(NAME) == f"nbd://127.0.0.1:10809/{QUOTED}"
    assert TcpAddress("::1", 1).uri("") == "nbd://[::1]:1/"


def test_unix_free(tmp_path: Path) -> None:
    UnixAddress(tmp_path / "s").claim()
    assert not (tmp_path / "s").exists()


def test_unix_dead_socket_is_removed(tmp_path: Path) -> None:
    listen(tmp_path / "s").close()
    assert (tmp_path / "s").exists()
    UnixAddress(tmp_path / "s").claim()
    assert not (tmp_path / "s").exists()


def test_unix_live_socket_is_left_alone(tmp_path: Path) -> None:
    with listen(tmp_path / "s"):
        with pytest.raises(Locked, match="another server"):
            UnixAddress(tmp_path / "s").claim()
        UnixAddress(tmp_path / "s").release()
        assert (tmp_path / "s").exists()
    UnixAddress(tmp_path / "s").release()
    assert not (tmp_path / "s").exists()


def test_unix_other_file(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("mine")
    with pytest.raises(AlreadyExists, match="not a socket"):
        UnixAddress(path).claim()
    UnixAddress(path).release()
    assert path.read_text() == "mine"


def test_unix_bad_places(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        UnixAddress(tmp_path / "nowhere/s").claim()
    with pytest.raises(InvalidName, match="too long"):
        UnixAddress(tmp_path / ("s" * 200)).claim()


def test_unix_forbidden() -> None:
    with ordinary_user(), pytest.raises(PermissionDenied, match="Permission denied"):
        UnixAddress(Path("/vaultway-test.sock")).claim()


def test_tcp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(Locked, match=f"port {port}"):
            TcpAddress("127.0.0.1", port).claim()
    TcpAddress("127.0.0.1", port).claim()
    with pytest.raises(InvalidName):
        TcpAddress("192.0.2.1", port).claim()  # TEST-NET: nobody's
    with pytest.raises(InvalidName):
        TcpAddress("no address", port).claim()


@pytest.mark.parametrize(
    ("greeting", "expected"), [(GREETING + b"\0\3", True), (b"SSH-2.0-x" * 3, False), (b"", False)]
)
def test_answers(tmp_path: Path, greeting: bytes, expected: bool) -> None:
    said: list[bytes] = []

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(greeting)
            connection.shutdown(socket.SHUT_WR)
            said.append(connection.recv(100))

    with listen(tmp_path / "s") as server:
        thread = threading.Thread(target=serve)
        thread.start()
        assert answers(UnixAddress(tmp_path / "s")) is expected
        thread.join()
    assert said == [FAREWELL] or not expected


def test_nobody_answers(tmp_path: Path) -> None:
    assert not answers(UnixAddress(tmp_path / "s"))
