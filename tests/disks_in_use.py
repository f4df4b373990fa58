"""Disks as guests leave them: in use, just written to. Root and loop devices only."""

import hashlib
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILES = 200
FILE_SYSTEMS = ("ext4", "xfs", "btrfs")
# An ACL xattr: rwx for the owner, r-x for user 1000, r-x, mask r-x, nothing for others.
ACL = bytes.fromhex(
    "02000000 01000700ffffffff 02000500e8030000 04000500ffffffff 10000500ffffffff 20000000ffffffff"
)


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


@contextmanager
def mounted(image: Path, folder: Path, kind: str, options: str = "") -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    run("mount", "-t", kind, "-o", f"loop,{options}".rstrip(","), image, folder)
    try:
        yield folder
    finally:
        run("umount", folder)


def disk_in_use(folder: Path, kind: str) -> Path:
    """An image of a file system, copied while it is mounted and FILES files were just fsynced.

    They are in `fresh/`; what else a file system can hold is in `tree/`.
    """
    image, copy = folder / f"{kind}.img", folder / f"{kind}-copy.img"
    with image.open("wb") as file:
        file.truncate((320 if kind == "xfs" else 160) << 20)
    run(f"mkfs.{kind}", *(["-q"] if kind != "btrfs" else ["-q", "-m", "single"]), image)
    with mounted(image, folder / "mnt", kind) as top:
        if kind == "btrfs":
            run("btrfs", "subvolume", "create", top / "sub")
            (top / "sub/inside").write_bytes(b"in a subvolume\n")
        make_tree(top / "tree")
        if kind == "btrfs":
            run("btrfs", "subvolume", "create", top / "sub/nested")
            run("btrfs", "subvolume", "snapshot", top / "sub", top / "snap")
        os.sync()
        write_fresh(top / "fresh")
        shutil.copyfile(image, copy)
    image.unlink()
    return copy


def write_fresh(folder: Path) -> None:
    """FILES files, each durable when this returns, and in no place but the journal, may be."""
    folder.mkdir()
    for number in range(FILES):
        with (folder / f"file{number:03d}").open("wb") as file:
            file.write(fresh_content(number))
            file.flush()
            os.fsync(file.fileno())


def fresh_content(number: int) -> bytes:
    return b"%d\n" % number * (1 + number * 37 % 3000)


def make_tree(top: Path) -> None:
    """One of everything; owners, modes, times to the nanosecond, xattrs, ACLs."""
    (top / "many").mkdir(parents=True)
    for number in range(2500):  # several pages
        (top / "many" / f"{number}-{'n' * 60}").touch()
    (top / "file").write_bytes(b"content\n")
    (top / "empty").touch()
    (top / "large").write_bytes(b"".join(b"%015d\n" % number for number in range(200_000)))
    with (top / "sparse").open("wb") as file:
        file.seek(5 << 20)
        file.write(b"end")
    os.link(top / "file", top / "hard")
    (top / "link").symlink_to("file")
    (top / "long").symlink_to("x" * 300)
    os.mkfifo(top / "fifo")
    os.mknod(top / "char", stat.S_IFCHR | 0o600, os.makedev(10, 200))
    os.mknod(top / "block", stat.S_IFBLK | 0o640, os.makedev(259, 70000))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(top / "socket"))
    (top / os.fsdecode(b"\xff\xfe odd \n name")).write_bytes(b"odd")
    for number, name in enumerate(sorted(os.listdir(top))):
        path = top / name
        os.chown(path, 1000 + number, 2000, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod((0o4755, 0o2711, 0o1777, 0o640)[number % 4])
        times = (10**18 + number, (-(10**9) if number == 3 else 10**18) + number)
        os.utime(path, ns=times, follow_symlinks=False)
    os.setxattr(top / "file", "user.note", b"a\0b")
    os.setxattr(top / "file", "trusted.note", b"x" * 900)
    os.setxattr(top / "file", "system.posix_acl_access", ACL)
    os.setxattr(top / "many", "system.posix_acl_default", ACL)
    os.setxattr(top / "empty", "security.capability", bytes.fromhex("0100000200040000" + "00" * 12))


Facts = dict[str, object]


def facts_of(top: Path) -> dict[bytes, Facts]:
    """All that a kernel says about each file below a mount, by path."""
    found: dict[bytes, Facts] = {}
    for folder, names, others in os.walk(os.fsencode(top)):
        for name in names + others:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, os.fsencode(top))] = facts(path)
    return found


def facts(path: bytes) -> Facts:
    status = os.lstat(path)
    names = os.listxattr(path, follow_symlinks=False)
    is_file, is_link = stat.S_ISREG(status.st_mode), stat.S_ISLNK(status.st_mode)
    is_device = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
    return {
        "mode": status.st_mode,
        "owner": (status.st_uid, status.st_gid),
        "mtime": status.st_mtime_ns,
        "links": status.st_nlink,
        "size": status.st_size if is_file else 0,
        "sum": hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).digest() if is_file else b"",
        "target": os.readlink(path) if is_link else b"",
        "device": (os.major(status.st_rdev), os.minor(status.st_rdev)) if is_device else (0, 0),
        "xattrs": {
            os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names
        },
    }
