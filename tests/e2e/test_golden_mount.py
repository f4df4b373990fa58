"""What a real PBS wrote reads through the mount exactly as it was."""

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.golden_snapshots import BLOBS, KEY_PASSWORD, SNAPSHOTS, GoldenArchive, golden_archives
from tests.program import mounted
from tests.trees import differences, expected_tree, list_tree

pytestmark = pytest.mark.needs("fuse", "root")

KEYS = ["", "scrypt.json", "pbkdf2.json", "none.json"]


@pytest.fixture(scope="module")
def mounts(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The golden datastore mounted once with each key; "" is without."""
    base = tmp_path_factory.mktemp("mounts")
    running, found = [], {}
    try:
        for key in KEYS:
            options = ["--keyfile", golden / "keys" / key] if key else []
            mount = mounted(
                golden / "datastore", base / (key or "plain"), *options, env=KEY_PASSWORD
            )
            found[key] = mount.__enter__()
            running.append(mount)
        yield found
    finally:
        for mount in reversed(running):
            mount.__exit__(None, None, None)


def below(mounts: dict[str, Path], archive: GoldenArchive) -> Path:
    return mounts[archive.snapshot.key] / archive.snapshot.mount_path / archive.name


@pytest.mark.parametrize("archive", [*golden_archives(".pxar")], ids=str)
def test_tree(mounts: dict[str, Path], archive: GoldenArchive) -> None:
    found = list_tree(below(mounts, archive))
    assert not differences(found, expected_tree(archive.snapshot.day, archive.below))


@pytest.mark.parametrize("archive", [*golden_archives(".img")], ids=str)
def test_image(golden: Path, mounts: dict[str, Path], archive: GoldenArchive) -> None:
    path = below(mounts, archive)
    expected = (golden / f"expected/disk.{archive.snapshot.day}.sha256").read_text().strip()
    with path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == expected


def test_image_is_sparse(mounts: dict[str, Path]) -> None:
    """Blocks 2 and 4 of six are zeros: they take no space, and can be skipped."""
    path = mounts[""] / SNAPSHOTS[10].mount_path / "drive-scsi0.img"
    info = path.stat()
    assert info.st_size - info.st_blocks * 512 == 2 * (4 << 20)
    with path.open("rb") as file:
        hole = os.lseek(file.fileno(), 0, os.SEEK_HOLE)
        assert hole % (4 << 20) == 0
        assert os.lseek(file.fileno(), hole, os.SEEK_DATA) == hole + (4 << 20)


@pytest.mark.parametrize("group", list(BLOBS))
def test_blob(golden: Path, mounts: dict[str, Path], group: str) -> None:
    snapshot = next(snapshot for snapshot in SNAPSHOTS if snapshot.group == group)
    blob = mounts[snapshot.key] / snapshot.mount_path / BLOBS[group]
    assert blob.read_bytes() == (golden / "expected" / BLOBS[group]).read_bytes()


def test_names(mounts: dict[str, Path]) -> None:
    """The datastore as the README draws it."""
    root = mounts[""]
    assert sorted(os.listdir(root)) == ["host", "ns", "vm"]
    assert sorted(os.listdir(root / "ns")) == ["a", "prod"]
    assert sorted(os.listdir(root / "host")) == sorted(
        ["v1", "split", "encrypted", "signed", "master", "several"]
    )
    split = root / "host/split"
    assert os.readlink(split / "latest") == "2025-01-03T00:00:00Z"
    assert sorted(os.listdir(split / "latest")) == ["index.json", "root.pxar"]
    assert sorted(os.listdir(root / "vm/100/latest")) == [
        "drive-scsi0.img", "index.json", "qemu-server.conf",
    ]  # fmt: skip


def test_encrypted_without_its_key(mounts: dict[str, Path]) -> None:
    """Listed with its size; reading it is refused, and the mount lives on."""
    image = mounts[""] / "vm/101/latest/drive-scsi0.img"
    assert image.stat().st_size == (22 << 20) + 512
    with pytest.raises(PermissionError):
        image.read_bytes()
    with pytest.raises(PermissionError):
        os.listdir(mounts[""] / "host/encrypted/latest/root.pxar")
    assert (mounts[""] / "vm/100/latest/qemu-server.conf").read_bytes()


def test_random_reads(mounts: dict[str, Path], golden: Path) -> None:
    """dd in odd pieces and at odd places gives what a whole read gives."""
    path = mounts[""] / "host/v1/latest/root.pxar/big/words-24m.txt"
    whole = path.read_bytes()
    for offset, size in (
        (0, 1),
        (4095, 4098),
        ((4 << 20) - 1, 2),
        (11 << 20, 1 << 20),
        (len(whole) - 1, 100),
    ):
        done = subprocess.run(
            ["dd", f"if={path}", "bs=1M", f"skip={offset}", f"count={size}",
             "iflag=skip_bytes,count_bytes", "status=none"],
            capture_output=True, check=True,
        )  # fmt: skip
        assert done.stdout == whole[offset : offset + size]


def test_read_only(mounts: dict[str, Path]) -> None:
    with pytest.raises(OSError, match="Read-only"):
        (mounts[""] / "host/v1/latest/root.pxar/not-there").write_bytes(b"x")
