"""Every kind of inode and everything an archive records of it, end to end."""

import os
import socket
import stat
import struct
import subprocess
import time
from pathlib import Path

import pytest

from store.format.pxar.acl import Acl, DefaultAcl
from store.format.pxar.entries import EntryKind
from store.operations.backup import ChangeDetectionMode, inode
from tests.disks import make_ext4, mounted_image
from tests.trees import list_tree
from tests.unit.store.operations.backup.conftest import LEGACY, MIB, Vault, noise

ANY = 0xFFFFFFFF
# VFS_CAP_REVISION_2, cap_net_raw permitted and effective
FCAPS = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
needs_root = pytest.mark.needs("root")


def acl(*entries: tuple[int, int, int]) -> bytes:
    """The xattr form of a POSIX ACL: version 2, then (tag, permission, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def test_an_empty_tree(vault: Vault, source: Path, mode: ChangeDetectionMode) -> None:
    source.chmod(0o2750)
    tree = vault.tree(source, mode)
    assert tree.names == []
    assert tree[""].metadata.mode == stat.S_IFDIR | 0o2750
    assert vault.warnings == []


def test_files_of_all_sizes(vault: Vault, source: Path, mode: ChangeDetectionMode) -> None:
    sizes = [0, 1, 15, 16, (1 << 16) - 1, 1 << 16, (1 << 18) + 1, 4 * MIB, 4 * MIB + 1, 9 * MIB]
    for size in sizes:
        (source / f"{size:08d}").write_bytes(noise(size, size))
    result = vault.backup(f"root.pxar:{source}", change_detection_mode=mode)
    tree = vault.open(result.snapshot)
    assert {name: len(data) for name, data in tree.contents.items()} == {
        f"{size:08d}": size for size in sizes
    }
    assert all(tree.read(f"{size:08d}") == noise(size, size) for size in sizes)
    assert (result.source_bytes, result.unreadable, result.warnings) == (sum(sizes), 0, 0)


@needs_root
def test_kinds(vault: Vault, source: Path, mode: ChangeDetectionMode, tmp_path: Path) -> None:
    (source / "file").write_bytes(b"content")
    (source / "directory/inner").mkdir(parents=True)
    (source / "symlink").symlink_to("no/such/place")
    (source / "long-symlink").symlink_to("x" * 4095)
    os.mkfifo(source / "fifo", 0o640)
    os.mknod(source / "char", stat.S_IFCHR | 0o660, os.makedev(511, 0xABCDE))
    os.mknod(source / "block", stat.S_IFBLK | 0o660, os.makedev(7, 0))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source / "socket"))
    os.chown(source / "symlink", 1000, 0xFFFFFFF0, follow_symlinks=False)
    tree = vault.tree(source, mode)
    assert {name: tree[name].kind for name in tree.names} == {
        "file": EntryKind.FILE,
        "directory": EntryKind.DIRECTORY,
        "directory/inner": EntryKind.DIRECTORY,
        "symlink": EntryKind.SYMLINK,
        "long-symlink": EntryKind.SYMLINK,
        "fifo": EntryKind.FIFO,
        "char": EntryKind.CHAR_DEVICE,
        "block": EntryKind.BLOCK_DEVICE,
        "socket": EntryKind.SOCKET,
    }
    assert tree["symlink"].target == b"no/such/place"
    assert tree["long-symlink"].target == b"x" * 4095
    assert (tree["symlink"].metadata.uid, tree["symlink"].metadata.gid) == (1000, 0xFFFFFFF0)
    assert (tree["char"].device, tree["block"].device) == ((511, 0xABCDE), (7, 0))
    restored = vault.restore(vault.snapshots[-1], tmp_path / "restored")
    assert list_tree(restored) == list_tree(source)


def test_names(vault: Vault, source: Path, mode: ChangeDetectionMode) -> None:
    names = [
        b"\xff\xfe",
        "ünï".encode(),
        b"new\nline",
        b"-",
        b" ",
        b"n" * 255,
        b"a",
        b"a.b",
        b"a-b",
    ]
    names += [bytes([value]) for value in range(1, 256) if value not in b"./"]
    for name in set(names):
        (source / os.fsdecode(name)).write_bytes(name)
    tree = vault.tree(source, mode)
    assert [os.fsencode(name) for name in tree.names] == sorted(set(names))
    assert all(tree.read(name) == name for name in names)


@pytest.mark.parametrize(
    "nanoseconds",
    [0, 1, 999_999_999, -1, -1_000_000_000, -1_500_000_001, 10**18 + 7, 2**31 * 10**9 + 5],
)
def test_times(
    vault: Vault, source: Path, mode: ChangeDetectionMode, nanoseconds: int, tmp_path: Path
) -> None:
    for name in ("file", "link", "directory"):
        {"file": Path.touch, "directory": Path.mkdir}.get(name, lambda path: path.symlink_to("x"))(
            source / name
        )
        os.utime(source / name, ns=(0, nanoseconds), follow_symlinks=False)
    os.utime(source, ns=(0, nanoseconds))
    tree = vault.tree(source, mode)
    for name in ("", "file", "link", "directory"):
        metadata = tree[name].metadata
        assert (metadata.mtime_s, metadata.mtime_ns) == divmod(nanoseconds, 10**9)
    restored = vault.restore(vault.snapshots[-1], tmp_path / "restored")
    assert list_tree(restored) == list_tree(source)


def test_times_are_not_touched(vault: Vault, source: Path) -> None:
    (source / "file").write_bytes(b"content")
    os.utime(source / "file", ns=(1, 2))
    os.utime(source, ns=(1, 2))
    vault.tree(source)
    for path in (source, source / "file"):
        assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (1, 2)


def test_hard_links(vault: Vault, source: Path, mode: ChangeDetectionMode, tmp_path: Path) -> None:
    for name in ("a/deep", "z"):
        (source / name).mkdir(parents=True)
    (source / "a/deep/first").write_bytes(b"linked")
    (source / "a/second").hardlink_to(source / "a/deep/first")
    (source / "z/third").hardlink_to(source / "a/deep/first")
    (tmp_path / "outside").write_bytes(b"one name is not in the tree")
    (source / "inside").hardlink_to(tmp_path / "outside")
    (source / "symlink").symlink_to("x")
    os.link(source / "symlink", source / "symlink-again", follow_symlinks=False)
    tree = vault.tree(source, mode)
    assert tree["a/deep/first"].kind is EntryKind.FILE
    for name in ("a/second", "z/third"):
        assert tree[name].kind is EntryKind.HARDLINK
        assert tree[name].target == b"a/deep/first"
        assert tree.accessor.follow(tree[name]).offset == tree["a/deep/first"].offset
    assert tree["inside"].kind is EntryKind.FILE
    assert tree["symlink-again"].kind is EntryKind.SYMLINK
    restored = vault.restore(vault.snapshots[-1], tmp_path / "restored")
    assert (restored / "z/third").samefile(restored / "a/deep/first")
    assert (restored / "z/third").stat().st_nlink == 3


def test_sparse_files(vault: Vault, source: Path, mode: ChangeDetectionMode) -> None:
    with (source / "sparse").open("wb") as file:
        file.seek(3 * MIB)
        file.write(b"in the middle")
        file.truncate(20 * MIB)
    with (source / "hole").open("wb") as file:
        file.truncate(5 * MIB + 1)
    tree = vault.tree(source, mode)
    assert tree.contents == {
        "hole": bytes(5 * MIB + 1),
        "sparse": (source / "sparse").read_bytes(),
    }


@needs_root
def test_xattrs_and_capabilities(vault: Vault, source: Path, mode: ChangeDetectionMode) -> None:
    path = source / "file"
    path.write_bytes(b"\x7fELF")
    wanted = {
        "user.empty": b"",
        "user.binary": bytes(range(256)),
        "trusted.key": b"t",
        "user." + "n" * 250: b"the longest name",
    }
    for name, value in wanted.items():
        os.setxattr(path, name, value)
    os.setxattr(path, "security.capability", FCAPS)
    os.setxattr(path, "security.other", b"not recorded")
    os.setxattr(source, "user.on-a-directory", b"yes")
    tree = vault.tree(source, mode)
    metadata = tree["file"].metadata
    assert dict(metadata.xattrs) == {os.fsencode(name): value for name, value in wanted.items()}
    assert metadata.fcaps == FCAPS
    assert tree[""].metadata.xattrs == ((b"user.on-a-directory", b"yes"),)


def test_acls(vault: Vault, source: Path, mode: ChangeDetectionMode) -> None:
    named, masked = source / "named", source / "masked"
    named.write_bytes(b"")
    masked.write_bytes(b"")
    (source / "directory").mkdir()
    user, group, mask, other = (1, 6, ANY), (4, 5, ANY), (16, 4, ANY), (32, 1, ANY)
    os.setxattr(
        named,
        "system.posix_acl_access",
        acl(user, (2, 7, 1000), (2, 4, 1001), group, (8, 5, 2000), mask, other),
    )
    os.setxattr(masked, "system.posix_acl_access", acl(user, group, mask, other))
    default = acl((1, 7, ANY), (2, 5, 7), group, (8, 1, 9), (16, 7, ANY), (32, 0, ANY))
    os.setxattr(source / "directory", "system.posix_acl_default", default)
    tree = vault.tree(source, mode)
    assert tree["named"].metadata.acl == Acl(((1000, 7), (1001, 4)), ((2000, 5),), 5)
    assert tree["masked"].metadata.acl == Acl(group_obj=5)
    assert tree["masked"].metadata.mode == stat.S_IFREG | 0o641  # the mask is in the group's place
    assert tree["directory"].metadata.acl == Acl(
        default=DefaultAcl(7, 5, 0, 7), default_users=((7, 5),), default_groups=((9, 1),)
    )


@pytest.mark.needs("loop")
def test_chattr_flags(
    vault: Vault, source: Path, tmp_path: Path, mode: ChangeDetectionMode
) -> None:
    make_ext4(tmp_path / "disk", 16)
    flags = {"a": 0x10000, "A": 0x20000, "d": 0x100000, "i": 0x400000, "S": 0x800000}
    with mounted_image(tmp_path / "disk", source):
        for letter in flags:
            (source / letter).write_bytes(b"")
        (source / "D").mkdir()
        for letter in (*flags, "D"):
            subprocess.run(["chattr", f"+{letter}", source / letter], check=True)
        tree = vault.tree(source, mode)
    assert {letter: tree[letter].metadata.flags for letter in flags} == flags
    assert tree["D"].metadata.flags == 0x200000


@pytest.mark.needs("loop")
def test_project_ids(vault: Vault, tmp_path: Path, source: Path) -> None:
    """Set in the image and mounted read-only: a kernel without quotas shows them too."""
    (tmp_path / "content").mkdir()
    for name in ("file", "other"):
        (tmp_path / "content" / name).write_bytes(b"counted")
    make_ext4(tmp_path / "disk", 16, "-O", "project", "-d", str(tmp_path / "content"))
    set_id = ["debugfs", "-w", "-R", "set_inode_field /file projid 4711", tmp_path / "disk"]
    subprocess.run(set_id, check=True, capture_output=True)
    with mounted_image(tmp_path / "disk", source, read_only=True):
        tree = vault.tree(source)
    assert tree["file"].metadata.quota_project_id == 4711
    assert tree["other"].metadata.quota_project_id is None


@pytest.mark.parametrize("kind", ["ext4", "vfat", "tmpfs"])
def test_what_other_file_systems_say(
    vault: Vault, source: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Project ids are asked of the file systems that have them, attributes of FAT."""

    def answer(_: int, request: int, buffer: bytes) -> bytes:
        answers = {
            inode.FS_IOC_GETFLAGS: struct.pack("<Q", 0x80 | 0x80000),
            inode.FS_IOC_FSGETXATTR: struct.pack("<12xI12x", 17),
            inode.FAT_IOCTL_GET_ATTRIBUTES: struct.pack("<I", 2 | 4 | 32),
        }
        assert len(answers[request]) == len(buffer)
        return answers[request]

    monkeypatch.setattr("fcntl.ioctl", answer)
    monkeypatch.setattr(inode, "_mounted_types", lambda: {source.stat().st_dev: kind})
    (source / "file").write_bytes(b"content")
    metadata = vault.tree(source)["file"].metadata
    assert metadata.flags == {"vfat": 0x20000 | 0x2000 | 0x4000 | 0x8000}.get(kind, 0x20000)
    assert metadata.quota_project_id == {"ext4": 17}.get(kind)


def test_a_file_system_without_features(
    vault: Vault, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither ioctls nor xattrs: asked once per file system, then no more."""
    asked = []

    def refuse(*arguments: object, **_: object) -> None:
        asked.append(arguments)
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.ioctl", refuse)
    monkeypatch.setattr(os, "listxattr", refuse)
    for number in range(5):
        (source / str(number)).write_bytes(b"content")
    tree = vault.tree(source)
    assert len(tree.contents) == 5
    assert 2 <= len(asked) <= 3
    assert vault.warnings == []


def test_attributes_that_fail_cost_no_content(
    vault: Vault, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    (source / "file").write_bytes(b"content")
    monkeypatch.setattr(os, "listxattr", fail)
    tree = vault.tree(source)
    assert tree.read("file") == b"content"
    assert vault.warnings[1].startswith(f"{source}/file: extended attributes are left out: ")


def test_a_file_just_written_is_given_its_tick(vault: Vault, source: Path) -> None:
    """What is written after it was read must not have the time it was archived with."""
    path = source / "file"
    path.write_bytes(b"one")
    written = path.stat().st_mtime_ns
    vault.tree(source, LEGACY)
    assert time.time_ns() - written >= 20_000_000


@pytest.mark.parametrize("way", ["relative", "slash", "dots", "symlink"])
def test_ways_to_name_the_source(
    vault: Vault, source: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "file").write_bytes(b"content")
    monkeypatch.chdir(source.parent)
    Path("symlink").symlink_to(source)
    name = {"relative": "source", "slash": f"{source}//", "dots": "./source/../source/."}
    tree = vault.tree(Path(name.get(way, "symlink")))
    assert tree.contents == {"file": b"content"}
    assert tree[""].kind is EntryKind.DIRECTORY
