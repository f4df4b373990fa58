"""Disks that were in use when they were copied, shown by a micro-VM: the kernel in it replays the
journal, and what we then show is what this machine's kernel shows of the same disk."""

import hashlib
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from store.disks.base import Part, Segment, State
from store.disks.disk import open_disk
from store.disks.microvm.accelerator import Accelerator
from store.disks.microvm.appliance import prepare
from store.disks.microvm.engine import MicroVmEngine
from store.disks.microvm.guest import Guest
from store.disks.microvm.pool import Pool
from store.disks.microvm.tree import GuestFiles
from store.disks.parsers.sandbox import NOBODY
from store.errors import FormatError, IntegrityError, StoreError
from store.format.buffer import BytesReadAt, ReadAt
from store.format.pxar.entries import Entry, EntryKind, acl_to_xattrs
from tests.disks_in_use import (
    FILE_SYSTEMS,
    FILES,
    Facts,
    disk_in_use,
    facts_of,
    fresh_content,
    mounted,
    run,
)

pytestmark = [pytest.mark.needs("qemu", "root", "loop"), pytest.mark.timeout(300)]


class Image:
    """A file as a ReadAt."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self.size = path.stat().st_size

    def __enter__(self) -> "Image":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._file.fileno(), size, offset)


@pytest.fixture(scope="module", autouse=True)
def appliance() -> None:
    prepare()


def opened(kind: str, blocks: ReadAt) -> GuestFiles:
    tree = MicroVmEngine().open(Part("part1", kind, (Segment(0, blocks.size),)), blocks)
    assert isinstance(tree, GuestFiles)
    return tree


@pytest.fixture(scope="module", params=FILE_SYSTEMS)
def disk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    kind: str = request.param
    return kind, disk_in_use(tmp_path_factory.mktemp(kind), kind)


@pytest.fixture(scope="module")
def tree(disk: tuple[str, Path]) -> Iterator[GuestFiles]:
    kind, path = disk
    with Image(path) as image:
        if kind == "ext4":  # others may replay that one, too
            with closing(opened(kind, image)) as tree:
                yield tree
        else:
            with closing(open_disk(image)) as whole:
                (part,) = whole.parts
                assert part.state is State.CLEAN  # or will be
                shown = part.open_tree()
                assert isinstance(shown, GuestFiles)
                yield shown


def walk(tree: GuestFiles) -> dict[bytes, Entry]:
    found, todo = {}, [(b"", tree.root())]
    while todo:
        path, folder = todo.pop()
        for entry in tree.iterate(folder):
            found[path + entry.name] = entry
            if entry.kind is EntryKind.DIRECTORY:
                todo.append((path + entry.name + b"/", entry))
    return found


def facts_in(tree: GuestFiles, entry: Entry) -> Facts:
    metadata, is_file = entry.metadata, entry.kind is EntryKind.FILE
    xattrs = dict(metadata.xattrs) | acl_to_xattrs(metadata.acl, metadata.mode)
    if metadata.fcaps is not None:
        xattrs[b"security.capability"] = metadata.fcaps
    return {
        "mode": metadata.mode,
        "owner": (metadata.uid, metadata.gid),
        "mtime": metadata.mtime_s * 10**9 + metadata.mtime_ns,
        "links": entry.links,
        "size": entry.size,
        "sum": hashlib.sha256(tree.read(entry, 0, entry.size)).digest() if is_file else b"",
        "target": entry.target,
        "device": entry.device,
        "xattrs": xattrs,
    }


def resolve(tree: GuestFiles, path: bytes) -> Entry:
    entry: Entry | None = tree.root()
    for name in path.split(b"/"):
        assert entry is not None
        entry = tree.lookup(entry, name)
    assert entry is not None
    return entry


def test_files_written_last_are_all_there(tree: GuestFiles) -> None:
    found = {entry.name: entry for entry in tree.iterate(resolve(tree, b"fresh"))}
    assert len(found) == FILES
    for number in range(FILES):
        entry = found[b"file%03d" % number]
        assert tree.read(entry, 0, entry.size) == fresh_content(number)


def test_what_is_shown_is_what_a_kernel_shows(
    disk: tuple[str, Path], tree: GuestFiles, tmp_path: Path
) -> None:
    kind, path = disk
    found = walk(tree)
    ours = {name: facts_in(tree, entry) for name, entry in found.items()}
    copy = tmp_path / "copy.img"
    run("cp", "--sparse=always", path, copy)
    with mounted(copy, tmp_path / "mnt", kind, "nouuid" if kind == "xfs" else "") as top:
        theirs = facts_of(top)
    assert ours.keys() == theirs.keys()
    if kind == "btrfs":  # where a subvolume was: a directory made when it is looked at
        theirs[b"snap/nested"]["mtime"] = 0
    assert [(name, ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]] == []
    assert found[b"tree/file"].offset == found[b"tree/hard"].offset
    numbers = {entry.offset for entry in found.values()}
    # One hard link; of btrfs also the subvolume that a snapshot shows as an empty directory.
    assert len(numbers) == len(found) - 1


def test_names_that_are_not_there(tree: GuestFiles) -> None:
    root = tree.root()
    for name in (b"none", b"", b".", b"..", b"a/b", b"\0", b"n" * 256):
        assert tree.lookup(root, name) is None
    with pytest.raises(FormatError):
        tree.entry_at(4_000_000_000)


def test_a_killed_guest_costs_an_error_and_comes_back(tree: GuestFiles) -> None:
    file = resolve(tree, b"fresh/file077")
    met = [(path, entry) for path, entry in walk(tree).items() if b"many/" not in path]
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_until_error, tree, file)
        os.kill(tree.guest.pid or 0, 9)
        assert re.search("part1: the micro-VM: ", reading.result(60))
    assert tree.read(file, 0, file.size) == fresh_content(77)
    for path, entry in met:
        assert_found_by_number(tree, path, entry)


def assert_found_by_number(tree: GuestFiles, path: bytes, entry: Entry) -> None:
    """Nothing of the guest that gave the number is left."""
    again = tree.entry_at(entry.offset, entry.end)
    assert (again.kind, again.size, again.target, again.device, again.links) == (
        entry.kind, entry.size, entry.target, entry.device, entry.links,
    ), path  # fmt: skip
    assert again.raw_metadata == entry.raw_metadata, path
    if entry.kind is EntryKind.DIRECTORY:
        names = {child.name for child in tree.iterate(again)}
        assert names == {child.name for child in tree.iterate(entry)}


def read_until_error(tree: GuestFiles, file: Entry) -> str:
    """What goes wrong in the end; until then all is right."""
    try:
        for _ in range(10_000):
            assert tree.read(file, 0, file.size) == fresh_content(77)
    except StoreError as error:
        return str(error)
    return ""


def test_large_files_need_no_guest_once_their_places_are_known(
    disk: tuple[str, Path], tree: GuestFiles
) -> None:
    kind, _ = disk
    if kind == "btrfs":
        return  # its kernel does not tell
    large = resolve(tree, b"tree/large")
    stream, start = tree.content(large)
    tree.guest.stop()
    expected = b"".join(b"%015d\n" % number for number in range(200_000))
    assert stream.read(start, large.size) == expected
    assert tree.guest.pid is None


def test_what_is_no_file_system_says_so() -> None:
    noise = random.Random(7).randbytes(1 << 20)
    began = time.monotonic()
    with pytest.raises(FormatError, match=r"part1: Linux does not mount it as ext4: .*EXT4-fs"):
        opened("ext4", BytesReadAt(noise))
    assert time.monotonic() - began < 120


def test_a_kernel_that_panics_says_so_at_once(tmp_path: Path) -> None:
    """Not by its disk, but in the same way: its first program is none."""
    agent = tmp_path / "agent"
    agent.write_bytes(b"no program")
    appliance = replace(prepare(), agent=agent)
    guest = Guest(
        "part1", "ext4", BytesReadAt(bytes(1 << 20)), appliance, Accelerator("tcg"), Pool()
    )
    with pytest.raises(IntegrityError, match=r"part1: its file system crashed .* Kernel panic"):
        guest.top()
    guest.close()


def test_fat(tmp_path: Path) -> None:
    image, file = tmp_path / "fat.img", tmp_path / "Long name.txt"
    file.write_bytes(b"in FAT\n" * 1000)
    image.write_bytes(bytes(64 << 20))
    run("mkfs.vfat", "-F", "32", image)
    run("mmd", "-i", image, "::/Folder")
    run("mcopy", "-i", image, file, "::/Folder/")
    with Image(image) as blocks, closing(opened("fat", blocks)) as tree:
        found = walk(tree)
        assert found.keys() == {b"Folder", b"Folder/Long name.txt"}
        entry = found[b"Folder/Long name.txt"]
        tree.guest.stop()
        again = tree.entry_at(entry.offset)
        assert tree.read(again, 0, again.size) == file.read_bytes()


OWNER = """
import sys, time
from pathlib import Path
from tests.e2e.test_microvm import Image, opened
tree = opened("ext4", Image(Path(sys.argv[1])))
print(tree.guest.pid, flush=True)
time.sleep(600)
"""


def test_nothing_outlives_a_killed_owner(tmp_path: Path) -> None:
    image = tmp_path / "ext4.img"
    image.write_bytes(bytes(16 << 20))
    run("mkfs.ext4", "-q", image)
    with tempfile.TemporaryDirectory(prefix="left-") as left:
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER, image], stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2], env=os.environ | {"TMPDIR": left},
        )  # fmt: skip
        with owner:
            assert owner.stdout is not None
            pid = int(owner.stdout.readline())
            assert b"qemu" in Path(f"/proc/{pid}/cmdline").read_bytes()
            assert Path(f"/proc/{pid}").stat().st_uid == NOBODY
            owner.kill()
        assert os.listdir(left) == []
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}").exists()
