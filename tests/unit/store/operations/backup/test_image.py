"""Disk images: holes, sizes, devices, and what can go wrong."""

import errno
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from store.errors import OutOfSpace, SourceError
from store.format.crypt import chunk_digest
from store.format.fixed_index import FixedIndex
from store.progress import SilentProgress
from tests.fakes.datastores import ROOT
from tests.unit.store.operations.backup.conftest import KEY, MIB, Hook, Vault, noise

BLOCK = 4 * MIB
ZERO = bytes(BLOCK)
OnCall = Callable[[str, Hook], None]


def make(path: Path, size: int, *pieces: tuple[int, bytes]) -> Path:
    """A sparse file with data in places."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
    return path


def back_up(vault: Vault, path: Path | str, **options: Any) -> FixedIndex:
    result = vault.backup(f"disk.img:{path}", **options)
    return vault.datastore.fixed_index(ROOT, result.snapshot, "disk.img.fidx")


def read_back(vault: Vault) -> bytes:
    stream = vault.reader(vault.snapshots[-1]).open_image("disk.img")
    return stream.read(0, stream.size)


def expected(path: Path, key: Any = None) -> list[bytes]:
    data = path.read_bytes()
    return [chunk_digest(data[i : i + BLOCK], key) for i in range(0, len(data), BLOCK)]


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
@pytest.mark.parametrize(
    ("size", "pieces"),
    [
        (1, [(0, b"x")]),
        (1, []),
        (512, [(0, b"x" * 512)]),
        (BLOCK, []),
        (BLOCK, [(0, noise(1, BLOCK))]),
        (BLOCK + 1, [(BLOCK, b"x")]),
        (5 * BLOCK + 512, []),
        (5 * BLOCK + 512, [(2 * BLOCK + 4096, b"middle")]),
        (5 * BLOCK, [(0, b"start"), (5 * BLOCK - 1, b"e")]),
        (6 * BLOCK - 512, [(BLOCK - 1, b"across"), (3 * BLOCK, ZERO), (6 * BLOCK - 513, b"e")]),
    ],
)
def test_holes_and_sizes(
    vault: Vault, tmp_path: Path, size: int, pieces: list[tuple[int, bytes]], encrypted: bool
) -> None:
    disk = make(tmp_path / "disk", size, *pieces)
    index = back_up(vault, disk, encrypted=encrypted)
    assert list(index.digests()) == expected(disk, KEY if encrypted else None)
    assert index.size == size
    assert read_back(vault) == disk.read_bytes()


def test_holes_are_not_read(vault: Vault, tmp_path: Path, on_call: OnCall) -> None:
    disk = make(tmp_path / "disk", 100 * BLOCK, (50 * BLOCK, b"data"), (99 * BLOCK, b"more"))
    read: list[int] = []

    def note(original: Hook, file: int, buffers: Any, offset: int) -> Any:
        read.append(offset)
        return original(file, buffers, offset)

    on_call("preadv", note)
    index = back_up(vault, disk)
    assert sorted(read) == [50 * BLOCK, 99 * BLOCK]
    assert len(set(index.digests())) == len(vault.chunks) == 3


def test_no_holes_where_the_file_system_does_not_know(
    vault: Vault, tmp_path: Path, on_call: OnCall
) -> None:
    def lseek(original: Hook, file: int, offset: int, how: int) -> Any:
        if how in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return original(file, offset, how)

    disk = make(tmp_path / "disk", 3 * BLOCK + 5, (BLOCK, b"data"))
    on_call("lseek", lseek)
    assert list(back_up(vault, disk).digests()) == expected(disk)


def test_an_unchanged_image_stores_nothing(vault: Vault, tmp_path: Path) -> None:
    disk = make(tmp_path / "disk", 6 * BLOCK, (0, noise(1, 2 * BLOCK)))
    back_up(vault, disk)
    result = vault.backup(f"disk.img:{disk}")
    assert (result.new_chunks, result.stored_bytes, result.known_chunks) == (0, 0, 3)
    assert result.source_bytes == 6 * BLOCK


def test_progress_covers_holes_too(vault: Vault, tmp_path: Path) -> None:
    class Counting(SilentProgress):
        total: int | None = 0
        done_so_far = 0
        lock = threading.Lock()

        def start(self, total: int | None, unit: str) -> None:
            self.total = total

        def advance(self, amount: int) -> None:
            with self.lock:
                self.done_so_far += amount

    disk = make(tmp_path / "disk", 7 * BLOCK + 9, (3 * BLOCK, b"data"))
    progress = Counting()
    vault.backup(f"disk.img:{disk}", progress=progress)
    assert progress.total == progress.done_so_far == 7 * BLOCK + 9


@pytest.mark.needs("loop")
def test_a_block_device(vault: Vault, tmp_path: Path) -> None:
    disk = make(tmp_path / "disk", 3 * BLOCK + 512, (BLOCK + 7, noise(1, BLOCK)))
    device = subprocess.check_output(["losetup", "--find", "--show", disk], text=True).strip()
    try:
        assert list(back_up(vault, device).digests()) == expected(disk)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
    assert read_back(vault) == disk.read_bytes()


def test_shrinking(vault: Vault, tmp_path: Path, on_call: OnCall) -> None:
    disk = make(tmp_path / "disk", 4 * BLOCK, (0, noise(1, 4 * BLOCK)))

    def shrink(original: Hook, *arguments: Any) -> Any:
        os.truncate(disk, BLOCK)
        return original(*arguments)

    on_call("preadv", shrink)
    with pytest.raises(SourceError, match=r"shrank from 16777216 to .* bytes while it was read"):
        back_up(vault, disk)
    assert (vault.snapshots, vault.leftovers) == ([], [])


def test_shrinking_where_there_was_a_hole(vault: Vault, tmp_path: Path, on_call: OnCall) -> None:
    """A hole at the end and no end any more look alike to SEEK_DATA."""
    disk = make(tmp_path / "disk", 4 * BLOCK, (0, b"data"))

    def shrink(original: Hook, file: int, offset: int, how: int) -> Any:
        found = original(file, offset, how)
        if how == os.SEEK_HOLE:
            os.truncate(disk, BLOCK)
        return found

    on_call("lseek", shrink)
    with pytest.raises(SourceError, match=f"shrank from 16777216 to {BLOCK} bytes"):
        back_up(vault, disk)


def test_a_read_error_stops_all(vault: Vault, tmp_path: Path, on_call: OnCall) -> None:
    disk = make(tmp_path / "disk", 40 * BLOCK, (0, b"a"), (39 * BLOCK, b"z"))
    with disk.open("r+b") as file:
        for block in range(40):
            file.seek(block * BLOCK)
            file.write(b"data")
    reads: list[int] = []

    def fail(original: Hook, file: int, buffers: Any, offset: int) -> Any:
        reads.append(offset)
        if offset == 3 * BLOCK:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(file, buffers, offset)

    on_call("preadv", fail)
    with pytest.raises(SourceError) as caught:
        back_up(vault, disk)
    assert str(caught.value) == f"{disk}: Input/output error at byte {3 * BLOCK}"
    assert len(reads) < 40
    assert (vault.snapshots, vault.leftovers) == ([], [])


def test_a_full_disk_stops_all(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OutOfSpace("no room")

    disk = make(tmp_path / "disk", 4 * BLOCK, (0, noise(1, 4 * BLOCK)))
    monkeypatch.setattr(vault.datastore.chunks, "insert", full)
    with pytest.raises(OutOfSpace):
        back_up(vault, disk)
    monkeypatch.undo()
    assert list(back_up(vault, disk).digests()) == expected(disk)


def test_what_is_no_image(vault: Vault, tmp_path: Path) -> None:
    empty, fifo = tmp_path / "empty", tmp_path / "fifo"
    empty.write_bytes(b"")
    os.mkfifo(fifo)
    for path, reason in (
        (empty, "is empty, an image needs at least one byte"),
        (fifo, "neither a file nor a block device"),
        ("/dev/null", "neither a file nor a block device"),
        (tmp_path, "is a directory; use disk.pxar for a tree"),
        (tmp_path / "none", "No such file or directory"),
    ):
        with pytest.raises(SourceError) as caught:
            back_up(vault, path)
        assert str(caught.value) == f"{path}: {reason}"
    assert (vault.snapshots, vault.leftovers) == ([], [])
