"""Files that appear only when they are complete, where there are no hard links (exFAT)."""

import ctypes
import errno
from pathlib import Path
from types import SimpleNamespace

import pytest

from store.errors import AlreadyExists
from store.operations.restore.writing import new_file, write_all


@pytest.fixture(params=["renameat2", "no renameat2"], autouse=True)
def no_hard_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def unsupported(*_: object) -> int:
        ctypes.set_errno(errno.EINVAL)
        return -1

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    if request.param == "no renameat2":
        libc = SimpleNamespace(renameat2=unsupported)
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: libc)


def test_a_file_that_came_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    refused = pytest.raises(AlreadyExists, match=r"disk\.img")
    with refused, new_file(path, overwrite=False) as file:
        write_all(file, b"restored")
        path.write_bytes(b"somebody's")
    assert path.read_bytes() == b"somebody's"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with new_file(path, overwrite=False) as file:
        write_all(file, b"restored")
    assert path.read_bytes() == b"restored"
    assert list(tmp_path.iterdir()) == [path]
