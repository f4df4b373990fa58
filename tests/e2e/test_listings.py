"""Directories of trees: in C and in Python the same, whatever is in them and however it comes."""

import errno
import os
import stat as st_module
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import pack

import pytest

from store.datastore.datastore import Datastore
from store.format.pxar.entries import Metadata, encode_metadata
from store.format.pxar.items import PXAR_ENTRY_V1
from tests.fakes.archives import SplitTree, snapshot, stat
from tests.fakes.datastores import local_datastore
from tests.fakes.some_trees import COUNT, Way
from tests.program import mounted
from tests.watched_mounts import wait_for_mount

pytestmark = [pytest.mark.needs("fuse", "root"), pytest.mark.xdist_group("mount")]

TREES = Path(__file__).parent.parent / "fakes" / "some_trees.py"
WITHOUT_C = """
import sys
sys.modules["fsgateway._fuse_extra"] = sys.modules["store.format.pxar._entries"] = None
"""
Shown = dict[str, list[int]]


def of_every_kind() -> SplitTree:
    tree = SplitTree()
    encoder = tree.encoder
    tree.enter(b"d")
    tree.file(b"empty", b"", stat(0o100000, 5, 6, -2))
    tree.add(encoder.special(b"fifo", stat(0o10644)))
    tree.file(b"file", b"x" * 1025, stat(0o106755, 1000, 2**32 - 2, 2**33))
    first = encoder.last_offset
    tree.add(encoder.hardlink(b"link", first, b"d/file"))
    tree.add(encoder.device(b"null", stat(0o20666), 1, 3))
    tree.add(encoder.device(b"ram", stat(0o60660), 300, 70000))
    tree.add(encoder.special(b"socket", stat(0o140755)))
    tree.add(encoder.symlink(b"symlink", stat(0o120777), b"\xff/there"))
    old = pack("<QQQQIIQ", PXAR_ENTRY_V1, 48, 0o100600, 0, 1, 2, 1_600_000_000_000_000_001)
    tree.file(b"v1", b"old", old)
    tree.file(b"with xattr", b"1", encode_metadata(Metadata(0o100644, xattrs=((b"user.a", b"b"),))))
    tree.enter(b"z")
    tree.leave()
    tree.leave()
    tree.enter(b"many")
    for number in range(1500):
        tree.file(b"%04d" % number + b"-" * (number % 200), b"", stat(0o100644, mtime_s=number))
    tree.leave()
    return tree


@pytest.fixture
def datastore(tmp_path: Path) -> Datastore:
    datastore = local_datastore(tmp_path / "store")
    with snapshot(datastore, "host/h/2025-01-01T00:00:00Z") as builder:
        builder.split_tree("root", of_every_kind())
    return datastore


def look(root: Path) -> Shown:
    """Everything below a directory, with all that stat says but the device."""
    found: Shown = {}
    for folder, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = Path(folder, name)
            info = path.lstat()
            keys = (key for key in dir(info) if key.startswith("st_") and key != "st_dev")
            found[str(path.relative_to(root))] = [getattr(info, key) for key in keys]
    return found


@pytest.mark.parametrize("options", [(), ("-o", "uid=42,gid=43,umask=0027")], ids=["", "owned"])
def test_in_c_and_in_python(datastore: Datastore, tmp_path: Path, options: tuple[str, ...]) -> None:
    path = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_C)
    shown = []
    for env in ({}, {"PYTHONPATH": path}):
        with mounted(tmp_path / "store", tmp_path / "m", *options, env=env) as mount:
            root = mount / "host/h/latest/root.pxar"
            names = os.listdir(root / "many")
            assert names == sorted(names)
            shown += [look(root), look(root)]  # as read, and as the kernel kept it
            info = (root / "d/ram").lstat()
            assert (os.major(info.st_rdev), os.minor(info.st_rdev)) == (300, 70000)
            assert (root / "d/link").stat().st_nlink == (root / "d/file").stat().st_nlink == 2
            assert os.readlink(os.fsencode(root / "d/symlink")) == b"\xff/there"
            assert os.getxattr(root / "d/with xattr", "user.a") == b"b"
    assert len(shown[0]) == 11 + 1500 + 2
    for each in shown[1:]:
        assert each == shown[0]


@dataclass
class Trees:
    """A mount of some_trees.py, and what it told."""

    mountpoint: Path
    log: Path

    def told(self) -> list[list[str]]:
        """The calls since the last time."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line.split() for line in lines]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trees]:
    mountpoint = tmp_path_factory.mktemp("trees")
    log = tmp_path_factory.mktemp("log") / "told"
    process = subprocess.Popen([sys.executable, TREES, mountpoint, log], stderr=subprocess.DEVNULL)
    try:
        wait_for_mount(mountpoint, process)
        yield Trees(mountpoint, log)
    finally:
        subprocess.run(["umount", mountpoint], check=True)
        assert process.wait(20) == 0


@pytest.mark.parametrize("way", [Way.AT_ONCE, Way.LATER])
def test_what_the_kernel_is_told(trees: Trees, way: Way) -> None:
    """Over several replies, each of which is booked; asked again, it knows."""
    trees.told()
    for _ in range(2):
        with os.scandir(trees.mountpoint / way.name) as entries:
            for number, entry in enumerate(entries):
                info = entry.stat(follow_symlinks=False)
                assert entry.name == f"{number:06d}"
                kind = st_module.S_IFREG | 0o640 if number % 3 else st_module.S_IFDIR | 0o750
                assert (info.st_mode, info.st_uid, info.st_gid) == (kind, 1000 + number, 8)
                assert info.st_nlink == {1: 3, 4: 2}.get(number, 1)
                assert info.st_size == (number if number % 3 else 0)
        assert number == COUNT - 1
    calls = trees.told()
    assert len(calls) > 1
    assert {call[0] for call in calls} == {str(way.value)}
    assert sum(int(call[1]) for call in calls) == COUNT
    directories = [place for call in calls for place in call[2:]]
    assert directories == [f"{100 + number}-{5000 + number}" for number in range(0, COUNT, 3)]


@pytest.mark.parametrize(
    ("way", "number"),
    [
        (Way.NEVER, errno.EIO),
        (Way.FAILING, errno.EIO),
        (Way.REFUSED, errno.ENOSPC),
        (Way.DAMAGED, errno.EIO),
        (Way.TOO_FAR, errno.EOVERFLOW),
    ],
)
def test_errors(trees: Trees, way: Way, number: int) -> None:
    """Reading it fails, opening does not; and the mount lives on."""
    trees.told()
    opened = os.open(trees.mountpoint / way.name, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            os.listdir(opened)
    finally:
        os.close(opened)
    assert caught.value.errno == number
    assert len(os.listdir(trees.mountpoint / "AT_ONCE")) == COUNT
    assert str(way.value) not in {call[0] for call in trees.told()}


def test_the_root_of_a_tree_that_cannot_be_read_is_not_opened(trees: Trees) -> None:
    with pytest.raises(PermissionError):
        os.open(trees.mountpoint / "NO_TREE", os.O_RDONLY | os.O_DIRECTORY)


def test_two_passes_at_once(trees: Trees) -> None:
    """One goes on where it was, whatever the other does."""
    place = trees.mountpoint / "AT_ONCE"
    with os.scandir(place) as first:
        head = [next(first).name for _ in range(10)]
        assert len(os.listdir(place)) == COUNT
        assert len(head) + len([*first]) == COUNT
