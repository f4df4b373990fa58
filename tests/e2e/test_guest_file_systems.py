"""The parsers on what real programs write: every layout there is a switch for, as the kernel shows
it."""

import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from store.disks.disk import DiskPart, open_disk
from store.format.pxar.acl import acl_to_xattrs
from store.format.pxar.entries import Entry
from store.trees.base import FileTree
from tests.fakes.disk_files import DiskFile
from tests.guest_disks import loop_mounted, make_disk, program, tree_facts, walked_facts, xattrs_at

pytestmark = [pytest.mark.needs("root", "images"), pytest.mark.timeout(300)]

MIB = 1 << 20
BEFORE_1970 = -12345.5
AFTER_2038 = 4102444800.25


@contextmanager
def opened(image: Path) -> Iterator[list[DiskPart]]:
    """The parts of a disk."""
    stream = DiskFile(image)
    disk = open_disk(stream, image.name)
    try:
        yield disk.parts
    finally:
        disk.close()
        stream.close()


def fill(root: Path) -> None:
    """What makes file systems go to the corners of their formats."""
    (root / "empty").touch()
    (root / "tiny").write_bytes(b"tiny")
    (root / "inline").write_bytes(b"i" * 150)
    holes(root / "holes", [(0, 4096), (9 * MIB, 5000), (9 * MIB + 8192, 1), (60 * MIB, 3)])
    with (root / "written-in-advance").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 2 * MIB)
        file.seek(MIB)
        file.write(b"here")
    scattered(root)
    for directory, count in (("one", 1), ("some", 300), ("many", 6000)):
        (root / directory).mkdir()
        for number in range(count):
            (root / directory / f"a file with a name of its own {number:05d}").touch()
    for number in range(0, 6000, 3):
        (root / "many" / f"a file with a name of its own {number:05d}").unlink()
    links_and_devices(root)
    for name, when in (("old", BEFORE_1970), ("young", AFTER_2038)):
        (root / name).touch()
        os.utime(root / name, (when, when))


def holes(path: Path, pieces: list[tuple[int, int]]) -> None:
    """A file of a few bytes at a few places."""
    with path.open("wb") as file:
        for place, size in pieces:
            file.seek(place)
            file.write(os.urandom(size))


def scattered(root: Path) -> None:
    """Two files in many pieces each: their blocks lie in turns."""
    with (root / "odd").open("wb") as odd, (root / "even").open("wb") as even:
        for number in range(700):
            file = even if number % 2 else odd
            file.write(os.urandom(8192))
            file.flush()
            os.fdatasync(file.fileno())


def links_and_devices(root: Path) -> None:
    for length in (1, 59, 60, 200, 1000):
        (root / f"link-{length}").symlink_to("x" * length)
    os.mknod(root / "block", 0o060640, os.makedev(8, 17))
    os.mknod(root / "char", 0o020666, os.makedev(511, 70000))
    os.mkfifo(root / "fifo")
    os.chown(root / "tiny", 70_000, 80_000)
    os.chmod(root / "tiny", 0o6751)
    os.link(root / "tiny", root / "again")


EXT = {
    "ext2": ("mkfs.ext2", ()),
    "ext2, blocks of 1 KiB": ("mkfs.ext2", ("-b", "1024", "-I", "128")),
    "ext3": ("mkfs.ext3", ()),
    "ext4": ("mkfs.ext4", ()),
    "ext4, blocks of 1 KiB": ("mkfs.ext4", ("-b", "1024")),
    "ext4, data in inodes": ("mkfs.ext4", ("-O", "inline_data", "-I", "512")),
    "ext4, groups of descriptors": ("mkfs.ext4", ("-O", "meta_bg,^resize_inode", "-b", "1024")),
    "ext4, clusters": ("mkfs.ext4", ("-O", "bigalloc", "-C", "65536")),
    "ext4, 32 bits": ("mkfs.ext4", ("-O", "^64bit,^metadata_csum,^flex_bg")),
}
XFS = {
    "xfs": (),
    "xfs, old times": ("-m", "bigtime=0"),
    "xfs, large inodes": ("-i", "size=2048"),
    "xfs, blocks of 1 KiB": ("-b", "size=1024"),
    "xfs, large directory blocks": ("-n", "size=16384"),
}


@pytest.mark.parametrize("name", EXT)
def test_ext(tmp_path: Path, name: str) -> None:
    command, options = EXT[name]
    compare(tmp_path, lambda image: _make(image, command, "-q", "-F", *options))


@pytest.mark.parametrize("name", XFS)
def test_xfs(tmp_path: Path, name: str) -> None:
    compare(tmp_path, lambda image: _make(image, "mkfs.xfs", "-q", *XFS[name]))


def test_btrfs(tmp_path: Path) -> None:
    compare(tmp_path, lambda image: _make(image, "mkfs.btrfs", "-q"))


def _make(image: Path, *command: str) -> None:
    with image.open("wb") as file:
        file.truncate(400 * MIB)
    program(*command, str(image))


def compare(folder: Path, make: Callable[[Path], None]) -> None:
    """Everything the kernel shows of a file system it filled is what the parser shows."""
    image = folder / "disk.raw"
    make(image)
    with loop_mounted(image, folder / "kernel") as kernel:
        fill(kernel)
    with loop_mounted(image, folder / "kernel", "ro") as kernel, opened(image) as (part,):
        tree = part.open_tree()
        truth, found = tree_facts(kernel), walked_facts(tree)
        assert {path: facts for path, facts in truth.items() if found.get(path) != facts} == {}
        assert set(found) == set(truth)
        again = look_up(tree, "again")
        assert (again.links, again.offset) == (2, look_up(tree, "tiny").offset)


def look_up(tree: FileTree, path: str) -> Entry:
    entry = tree.root()
    for name in path.split("/"):
        child = tree.lookup(entry, name.encode())
        assert child is not None
        entry = child
    return entry


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_xattrs_acls_and_capabilities(tmp_path: Path, kind: str) -> None:
    """Few and small ones in the inode, many and large ones outside of it."""
    image, sizes = tmp_path / "disk.raw", (0, 10, 900, 3000, 30_000)
    make_disk(image, kind, 320, *(("-b", "4096", "-O", "ea_inode") if kind == "ext4" else ()))
    with loop_mounted(image, tmp_path / "kernel") as kernel:
        for number, size in enumerate(sizes[:4] if kind == "btrfs" else sizes):
            path = kernel / f"file-{number}"
            path.touch()
            os.setxattr(path, "user.first", b"1")
            os.setxattr(path, "user.value", os.urandom(size))
            os.setxattr(path, "trusted.ours", b"t" * 20)
            os.setxattr(path, "security.capability", CAPABILITY)
        for number in range(40):
            os.setxattr(path, f"user.one of many {number}", b"m" * number)
        program("setfacl", "-m", "u:1000:rw,g:2000:r", str(kernel / "file-1"))
        (kernel / "folder").mkdir()
        program("setfacl", "-d", "-m", "u:1000:rwx", str(kernel / "folder"))
        truth = {name: xattrs_at(str(kernel / name)) for name in os.listdir(kernel)}
    with opened(image) as (part,):
        tree = part.open_tree()
        truth.pop("lost+found", None)
        for found in truth.values():  # the same once more, as XFS stores it
            found.pop("trusted.SGI_ACL_FILE", None)
            found.pop("trusted.SGI_ACL_DEFAULT", None)
        for name, expected in truth.items():
            assert xattrs_of(look_up(tree, name)) == expected, name


CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


def xattrs_of(entry: Entry) -> dict[str, bytes]:
    metadata = entry.metadata
    found = dict(metadata.xattrs) | acl_to_xattrs(metadata.acl, metadata.mode)
    if metadata.fcaps is not None:
        found[b"security.capability"] = metadata.fcaps
    return {name.decode(): value for name, value in found.items()}


class TestWindows:
    def test_ntfs_compressed_sparse_and_deleted(self, tmp_path: Path) -> None:
        image = tmp_path / "disk.raw"
        _make(image, "mkntfs", "-q", "-Q", "-F", "-L", "Daten")
        with _ntfs(image, tmp_path / "mount") as mount:
            (mount / "packed").mkdir()
            os.setxattr(mount / "packed", "system.ntfs_attrib_be", struct.pack(">I", 0x810))
            (mount / "packed/text").write_bytes(b"all work and no play " * 50_000)
            (mount / "packed/noise").write_bytes(os.urandom(300_000))
            holes(mount / "holes", [(0, 5), (20 * MIB, 70_000)])
            (mount / "many").mkdir()
            for number in range(1500):
                (mount / "many" / f"file {number}").write_bytes(b"%d" % number)
            for number in range(100, 1500):
                (mount / "many" / f"file {number}").unlink()
            (mount / "first").write_bytes(b"two names")
            os.link(mount / "first", mount / "second")
        with _ntfs(image, tmp_path / "mount") as mount, opened(image) as (part,):
            tree = part.open_tree()
            truth, found = tree_facts(mount), walked_facts(tree)
            assert part.links == ("Daten",)
            assert look_up(tree, "second").links == 2
        assert {path: facts[3:] for path, facts in found.items()} == {
            path: facts[3:] for path, facts in truth.items()
        }

    def test_exfat(self, tmp_path: Path) -> None:
        image = tmp_path / "disk.raw"
        _make(image, "mkfs.exfat")
        with _exfat(image, tmp_path / "mount") as mount:
            (mount / "many").mkdir()
            for number in range(800):
                (mount / "many" / f"ein längerer Name 日本 {number}").write_bytes(b"%d" % number)
            scattered(mount)
            (mount / "big").write_bytes(os.urandom(3 * MIB))
            (mount / "empty").touch()
        with _exfat(image, tmp_path / "mount") as mount:
            truth = tree_facts(mount)
        with opened(image) as (part,):
            found = walked_facts(part.open_tree())
        assert {path: (facts[3], facts[5]) for path, facts in found.items()} == {
            path: (facts[3], facts[5]) for path, facts in truth.items()
        }
        close = [abs(found[path][4] - facts[4]) <= 2 * 10**9 for path, facts in truth.items()]
        assert all(close)


@contextmanager
def _exfat(image: Path, mountpoint: Path) -> Iterator[Path]:
    device = program("losetup", "--find", "--show", str(image)).strip()
    try:
        with _mounted_by("mount.exfat-fuse", Path(device), mountpoint) as at:
            yield at
    finally:
        program("losetup", "--detach", device)


@contextmanager
def _ntfs(image: Path, mountpoint: Path) -> Iterator[Path]:
    with _mounted_by(
        "ntfs-3g", image, mountpoint, "-o", "compression,streams_interface=none"
    ) as at:
        yield at


@contextmanager
def _mounted_by(command: str, image: Path, mountpoint: Path, *options: str) -> Iterator[Path]:
    mountpoint.mkdir(exist_ok=True)
    program(command, str(image), str(mountpoint), *options)
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", mountpoint], check=True)
