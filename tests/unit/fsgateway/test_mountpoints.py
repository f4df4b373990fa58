"""What is told of a mount point before anything is mounted."""

import os
from pathlib import Path

import pytest

from fsgateway import mountpoints
from fsgateway.mountpoints import check_fuse, check_mountpoint, mounted_type, unmount
from fsgateway.options import parse_options
from store.errors import BackendError, InvalidName, NotFound, PermissionDenied


def test_check_mountpoint(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    assert check_mountpoint(tmp_path / "link") == tmp_path.resolve()
    with pytest.raises(NotFound, match="nowhere"):
        check_mountpoint(tmp_path / "nowhere")
    with pytest.raises(InvalidName, match="not a directory"):
        check_mountpoint(tmp_path / "file")


def test_mounted_type(tmp_path: Path) -> None:
    assert mounted_type(Path("/proc")) == "proc"
    assert mounted_type(tmp_path) is None


def test_mountinfo_names_are_unescaped() -> None:
    assert mountpoints._unescaped(rb"/a\040b\011c\134d") == b"/a b\tc\\d"


def test_unmount_takes_only_ours(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        unmount(tmp_path)
    with pytest.raises(InvalidName, match="proc"):
        unmount(Path("/proc"))


def test_check_fuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountpoints, "FUSE_DEVICE", tmp_path / "fuse")
    with pytest.raises(BackendError, match="missing"):
        check_fuse(parse_options([]))
    (tmp_path / "fuse").touch()
    check_fuse(parse_options([]))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    conf = tmp_path / "fuse.conf"
    monkeypatch.setattr(mountpoints, "FUSE_CONF", conf)
    with pytest.raises(PermissionDenied, match="user_allow_other"):
        check_fuse(parse_options(["allow_other"]))
    conf.write_text("# no\nuser_allow_other\n")
    check_fuse(parse_options(["allow_other"]))
