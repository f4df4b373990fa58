"""20,000 entries with every kind of inode: backed up in every way, restored and mounted, nothing
differs."""

import os
import random
import shutil
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.program import mounted, run
from tests.trees import differences, list_tree

pytestmark = pytest.mark.needs("root", "fuse")

ENTRIES = 20_000
ANY = 0xFFFFFFFF
WAYS = {
    "legacy": ("legacy", False),
    "legacy-encrypted": ("legacy", True),
    "data": ("data", False),
    "metadata-encrypted": ("metadata", True),
}


def make_entry(folder: Path, number: int, rng: random.Random) -> None:
    """One inode; its kind and its oddities follow from `rng`."""
    name = os.fsdecode(
        b"%05d-" % number + rng.randbytes(3).replace(b"/", b"_").replace(b"\0", b"_")
    )
    path = folder / name
    kind = rng.choices(
        ("file", "symlink", "hardlink", "fifo", "socket", "device", "sparse"),
        (80, 8, 4, 2, 2, 2, 2),
    )[0]
    if kind == "symlink":
        path.symlink_to(
            rng.choice(
                ("../x", "/etc/passwd", "a" * rng.randint(1, 2000), os.fsdecode(b"\xff\xfe"))
            )
        )
    elif kind == "hardlink" and (first := first_file(folder)):
        path.hardlink_to(first)
        return
    elif kind == "fifo":
        os.mkfifo(path, 0o640)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            here = os.open(folder, os.O_RDONLY)
            listener.bind(f"/proc/self/fd/{here}/{name}")
            os.close(here)
    elif kind == "device":
        os.mknod(
            path,
            rng.choice((stat.S_IFCHR, stat.S_IFBLK)) | 0o600,
            os.makedev(rng.randrange(1, 500), rng.randrange(1 << 20)),
        )
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(rng.randrange(1 << 20))
            file.seek(rng.randrange(1 << 19))
            file.write(b"data")
    else:
        path.write_bytes(rng.randbytes(rng.choice((0, 1, 10, 500, 4096, 9000))))
        decorate(path, rng)
    os.chown(
        path, rng.choice((0, 0, 1000, 100_033)), rng.choice((0, 5, 65534)), follow_symlinks=False
    )
    if not path.is_symlink():
        path.chmod(rng.choice((0o644, 0o600, 0o4755, 0o2711, 0o1777, 0)))
    time_ns = rng.randrange(-(10**17), 2 * 10**18)
    os.utime(path, ns=(time_ns, time_ns), follow_symlinks=False)


def first_file(folder: Path) -> Path | None:
    entries = sorted(folder.glob("[0-9]*"))
    return next((path for path in entries if not path.is_symlink() and path.is_file()), None)


def decorate(path: Path, rng: random.Random) -> None:
    """Xattrs, ACLs and capabilities on some files. Before chown and chmod, which change them."""
    if rng.random() < 0.05:
        os.setxattr(path, "user.note", rng.randbytes(rng.randrange(300)))
    if rng.random() < 0.03:
        entries = ((1, 6, ANY), (2, 7, 1000), (4, 4, ANY), (8, 5, 2000), (16, 7, ANY), (32, 4, ANY))
        acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
        os.setxattr(path, "system.posix_acl_access", acl)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, source_tree: Callable[[int], Path]) -> Path:
    """What make-source.py makes, and as many entries more as are missing."""
    tree, rng = tmp_path_factory.mktemp("large") / "tree", random.Random("large tree")
    shutil.copytree(source_tree(1) / "tree/many", tree / "many")
    folder = tree
    for number in range(ENTRIES):
        if number % 200 == 0:
            folder = (folder if number % 1000 else tree) / f"directory-{number}"
            folder.mkdir()
        make_entry(folder, number, rng)
    return tree


@pytest.fixture(scope="module")
def expected(tree: Path) -> list[str]:
    lines = list_tree(tree)
    assert len(lines) > ENTRIES
    return lines


@pytest.fixture(scope="module")
def key(module_store: Path) -> Path:
    key = module_store.parent / "key.json"
    run("key", "create", key, "--kdf", "none")
    return key


def back_up(tree: Path, store: Path, name: str, mode: str, day: int, *options: object) -> None:
    run(
        "backup", f"root.pxar:{tree}", "--repository", store, "--backup-id", name, *options,
        "--backup-time", f"2025-01-{day:02d}T00:00:00Z", "--change-detection-mode", mode,
    )  # fmt: skip


@pytest.fixture(scope="module")
def backed_up(module_store: Path, tree: Path, key: Path) -> Path:
    """The datastore with the tree backed up in every way; metadata mode after a snapshot to
    compare with."""
    for name, (mode, encrypted) in WAYS.items():
        options = ("--keyfile", key) if encrypted else ()
        if mode == "metadata":
            back_up(tree, module_store, name, "data", 1, *options)
        back_up(tree, module_store, name, mode, 2, *options)
    return module_store


@pytest.mark.parametrize("name", list(WAYS))
def test_restore(
    backed_up: Path, expected: list[str], key: Path, tmp_path: Path, name: str
) -> None:
    options = ("--keyfile", key) if WAYS[name][1] else ()
    run(
        "restore",
        f"host/{name}",
        "root.pxar",
        tmp_path / "out",
        "--repository",
        backed_up,
        *options,
    )
    assert not differences(list_tree(tmp_path / "out"), expected)


@pytest.mark.parametrize("name", list(WAYS))
def test_mount(backed_up: Path, expected: list[str], key: Path, tmp_path: Path, name: str) -> None:
    with mounted(backed_up, tmp_path / "mnt", "--keyfile", key) as mount:
        found = list_tree(mount / "host" / name / "latest/root.pxar")
    assert not differences(found, expected)
