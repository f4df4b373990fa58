"""NTFS volumes that were not shut down: what is only in their journals is shown, too.

Nothing on Linux writes such a journal, so `tests/ntfs_journals.py` does. What it writes was
replayed by Linux 6.12's ntfs3 as well, for both versions, with the same files.
"""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from store.disks.journals import unclean
from tests.bitlocker import BitLocker, Method
from tests.conftest import scratch_folder
from tests.fakes.disk_files import DiskFile
from tests.guest_disks import facts_inside, make_disk, ntfs_mounted, tree_facts
from tests.ntfs_journals import PAGE, Volume, take_back
from tests.program import PROGRAM, environment, mounted, run

pytestmark = [
    pytest.mark.needs("fuse", "root", "images", "nbd"),
    pytest.mark.xdist_group("mount"),
    pytest.mark.timeout(300),
]

FRESH = {"new0": b"0\n", "new1": b"1\n" * 40, "new2": b"2\n" * 5000}
OLD = {"old.txt": b"old\n"}


@pytest.fixture(scope="module")
def images() -> Iterator[Path]:
    """`before.raw`, and `after.raw` to which FRESH was written since."""
    with scratch_folder() as folder:
        before = folder / "before.raw"
        make_disk(before, "ntfs", 16)
        with ntfs_mounted(before, folder / "mount") as top:
            (top / "fresh").mkdir()
            for name, content in OLD.items():
                (top / name).write_bytes(content)
            for name in FRESH:  # so that there are file records to be used again
                (top / name).touch()
                (top / name).unlink()
        shutil.copyfile(before, folder / "after.raw")
        with ntfs_mounted(folder / "after.raw", folder / "mount") as top:
            for name, content in FRESH.items():
                (top / "fresh" / name).write_bytes(content)
        yield folder


@pytest.fixture(params=[1, 2], ids=["1.1", "2.0"])
def dirty(images: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A volume on which FRESH is in the journal only, which is of that version."""
    image = tmp_path / "dirty.raw"
    assert take_back(images / "before.raw", images / "after.raw", image, request.param) == 6
    return image


def test_what_is_in_the_journal_is_shown(images: Path, dirty: Path) -> None:
    with closing(DiskFile(dirty)) as stream:
        assert "holds writes" in unclean("ntfs", stream.read)
    shown = facts_inside(dirty)
    assert shown == facts_inside(images / "after.raw")
    assert shown != facts_inside(images / "before.raw")
    assert {path for path in shown if "fresh/" in path} == {f"fresh/{name}" for name in FRESH}


def test_a_volume_that_is_encrypted_as_well(images: Path, dirty: Path, tmp_path: Path) -> None:
    """As most Windows leave it."""
    volume = BitLocker(Method.XTS_128)
    volume.encrypt(dirty, tmp_path / "encrypted.raw")
    shown = facts_inside(tmp_path / "encrypted.raw", volume.startup_key())
    assert shown == facts_inside(images / "after.raw")


def test_a_copy_of_file_records_that_is_late(images: Path, dirty: Path) -> None:
    volume = Volume(dirty)
    mirror = int.from_bytes(volume.read(56, 8), "little") * volume.cluster
    volume.write(mirror + 100, b"\xff" * 8)
    assert facts_inside(dirty) == facts_inside(images / "after.raw")


def test_what_says_only_that_it_is_dirty_has_nothing_to_be_replayed(
    images: Path, tmp_path: Path
) -> None:
    image = tmp_path / "marked.raw"
    shutil.copyfile(images / "after.raw", image)
    Volume(image).mark_dirty()
    assert image.read_bytes() != (images / "after.raw").read_bytes()
    assert facts_inside(image) == facts_inside(images / "after.raw")


def test_a_journal_that_cannot_be_replayed_is_no_secret(dirty: Path, tmp_path: Path) -> None:
    """Its restart pages are there, and its records are not."""
    volume = Volume(dirty)
    place, size = volume.log()
    volume.write(place + 2 * PAGE, bytes([0xFF]) * (size - 2 * PAGE))
    with scratch_folder() as folder:
        run("datastore", "create", folder / "store")
        run("backup", f"drive-scsi0.img:{dirty}", "--backup-type", "vm", "--backup-id", "1",
            "--repository", folder / "store")  # fmt: skip
        look = ("snapshot", "files", "--repository", folder / "store", "vm/1")
        failed = subprocess.run(
            [PROGRAM, *map(str, look), "drive-scsi0.img/part1"],
            env=environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert failed.returncode != 0
        assert "part1: ntfsrecover cannot replay the journal" in failed.stderr
        assert "is in part1.unclean" in failed.stderr
        assert "old.txt" in run(*look, "drive-scsi0.img/part1.unclean").stdout
        log = tmp_path / "log"
        options = ("--log", log, "-o", "no-micro-vm")
        with mounted(folder / "store", tmp_path / "mount", *options) as mount:
            disk = mount / "vm/1/latest/drive-scsi0.img.d"
            assert sorted(os.listdir(disk)) == ["part1", "part1.raw"]
            with pytest.raises(OSError) as raised:
                os.listdir(disk / "part1")
            assert raised.value.errno == errno.EIO
            assert sorted(os.listdir(disk)) == ["part1.raw", "part1.unclean"]
            found = tree_facts(disk / "part1.unclean")
            assert sorted(found) == ["fresh", *OLD]
        lines = [line for line in log.read_text().splitlines() if "as it was on the disk" in line]
        assert len(lines) == 1
        assert "ntfsrecover cannot replay" in lines[0]
