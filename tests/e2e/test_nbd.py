"""Images over real NBD: nbdkit serves them, libnbd's and QEMU's tools read them."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.golden_snapshots import KEY_PASSWORD, GoldenArchive, golden_archives
from tests.program import error_line, exported, run, uri

pytestmark = pytest.mark.needs("nbd", "qemu")

KIT = Path(__file__).parent.parent / "kits/nbd.sh"


def output(*command: object) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def machine(module_store: Path, vm_disk: Path) -> list[object]:
    """The arguments that export an encrypted backup of a real disk."""
    key = module_store.parent / "key.json"
    common = ("--repository", module_store, "--keyfile", key)
    run("key", "create", key, "--kdf", "none")
    run(
        "backup",
        f"drive-scsi0.img:{vm_disk}",
        "--backup-type",
        "vm",
        "--backup-id",
        "100",
        *common,
    )
    return ["vm/100", *common]


def test_conformance(tmp_path: Path, machine: list[object], vm_disk: Path) -> None:
    """The whole of tests/kits/nbd.sh: offers, refusals, odd reads, extents, 4 x 16 requests, rude
    clients."""
    socket = tmp_path / "s"
    with exported(*machine, socket=socket):
        done = subprocess.run(
            [KIT, uri(socket), vm_disk, "5"],
            env={**os.environ, "KIT_LOG": str(tmp_path / "kit.log")},
            capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + (tmp_path / "kit.log").read_text()[-3000:]


def test_tools(tmp_path: Path, machine: list[object], vm_disk: Path) -> None:
    socket, copy = tmp_path / "s", tmp_path / "copy.raw"
    with exported(*machine, socket=socket):
        same = output("qemu-img", "compare", "-f", "raw", "-F", "raw", uri(socket), vm_disk)
        assert "identical" in same
        extents = json.loads(output("nbdinfo", "--map", "--json", uri(socket)))
        assert sum(extent["length"] for extent in extents) == vm_disk.stat().st_size
        holes = sum(extent["length"] for extent in extents if extent["type"] == 3)
        assert holes > 32 << 20, extents
        output("nbdcopy", uri(socket), copy)
        assert copy.read_bytes() == vm_disk.read_bytes()
        assert copy.stat().st_blocks * 512 < vm_disk.stat().st_size - holes + (8 << 20)
        output(
            "qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri(socket), tmp_path / "copy.qcow2"
        )
        same = output("qemu-img", "compare", tmp_path / "copy.qcow2", vm_disk)
        assert "identical" in same
    assert not socket.exists(), "the socket was left behind"


@pytest.mark.parametrize("archive", golden_archives(".img"), ids=str)
def test_golden_image(tmp_path: Path, golden: Path, archive: GoldenArchive) -> None:
    socket, snapshot = tmp_path / "s", archive.snapshot
    arguments = (snapshot.name, "--repository", golden / "datastore", *snapshot.options)
    with exported(*arguments, socket=socket, env=KEY_PASSWORD):
        output("nbdcopy", uri(socket), tmp_path / "disk.raw")
    expected = (golden / f"expected/disk.{snapshot.day}.sha256").read_text().strip()
    assert hashlib.sha256((tmp_path / "disk.raw").read_bytes()).hexdigest() == expected


def test_all_images_by_name(tmp_path: Path, golden: Path) -> None:
    """--all serves each under its name; `latest` stands for a time; odd sizes keep their last
    sector."""
    socket = tmp_path / "s"
    with exported("--all", "--repository", golden / "datastore", socket=socket):
        listed = json.loads(output("nbdinfo", "--list", "--json", uri(socket)))
        names = {export["export-name"] for export in listed["exports"]}
        assert {
            "vm/100/2025-01-01T00:00:00Z/drive-scsi0.img",
            "vm/100/2025-01-02T00:00:00Z/drive-scsi0.img",
            "host/several/2025-01-01T00:00:00Z/disk.img",
        } <= names
        for name, day in (("2025-01-01T00:00:00Z", 1), ("2025-01-02T00:00:00Z", 2), ("latest", 2)):
            target = tmp_path / f"{day}.raw"
            output("nbdcopy", uri(socket, f"vm/100/{name}/drive-scsi0.img"), target)
            expected = (golden / f"expected/disk.{day}.sha256").read_text().strip()
            assert hashlib.sha256(target.read_bytes()).hexdigest() == expected


def test_nothing_to_export(tmp_path: Path, golden: Path) -> None:
    arguments = (
        "export",
        "vm/999",
        "--repository",
        golden / "datastore",
        "--socket",
        tmp_path / "s",
    )
    assert "vm/999" in error_line(*arguments, expect=10)
    assert not (tmp_path / "s").exists()
