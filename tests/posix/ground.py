"""A place where calls are tried: things made there, who calls, and what is there afterwards."""

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST = b"n" * 255
DEEP = b"/".join([b"d" * 200] * 19)
USER, OTHER = 65533, 65532
SHOWN = 64


@dataclass(frozen=True)
class Caller:
    """Who makes a call."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()


ROOT = Caller()


@contextmanager
def acting(caller: Caller) -> Iterator[None]:
    """Be someone else for a while; root comes back."""
    if caller == ROOT:
        yield
        return
    os.setgroups(caller.groups)
    os.setegid(caller.gid)
    os.seteuid(caller.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups([])


def make(kind: str, path: bytes, owner: int = 0) -> None:
    """Make a thing of a kind by name; `missing` ones make nothing."""
    match kind:
        case "file" | "file/":
            Path(os.fsdecode(path)).write_bytes(b"content")
            os.chmod(path, 0o644)
        case "setuid":
            Path(os.fsdecode(path)).write_bytes(b"content")
        case "closed":
            Path(os.fsdecode(path)).write_bytes(b"content")
            os.chmod(path, 0o600)
        case "directory" | "directory/" | "dot" | "dotdot":
            os.mkdir(path, 0o755)
        case "full":
            os.mkdir(path, 0o755)
            Path(os.fsdecode(path + b"/in")).write_bytes(b"inside")
        case "to-file" | "to-directory" | "dangling" | "loop" | "to-file/" | "dangling/":
            _make_link(kind.rstrip("/"), path)
        case "fifo":
            os.mkfifo(path, 0o644)
        case "socket":
            os.mknod(path, stat.S_IFSOCK | 0o644)
        case "device":
            os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 3))
        case "block":
            os.mknod(path, stat.S_IFBLK | 0o644, os.makedev(250, 250))
        case "below-file":
            Path(os.fsdecode(path + b"-file")).write_bytes(b"content")
        case _:
            return
    if owner and kind != "below-file":
        os.chown(path, owner, owner, follow_symlinks=False)
    if kind == "setuid":
        os.chmod(path, 0o6777)


def _make_link(kind: str, path: bytes) -> None:
    target = {
        "to-file": path + b"-target",
        "to-directory": path + b"-target",
        "dangling": b"nowhere",
        "loop": os.path.basename(path),
    }[kind]
    if kind == "to-file":
        Path(os.fsdecode(target)).write_bytes(b"target")
    elif kind == "to-directory":
        os.mkdir(target)
    os.symlink(os.path.basename(target), path)


def spelling(kind: str, path: bytes) -> bytes:
    """How a call says where a thing is."""
    directory = os.path.dirname(path)
    return {
        "file/": path + b"/", "directory/": path + b"/", "to-file/": path + b"/",
        "dangling/": path + b"/", "missing/": path + b"/",
        "dot": path + b"/.", "dotdot": path + b"/..",
        "below-file": path + b"-file/x", "below-missing": path + b"-missing/x",
        "longest": directory + b"/" + LONGEST, "too-long": directory + b"/" + LONGEST + b"n",
        "long-path": directory + b"/" + DEEP + b"/" + LONGEST + b"/" + LONGEST, "empty": b"",
    }.get(kind, path)  # fmt: skip


KINDS = (
    "file", "closed", "setuid", "directory", "full", "to-file", "to-directory", "dangling", "loop",
    "fifo", "socket", "device", "block", "missing", "file/", "directory/", "to-file/", "dangling/",
    "missing/", "dot", "dotdot", "below-file", "below-missing", "longest", "too-long", "long-path",
    "empty",
)  # fmt: skip


def picture(directory: bytes, most: int = SHOWN) -> list[Any]:
    """What is below a directory, without times and what each file system has its own way.

    Of each file so many bytes are looked at; what is too long to show is told as its digest.
    """
    found: list[Any] = []
    for path, directories, files in os.walk(directory):
        directories.sort()
        for name in sorted([*directories, *files]):
            where = os.path.join(path, name)
            info = os.lstat(where)
            is_directory = stat.S_ISDIR(info.st_mode)
            content = None
            if stat.S_ISREG(info.st_mode):
                content = _content(where, most)
            elif stat.S_ISLNK(info.st_mode):
                content = os.readlink(where).decode()
            counted = (0, 0) if is_directory else (info.st_nlink, info.st_size)
            found.append([
                os.path.relpath(where, directory).decode()[:40], oct(info.st_mode), info.st_uid,
                info.st_gid, info.st_rdev, *counted, content, _xattrs(where),
            ])  # fmt: skip
    return found


def _content(path: bytes, most: int) -> str:
    with Path(os.fsdecode(path)).open("rb") as file:
        data = file.read(most)
    return data.decode("latin-1") if len(data) <= SHOWN else hashlib.sha256(data).hexdigest()


def _xattrs(path: bytes) -> dict[str, str]:
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return {name: os.getxattr(path, name, follow_symlinks=False).hex() for name in names}


def clear(directory: bytes) -> None:
    """Empty a directory, whatever its modes say."""
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)
