"""Disks of guests, for tests: made by the kit, by the kernel, or copied while in use."""

import hashlib
import os
import re
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

from store.disks.disk import DiskOptions, open_disk
from store.format.pxar.entries import Entry, EntryKind
from store.trees.base import FileTree
from tests.fakes.disk_files import DiskFile

KIT = Path(__file__).parent / "kits" / "make-images.sh"
# Fewer than the kit's own default: seconds, not minutes.
FILES, BIG_MIB = 150, 8
MKFS = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q"),
    "btrfs": ("mkfs.btrfs", "-q"),
    "ntfs": ("mkntfs", "-q", "-F"),
    "fat": ("mkfs.fat", "-F", "32"),
}

LUKS2_HEADER, LUKS2_SECTOR = 16 << 20, 4096
BUSY_S = 20.0

Facts = tuple[str, int, int, int, int, str]
"""Kind and modes, owner, group, size, mtime in ns (0: of a directory), link target or SHA-256."""


PARSER = b"parser"  # ours, and the one that breaks the rules


def make_kit(folder: Path, files: int = FILES, *images: str) -> None:
    """All images of the kit, or those, and what is in them."""
    command: list[str | Path] = [KIT, folder, str(files), str(BIG_MIB), *images]
    subprocess.run(command, check=True, capture_output=True, timeout=540)


def make_disk(image: Path, kind: str, size_mib: int, *options: str) -> None:
    """A sparse image with an empty file system."""
    with image.open("wb") as file:
        file.truncate(size_mib << 20)
    subprocess.run([*MKFS[kind], *options, image], check=True, capture_output=True)


def make_luks2(plain: Path, image: Path, keyfile: Path) -> None:
    """`plain` encrypted, without device mapper: cryptsetup makes the header, we do the rest."""
    with image.open("wb") as file:
        file.truncate(plain.stat().st_size + LUKS2_HEADER)
    given = ("--key-file", str(keyfile), "--batch-mode")
    program(
        "cryptsetup", "luksFormat", "--type", "luks2", "--sector-size", str(LUKS2_SECTOR),
        "--pbkdf", "argon2id", "--pbkdf-memory", "65536", "--pbkdf-force-iterations", "4",
        *given, str(image),
    )  # fmt: skip
    volume_key = keyfile.with_name("volume-key")
    program(
        "cryptsetup", "luksDump", "--dump-volume-key", "--volume-key-file", str(volume_key),
        *given, str(image),
    )  # fmt: skip
    key = AES(volume_key.read_bytes())
    with plain.open("rb") as source, image.open("r+b") as target:
        target.seek(LUKS2_HEADER)
        for sector in iter(lambda: source.read(LUKS2_SECTOR), b""):
            number = (target.tell() - LUKS2_HEADER) // 512
            encryptor = Cipher(key, XTS(number.to_bytes(16, "little"))).encryptor()
            target.write(encryptor.update(sector))


def _mount(command: Sequence[str | Path]) -> None:
    """Wait while the image is busy: a copy of our mount namespace may still have it mounted."""
    end = time.monotonic() + BUSY_S
    while True:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not done.returncode:
            return
        assert "busy" in done.stderr, done.stderr
        assert time.monotonic() < end, done.stderr
        time.sleep(0.1)


@contextmanager
def loop_mounted(image: Path, mountpoint: Path, options: str = "") -> Iterator[Path]:
    """The kernel's own mount of an image, for a while."""
    mountpoint.mkdir(exist_ok=True)
    given = ",".join(("loop", options)).strip(",")
    _mount(["mount", "-o", given, image, mountpoint])
    try:
        yield mountpoint
    finally:
        # A copy of our mount namespace may live on, and the file system with it: write it out now.
        subprocess.run(["sync", "--file-system", mountpoint], check=True)
        subprocess.run(["umount", mountpoint], check=True)


@contextmanager
def ntfs_mounted(image: Path, mountpoint: Path) -> Iterator[Path]:
    """An image mounted by ntfs-3g, for a while; all that was written is in it afterwards."""
    mountpoint.mkdir(exist_ok=True)
    command = ["ntfs-3g", "-o", "no_detach", image, mountpoint]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not mountpoint.is_mount():
            assert process.poll() is None
        yield mountpoint
        subprocess.run(["umount", mountpoint], check=True)


def copy_while_mounted(image: Path, kind: str, files: int, folder: Path) -> None:
    """Fill a file system, and copy its disk to `image` right after the last fsync: as a backup of a
    running machine has it."""
    disk = folder / f"{kind}-in-use.raw"
    make_disk(disk, kind, 320)
    with loop_mounted(disk, folder / f"{kind}-mount") as mount:
        os.sync()
        fresh = mount / "fresh"
        fresh.mkdir()
        for number in range(files):
            with (fresh / f"file-{number:03d}").open("wb") as file:
                file.write(fresh_content(number))
                file.flush()
                os.fsync(file.fileno())
        subprocess.run(["cp", "--sparse=always", disk, image], check=True)


def fresh_content(number: int) -> bytes:
    """What the file of that number has: some end in a block, some fill several."""
    return f"{number}\n".encode() * (number * 37 + 1)


def facts_of(path: str) -> Facts:
    """All that is compared of one file."""
    status = os.lstat(path)
    detail, size, mtime = "", 0, status.st_mtime_ns
    if stat.S_ISREG(status.st_mode):
        size = status.st_size
        with open(path, "rb") as file:
            detail = hashlib.file_digest(file, "sha256").hexdigest()
    elif stat.S_ISLNK(status.st_mode):
        detail = os.readlink(path)
    elif stat.S_ISDIR(status.st_mode):
        mtime = 0
    elif status.st_rdev:
        detail = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return stat.filemode(status.st_mode), status.st_uid, status.st_gid, size, mtime, detail


def tree_facts(root: Path) -> dict[str, Facts]:
    """The same for everything below a directory, by path; lost+found left out."""
    found = {}
    for directory, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.join(directory, name)
            if name != "lost+found":
                found[os.path.relpath(path, root)] = facts_of(path)
    return found


def told_facts(folder: Path, which: str) -> dict[str, tuple[str, int, str]]:
    """What the kit says of its trees: kind and, of a file, size and SHA-256, or link target."""
    digests = {}
    for line in (folder / f"{which}.sha256").read_text().splitlines():
        digest, _, path = line.partition("  ./")
        digests[path] = digest
    told = {}
    for line in (folder / f"{which}.meta").read_text().splitlines():
        path, kind, _, size, _, target = line.split("\t")
        told[path] = (kind, int(size) if kind == "f" else 0, digests.get(path, target))
    return told


def seen_facts(root: Path) -> dict[str, tuple[str, int, str]]:
    """The same as a tree shows it."""
    letters = {"-": "f"}
    return {
        path: (letters.get(facts[0][0], facts[0][0]), facts[3], facts[5])
        for path, facts in tree_facts(root).items()
    }


def peak_kib(pid: int) -> int:
    """The most memory that a process has had, 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) if found else 0


def children_of(pid: int) -> list[int]:
    """The parsers that a process has running."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(") ")[2].split()
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == pid and PARSER in command:
            found.append(int(entry.name))
    return found


def program(*command: str) -> str:
    """Run a system program, and return what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def facts_inside(image: Path, *keys: bytes) -> dict[str, Facts]:
    """The same of a disk with one part, as the parsers see it: replayed and decrypted first."""
    options = DiskOptions(keys, use_machine=False)
    with (
        closing(DiskFile(image)) as stream,
        closing(open_disk(stream, image.name, options)) as disk,
    ):
        (part,) = disk.parts
        return walked_facts(part.open_tree())


def walked_facts(tree: FileTree) -> dict[str, Facts]:
    """The same of a FileTree as `tree_facts` of a mount of it."""
    found: dict[str, Facts] = {}

    def enter(directory: Entry, path: bytes) -> None:
        for entry in tree.iterate(directory):
            name = path + entry.name
            if entry.name != b"lost+found":
                found[os.fsdecode(name)] = _facts_of_entry(tree, entry)
            if entry.kind is EntryKind.DIRECTORY:
                enter(entry, name + b"/")

    enter(tree.root(), b"")
    return found


def _facts_of_entry(tree: FileTree, entry: Entry) -> Facts:
    metadata = entry.metadata
    detail, mtime = "", metadata.mtime_s * 10**9 + metadata.mtime_ns
    if entry.kind is EntryKind.FILE:
        detail = hashlib.sha256(tree.read(entry, 0, entry.size)).hexdigest()
    elif entry.kind is EntryKind.SYMLINK:
        detail = os.fsdecode(entry.target)
    elif entry.kind is EntryKind.DIRECTORY:
        mtime = 0
    elif any(entry.device):
        detail = "{}:{}".format(*entry.device)
    mode = stat.filemode(metadata.mode)
    return mode, metadata.uid, metadata.gid, entry.size, mtime, detail


def xattrs_at(path: str) -> dict[str, bytes]:
    """What the kernel says of a file's extended attributes."""
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
    }
