"""Very large trees through the mount: all of it is there, and the mount stays small."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsgateway.names import PID_XATTR
from store.format.crypt import CryptConfig
from tests.e2e.test_mount import write_key
from tests.fakes.datastores import local_datastore
from tests.fakes.large_trees import (
    LargeTree,
    content_of,
    fill,
    fill_flat,
    mtime_of,
    write_large_tree,
)
from tests.program import mounted

pytestmark = [pytest.mark.needs("root", "fuse"), pytest.mark.xdist_group("mount")]

KEY = CryptConfig(bytes(range(32)))
SNAPSHOT = "host/large/2025-01-01T00:00:00Z"
RESIDENT_MIB = 400


def found(root: str) -> Iterator[os.DirEntry[str]]:
    """Everything below a directory, each with its stat, as `find -size` goes."""
    todo = [root]
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
                yield entry


def resident_mib(mount: Path) -> int:
    """The most that the mount's process had in memory."""
    status = Path(f"/proc/{os.getxattr(mount, PID_XATTR).decode()}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


@pytest.mark.parametrize("split", [True, False], ids=["split", "legacy"])
@pytest.mark.parametrize(
    "entries", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)], ids=["100k", "1M"]
)
def test_everything_is_found(tmp_path: Path, entries: int, split: bool) -> None:
    datastore, key = local_datastore(tmp_path / "store"), write_key(tmp_path / "key.json", KEY)
    write_large_tree(datastore, SNAPSHOT, lambda tree: fill(tree, entries), KEY, split=split)
    with mounted(tmp_path / "store", tmp_path / "m", "--keyfile", key) as mount:
        root = os.fspath(mount / "host/large/latest/root.pxar")
        for _ in range(2):  # as read, and as remembered
            assert check_all(root) == entries
        assert resident_mib(mount) < RESIDENT_MIB


def check_all(root: str) -> int:
    """Look at everything; read a file now and then. Returns how many there were."""
    numbers, count = set(), 0
    for entry in found(root):
        count += 1
        info = entry.stat(follow_symlinks=False)
        if entry.is_dir(follow_symlinks=False):
            assert info.st_mode == 0o40750
            continue
        number = int(entry.name[5:12])
        numbers.add(number)
        if entry.is_symlink():
            assert number % 12 == 11
            continue
        content = content_of(number)
        assert (info.st_size, info.st_mtime) == (len(content), mtime_of(number))
        assert (info.st_mode, info.st_uid, info.st_nlink) == (0o100644, 1000, 1)
        if number % 5000 == 0:
            assert Path(entry.path).read_bytes() == content
    assert numbers == set(range(len(numbers)))
    return count


def test_a_directory_of_200_000_files(tmp_path: Path) -> None:
    def make(tree: LargeTree) -> None:
        tree.enter(b"flat")
        fill_flat(tree, 200_000)
        tree.leave()

    write_large_tree(local_datastore(tmp_path / "store"), SNAPSHOT, make)
    with mounted(tmp_path / "store", tmp_path / "m") as mount:
        flat = mount / "host/large/latest/root.pxar/flat"
        for _ in range(2):
            names = [entry.name for entry in found(os.fspath(flat))]
            assert names == [f"flat-{number:07d}" for number in range(200_000)]
        assert (flat / "flat-0123456").read_bytes() == b"123456"
        assert not (flat / "flat-0200000").exists()
        assert resident_mib(mount) < RESIDENT_MIB
