"""What a real PBS wrote comes back from `vaultway restore` bit for bit."""

import hashlib
import shutil
from pathlib import Path

import pytest

from tests.golden_snapshots import (
    BLOBS,
    KEY_PASSWORD,
    SNAPSHOTS,
    GoldenArchive,
    GoldenSnapshot,
    golden_archives,
)
from tests.program import run
from tests.trees import differences, expected_tree, list_tree


def restore(golden: Path, archive: GoldenArchive, target: Path) -> None:
    snapshot = archive.snapshot
    run(
        "restore", snapshot.name, archive.name, target, "--repository", golden / "datastore",
        *snapshot.options, env=KEY_PASSWORD,
    )  # fmt: skip


@pytest.mark.needs("root")
@pytest.mark.parametrize("archive", golden_archives(".pxar"), ids=str)
def test_tree(golden: Path, tmp_path: Path, archive: GoldenArchive) -> None:
    restore(golden, archive, tmp_path / "restored")
    found = list_tree(tmp_path / "restored")
    assert not differences(found, expected_tree(archive.snapshot.day, archive.below))


@pytest.mark.parametrize("archive", golden_archives(".img"), ids=str)
def test_image(golden: Path, tmp_path: Path, archive: GoldenArchive) -> None:
    restore(golden, archive, tmp_path / "disk.raw")
    expected = (golden / f"expected/disk.{archive.snapshot.day}.sha256").read_text().strip()
    assert hashlib.sha256((tmp_path / "disk.raw").read_bytes()).hexdigest() == expected
    assert (tmp_path / "disk.raw").stat().st_blocks * 512 < 20 << 20, "zero blocks are not holes"


@pytest.mark.parametrize(
    "snapshot", [snapshot for snapshot in SNAPSHOTS if snapshot.group in BLOBS], ids=str
)
def test_blob(golden: Path, tmp_path: Path, snapshot: GoldenSnapshot) -> None:
    name = BLOBS[snapshot.group]
    restore(golden, GoldenArchive(snapshot, name, ""), tmp_path / name)
    assert (tmp_path / name).read_bytes() == (golden / "expected" / name).read_bytes()


@pytest.mark.needs("root")
def test_bucket_as_a_directory(golden: Path, tmp_path: Path) -> None:
    """An S3 datastore's objects, laid out as files, are a datastore too."""
    store, bucket = tmp_path / "store", golden / "bucket/golds3"
    shutil.copytree(bucket / ".cnt", store)
    shutil.copytree(bucket / ".chunks", store / ".chunks")
    repository = ("--repository", store)
    key = ("--keyfile", golden / "keys/scrypt.json")
    run("restore", "host/split", "root.pxar", tmp_path / "tree", *repository)
    assert not differences(list_tree(tmp_path / "tree"), expected_tree(3))
    run(
        "restore",
        "host/encrypted",
        "many.pxar",
        tmp_path / "many",
        *repository,
        *key,
        env=KEY_PASSWORD,
    )
    assert not differences(list_tree(tmp_path / "many"), expected_tree(3, "many"))
    namespace = ("--ns", "prod/customer-x")
    run("restore", "vm/100", "drive-scsi0.img", tmp_path / "disk.raw", *repository, *namespace)
    expected = (golden / "expected/disk.2.sha256").read_text().strip()
    assert hashlib.sha256((tmp_path / "disk.raw").read_bytes()).hexdigest() == expected
