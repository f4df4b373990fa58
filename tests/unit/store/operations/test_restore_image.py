import hashlib
import io
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from store.errors import (
    AlreadyExists,
    IntegrityError,
    InvalidName,
    NotFound,
    OutOfSpace,
    StoreError,
)
from store.operations.restore import RestoreOptions, restore_archive
from store.operations.restore import image as image_module
from store.operations.restore.image import restore_image_to_device
from store.progress import SILENT
from tests.unit.store.operations.handmade import Snapshot, Stream

CHUNK = 1 << 16
IMAGE = b"".join(
    os.urandom(CHUNK) if number % 3 else bytes(CHUNK) for number in range(40)
) + b"x" * (CHUNK // 2)
BLOB = b"cores: 2\n"


class Counted:
    """A progress that adds up."""

    def __init__(self) -> None:
        self.total, self.done_bytes, self.ended = 0, 0, 0
        self._lock = threading.Lock()

    def start(self, total: int | None, unit: str) -> None:
        assert unit == "B"
        self.total = total or 0

    def advance(self, amount: int) -> None:
        with self._lock:
            self.done_bytes += amount

    def done(self) -> None:
        self.ended += 1


def stream() -> Any:
    return Stream(IMAGE)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def reader() -> Any:
    return Snapshot(
        images={"disk.img": Stream(IMAGE), "broken.img": Stream(IMAGE, broken_at=20 * CHUNK + 5)},
        blobs={"qemu-server.conf": BLOB, "client.log": b""},
    )


class TestImageToFile:
    def test_is_sparse_and_right(self, reader: Any, tmp_path: Path) -> None:
        progress = Counted()
        target = tmp_path / "disk.raw"
        result = restore_archive(reader, "disk.img", str(target), RestoreOptions(progress=progress))
        assert target.read_bytes() == IMAGE
        assert target.stat().st_blocks * 512 < len(IMAGE) - 10 * CHUNK
        assert (progress.total, progress.done_bytes) == (len(IMAGE), len(IMAGE))
        assert (progress.ended, result.bytes) == (1, len(IMAGE))
        assert left(tmp_path) == ["disk.raw"]

    def test_zeros_at_the_end(self, tmp_path: Path) -> None:
        data = b"x" * CHUNK + bytes(5 * CHUNK)
        zeros: Any = Snapshot(images={"disk.img": Stream(data)})
        restore_archive(zeros, "disk.img", str(tmp_path / "disk"))
        assert (tmp_path / "disk").read_bytes() == data

    def test_a_damaged_chunk_leaves_nothing(self, reader: Any, tmp_path: Path) -> None:
        with pytest.raises(IntegrityError, match="wrong digest"):
            restore_archive(reader, "broken.img", str(tmp_path / "disk"))
        assert left(tmp_path) == []

    def test_an_interruption_leaves_nothing(self, reader: Any, tmp_path: Path) -> None:
        class Interrupted(Counted):
            def advance(self, amount: int) -> None:
                super().advance(amount)
                raise KeyboardInterrupt

        progress = Interrupted()
        with pytest.raises(KeyboardInterrupt):
            restore_archive(
                reader, "disk.img", str(tmp_path / "disk"), RestoreOptions(progress=progress)
            )
        assert left(tmp_path) == []
        assert progress.done_bytes < len(IMAGE) // 2

    def test_nothing_is_overwritten_unasked(self, reader: Any, tmp_path: Path) -> None:
        target = tmp_path / "disk"
        target.write_bytes(b"mine")
        with pytest.raises(AlreadyExists, match="disk: exists already"):
            restore_archive(reader, "disk.img", str(target))
        assert target.read_bytes() == b"mine"
        with pytest.raises(IntegrityError):
            restore_archive(reader, "broken.img", str(target), RestoreOptions(overwrite=True))
        assert target.read_bytes() == b"mine"
        restore_archive(reader, "disk.img", str(target), RestoreOptions(overwrite=True))
        assert target.read_bytes() == IMAGE

    def test_a_file_that_comes_meanwhile_stays(
        self, reader: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = tmp_path / "disk"
        restore = image_module._restore

        def meanwhile(*arguments: Any) -> None:
            restore(*arguments)
            target.write_bytes(b"mine")

        monkeypatch.setattr(image_module, "_restore", meanwhile)
        with pytest.raises(AlreadyExists):
            restore_archive(reader, "disk.img", str(target))
        assert target.read_bytes() == b"mine"
        assert left(tmp_path) == ["disk"]

    def test_through_a_symlink(self, reader: Any, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "disk")
        restore_archive(reader, "disk.img", str(tmp_path / "link"))
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "disk").read_bytes() == IMAGE

    def test_a_full_disk(
        self, reader: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OutOfSpace, match="disk: no space left"):
            restore_archive(reader, "disk.img", str(tmp_path / "disk"))
        assert left(tmp_path) == []

    def test_mode_follows_the_umask(self, reader: Any, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            restore_archive(reader, "disk.img", str(tmp_path / "disk"))
        finally:
            os.umask(before)
        assert (tmp_path / "disk").stat().st_mode & 0o777 == 0o640

    @pytest.mark.parametrize("below", ["", "missing/disk"])
    def test_bad_targets(self, reader: Any, tmp_path: Path, below: str) -> None:
        with pytest.raises(StoreError, match=str(tmp_path)):
            restore_archive(reader, "disk.img", str(tmp_path / below))
        assert left(tmp_path) == []

    def test_patterns_are_for_trees(self, reader: Any, tmp_path: Path) -> None:
        with pytest.raises(InvalidName, match="trees"):
            restore_archive(reader, "disk.img", str(tmp_path / "x"), patterns=["a"])

    @pytest.mark.parametrize("text", ["disk.img.fidx", "disk.img"])
    def test_names(self, reader: Any, tmp_path: Path, text: str) -> None:
        assert restore_archive(reader, text, str(tmp_path / "x")).archive == "disk.img"

    def test_no_such_image(self, reader: Any, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match=r"disk\.img, broken\.img"):
            restore_archive(reader, "disc.img", str(tmp_path / "x"))


class TestImageToStream:
    def test_everything_in_order(self, reader: Any) -> None:
        out = io.BytesIO()
        restore_archive(reader, "disk.img", out)
        assert out.getvalue() == IMAGE

    def test_standard_output(self, reader: Any, capfdbinary: Any) -> None:
        restore_archive(reader, "disk.img", "-")
        assert (
            hashlib.sha256(capfdbinary.readouterr().out).digest() == hashlib.sha256(IMAGE).digest()
        )

    def test_a_fifo(self, reader: Any, tmp_path: Path) -> None:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        found: list[bytes] = []
        thread = threading.Thread(target=lambda: found.append(fifo.read_bytes()))
        thread.start()
        restore_archive(reader, "disk.img", str(fifo))
        thread.join()
        assert found == [IMAGE]

    def test_a_pipe_without_a_name(self, reader: Any, tmp_path: Path) -> None:
        """As behind /dev/stdout, a symlink to a pipe that has no path."""
        behind, before = os.pipe()
        link = tmp_path / "stdout"
        link.symlink_to(f"/proc/self/fd/{before}")
        restore_archive(reader, "qemu-server.conf", link)
        os.close(before)
        with open(behind, "rb") as pipe:
            assert pipe.read() == BLOB

    def test_nobody_reads(self, reader: Any) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        out = os.fdopen(writing, "wb", buffering=0)
        with pytest.raises(StoreError, match="Broken pipe"):
            restore_archive(reader, "disk.img", out)
        out.close()


class TestImageToDevice:
    """On a regular file in its place, which can do all but BLKZEROOUT: zeros are written."""

    def test_zeros_are_written(self, tmp_path: Path) -> None:
        device = tmp_path / "device"
        device.write_bytes(b"\xff" * (len(IMAGE) + 100))
        restore_image_to_device(stream(), device, SILENT)
        assert device.read_bytes() == IMAGE + b"\xff" * 100

    def test_or_skipped(self, tmp_path: Path) -> None:
        device = tmp_path / "device"
        device.write_bytes(bytes(len(IMAGE)))
        restore_image_to_device(stream(), device, SILENT, skip_zeros=True)
        assert device.read_bytes() == IMAGE

    def test_one_that_is_too_small(self, tmp_path: Path) -> None:
        device = tmp_path / "device"
        device.write_bytes(b"x" * 1000)
        with pytest.raises(OutOfSpace, match="the device has 1000 bytes"):
            restore_image_to_device(stream(), device, SILENT)
        assert device.read_bytes() == b"x" * 1000


class TestBlob:
    def test_to_a_file(self, reader: Any, tmp_path: Path) -> None:
        for _ in range(2):
            result = restore_archive(
                reader, "qemu-server.conf", str(tmp_path / "a"), RestoreOptions(overwrite=True)
            )
        assert (tmp_path / "a").read_bytes() == BLOB
        assert (result.archive, result.bytes) == ("qemu-server.conf", len(BLOB))

    def test_unasked_not_over_another(self, reader: Any, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"mine")
        with pytest.raises(AlreadyExists):
            restore_archive(reader, "qemu-server.conf.blob", str(tmp_path / "a"))
        assert (tmp_path / "a").read_bytes() == b"mine"

    def test_to_standard_output(self, reader: Any, capfdbinary: Any) -> None:
        restore_archive(reader, "qemu-server.conf", "-")
        assert capfdbinary.readouterr().out == BLOB

    def test_an_empty_one(self, reader: Any, tmp_path: Path) -> None:
        restore_archive(reader, "client.log", str(tmp_path / "a"))
        assert (tmp_path / "a").read_bytes() == b""


def test_a_full_device_is_said_once_and_ends_cleanly(reader: Any) -> None:
    """Closing it writes what is left in the buffer once more."""
    with pytest.raises(OutOfSpace, match="/dev/full"):
        restore_archive(reader, "qemu-server.conf", "/dev/full")


@pytest.mark.parametrize("archive", ["disk.img", "qemu-server.conf"])
@pytest.mark.parametrize("target", ["", "x" * 5000])
def test_what_can_be_no_path(reader: Any, archive: str, target: str) -> None:
    with pytest.raises(InvalidName, match="target"):
        restore_archive(reader, archive, target)
