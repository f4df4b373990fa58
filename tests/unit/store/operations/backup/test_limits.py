"""Large, deep and odd trees: identical when restored, in bounded memory and descriptors."""

import os
import random
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.format.pxar.entries import EntryKind
from store.operations.backup import ChangeDetectionMode, links, listing, walk
from store.operations.backup.links import LinkTable
from tests.conftest import scratch_folder
from tests.trees import differences, list_tree
from tests.unit.store.operations.backup.conftest import DATA, LEGACY, MIB, Vault

ENTRIES = 20_000
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in [
        (1, 6, 0xFFFFFFFF),
        (2, 7, 1000),
        (4, 4, 0xFFFFFFFF),
        (16, 7, 0xFFFFFFFF),
        (32, 4, 0xFFFFFFFF),
    ]
)
FCAPS = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


class Planter:
    """Grows a tree of every kind of inode, the same one for the same seed."""

    def __init__(self, root: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.directories = [root]
        self.files: list[Path] = []

    def grow(self, entries: int) -> None:
        makers = [self.file] * 60 + [self.directory] * 8 + [self.symlink] * 8 + [self.link] * 8
        makers += [self.fifo, self.device, self.attributed, self.sparse, self.socket]
        for number in range(entries):
            directory = self.random.choice(self.directories)
            name = self.random.choice(("", "ü€", "\udcff\udc80", " ", "-", ".", "[*]"))
            self.random.choice(makers)(directory / f"{name}{number}")
        for path in self.directories:
            os.utime(path, ns=(0, self.time()))

    def time(self) -> int:
        return self.random.choice((0, 1, -1, -(10**18) + 1, 10**18 + 7, 17 * 10**17 + 999_999_999))

    def finish(self, path: Path) -> None:
        os.chown(path, self.random.choice((0, 1000, 0xFFFFFFF0)), 33, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(self.random.choice((0o644, 0o000, 0o4755, 0o2750, 0o1777)))
        os.utime(path, ns=(0, self.time()), follow_symlinks=False)

    def file(self, path: Path) -> None:
        path.write_bytes(self.random.randbytes(int(self.random.paretovariate(0.6)) % 40_000))
        self.files.append(path)
        self.finish(path)

    def directory(self, path: Path) -> None:
        path.mkdir()
        self.directories.append(path)
        path.chmod(self.random.choice((0o755, 0o700, 0o1777)))

    def symlink(self, path: Path) -> None:
        path.symlink_to(self.random.choice((".", "no/such", "/etc/passwd", "x" * 1000)))
        self.finish(path)

    def link(self, path: Path) -> None:
        if self.files:
            path.hardlink_to(self.random.choice(self.files))

    def fifo(self, path: Path) -> None:
        os.mkfifo(path)
        self.finish(path)

    def device(self, path: Path) -> None:
        kind = self.random.choice((stat.S_IFCHR, stat.S_IFBLK))
        os.mknod(path, kind | 0o600, os.makedev(self.random.randrange(500), 0xABCDE))
        self.finish(path)

    def socket(self, path: Path) -> None:
        os.mknod(path, stat.S_IFSOCK | 0o755)
        self.finish(path)

    def sparse(self, path: Path) -> None:
        with path.open("wb") as file:
            file.seek(self.random.randrange(200_000))
            file.write(b"x")
            file.truncate(300_000)
        self.finish(path)

    def attributed(self, path: Path) -> None:
        self.file(path)
        os.setxattr(path, "user.name", self.random.randbytes(self.random.randrange(300)))
        os.setxattr(path, "trusted.empty", b"")
        os.setxattr(path, "system.posix_acl_access", ACL)
        os.setxattr(path, "security.capability", FCAPS)


@pytest.fixture(scope="module")
def forest() -> Iterator[tuple[Path, list[str]]]:
    """READ ONLY: a tree of 20,000 entries, and its facts."""
    with scratch_folder(xattrs=True) as folder:
        Planter(folder, 20_000).grow(ENTRIES)
        yield folder, list_tree(folder)


@pytest.mark.needs("root")
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_a_tree_of_everything(
    vault: Vault,
    forest: tuple[Path, list[str]],
    mode: ChangeDetectionMode,
    encrypted: bool,
) -> None:
    directory, facts = forest
    result = vault.backup(f"root.pxar:{directory}", change_detection_mode=mode, encrypted=encrypted)
    assert vault.warnings == []
    assert len(facts) > ENTRIES
    with scratch_folder(xattrs=True) as folder:
        restored = vault.restore(result.snapshot, folder / "restored")
        assert differences(list_tree(restored), facts) == []


@pytest.fixture
def bottomless(tmp_path: Path) -> Iterator[Path]:
    """3,000 directories one in the other: longer than any path may be, and than recursion goes."""
    top = tmp_path / "bottomless"
    top.mkdir()
    current = os.open(top, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("deeper", dir_fd=current)
        current, above = os.open("deeper", os.O_RDONLY, dir_fd=current), current
        os.close(above)
    file = os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=current)
    os.write(file, b"at the bottom")
    os.link("file", "link", src_dir_fd=current, dst_dir_fd=current)
    os.close(file)
    os.close(current)
    yield top
    dismantle(top)


def dismantle(top: Path) -> None:
    """Remove a tree that is too deep for rmtree, from the top: each level is lifted out first."""
    while (top / "deeper").exists():
        (top / "deeper").rename(top.parent / "lifted")
        top.rmdir()
        (top.parent / "lifted").rename(top)


def test_a_bottomless_tree(vault: Vault, bottomless: Path, mode: ChangeDetectionMode) -> None:
    before = len(os.listdir("/proc/self/fd"))
    result = vault.backup(f"root.pxar:{bottomless}", change_detection_mode=mode)
    assert vault.warnings == []
    assert len(os.listdir("/proc/self/fd")) <= before
    accessor = vault.reader(result.snapshot).open_tree("root.pxar")
    entry = accessor.root()
    for _ in range(3000):
        [entry] = accessor.list(entry)
    file, link = accessor.list(entry)
    assert accessor.read(file, 0, 99) == b"at the bottom"
    # No archive has room for the path of the first name, so the second is a file of its own.
    assert link.kind is EntryKind.FILE
    assert accessor.read(link, 0, 99) == b"at the bottom"


def test_descriptors_are_bounded(
    vault: Vault, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = source
    for _ in range(100):
        directory = directory / "d"
        directory.mkdir()
    counts: list[int] = []

    def read_names(file: int) -> tuple[list[bytes], OSError | None]:
        counts.append(len(os.listdir("/proc/self/fd")))
        return listing.read_names(file)

    monkeypatch.setattr(walk, "OPEN_DIRECTORIES", 10)
    monkeypatch.setattr(walk, "read_names", read_names)
    assert len(vault.tree(source).names) == 100
    assert max(counts) - counts[0] <= 10


def test_links_spill_to_a_file(
    vault: Vault, source: Path, monkeypatch: pytest.MonkeyPatch, mode: ChangeDetectionMode
) -> None:
    monkeypatch.setattr(links, "IN_MEMORY", 10)
    for name in ("a", "b", "c"):
        (source / name).mkdir()
    for number in range(200):
        (source / f"a/{number:03d}").write_bytes(b"%d" % number)
        (source / f"b/{number:03d}").hardlink_to(source / f"a/{number:03d}")
        (source / f"c/{number:03d}").hardlink_to(source / f"a/{number:03d}")
    tree = vault.tree(source, mode)
    for number in range(200):
        for directory in ("b", "c"):
            link = tree[f"{directory}/{number:03d}"]
            assert link.kind is EntryKind.HARDLINK
            assert link.target == b"a/%03d" % number
            assert tree.accessor.follow(link).offset == tree[f"a/{number:03d}"].offset


def test_links_are_forgotten_with_their_last_name(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "IN_MEMORY", 1)
    table = LinkTable()
    infos = []
    for name in ("x", "y"):
        (source / name).write_bytes(b"")
        (source / f"{name}-again").hardlink_to(source / name)
        (source / f"{name}-and-again").hardlink_to(source / name)
        infos.append((source / name).stat())
    for info in infos:
        table.add(info, 7, b"path")
    for info in infos:
        assert [table.find(info) for _ in range(4)] == [(7, b"path"), (7, b"path"), None, None]
    table.close()


def test_a_large_directory(vault: Vault, source: Path) -> None:
    """More than a listing's windows hold, and a metadata stream of several chunks."""
    for number in range(5000):
        (source / f"{number:04}-{'n' * 150}").touch()
    tree = vault.tree(source, DATA)
    assert [int(name[:4]) for name in tree.names] == list(range(5000))
    tree = vault.tree(source, LEGACY)
    assert len(tree.names) == 5000
    catalog = vault.reader(vault.snapshots[-1]).catalog()
    assert catalog is not None
    assert len(catalog.list(catalog.archives()[0])) == 5000


def test_a_file_larger_than_any_buffer(vault: Vault, source: Path) -> None:
    with (source / "file").open("wb") as file:
        file.truncate(100 * MIB)
    result = vault.backup(f"root.pxar:{source}", chunk_size=4 * MIB)
    assert result.source_bytes == 100 * MIB
    assert result.new_chunks <= 5
