"""Writing more than the journal has room for, through a mount and an export."""

import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import scratch_folder
from tests.program import run
from tests.writable_export import writable
from tests.writable_mount import WritableMount, writable_mount

pytestmark = [pytest.mark.needs("fuse", "root"), pytest.mark.xdist_group("writable")]

MIB = 1 << 20
JOURNAL = 16 * MIB


@pytest.fixture
def mount() -> Iterator[WritableMount]:
    with (
        scratch_folder() as folder,
        writable_mount(folder, f"seal=manual,journal={JOURNAL}") as made,
    ):
        made.make_tree()
        yield made


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def journal_bytes(heads: Path) -> int:
    return sum(path.stat().st_size for path in heads.rglob("*.seg"))


def groups(vault: Path) -> list[str]:
    told = run("group", "list", "--repository", vault, "--output-format", "json").stdout
    return sorted(f"{one['backup-type']}/{one['backup-id']}" for one in json.loads(told))


def test_a_mount_takes_more_than_its_journal(mount: WritableMount) -> None:
    """Killed on the way, too; then it is one snapshot, and nothing else is left."""
    expected = {f"f{number}": noise(number, 6 * MIB) for number in range(10)}
    small = {f"small/{number:04}": noise(number, 3000) for number in range(2000)}
    (mount.tree / "small").mkdir()
    for number, (name, content) in enumerate({**expected, **small}.items()):
        (mount.tree / name).write_bytes(content)
        if number % 500 == 5:
            sync(mount.tree)
            mount.kill()
            mount.up()
    sync(mount.tree)
    assert journal_bytes(mount.heads) < 2 * JOURNAL
    pins = [name for name in groups(mount.vault) if name.startswith("host/vaultway-head-")]
    assert len(pins) == 1, (groups(mount.vault), mount.log)
    assert os.listdir(mount.mountpoint / pins[0])  # people may look at it
    mount.kill()
    mount.up()
    for name, content in {**expected, **small}.items():
        assert (mount.tree / name).read_bytes() == content, name
    snapshot = mount.seal()
    assert os.listdir(mount.vault / "host") == ["test"]
    for path in (mount.tree, snapshot / "root.pxar"):
        for name, content in {**expected, **small}.items():
            assert (path / name).read_bytes() == content, name
    restored = mount.folder / "restored"
    run("restore", "host/test", "root.pxar", restored, "--repository", mount.vault)
    assert all((restored / name).read_bytes() == content for name, content in small.items())
    assert "Traceback" not in mount.log
    assert len(os.listdir(mount.vault / "host/test")) == 2  # the owner, and one snapshot


@pytest.mark.needs("nbd", "qemu")
def test_an_export_takes_more_than_its_journal(tmp_path: Path) -> None:
    """An encrypted disk, written over in part and killed; sealed, it is what was written."""
    key, vault = tmp_path / "key.json", tmp_path / "vault"
    run("key", "create", key, "--kdf", "none")
    run("datastore", "create", vault)
    disk = tmp_path / "disk.raw"
    disk.write_bytes(noise(1, 64 * MIB))
    common = ("--repository", vault, "--keyfile", key)
    arguments = ("vm/100/current/disk.img", "--size", "64M", "--journal", str(JOURNAL), *common)
    with writable(tmp_path, *arguments) as export:
        copy = ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", disk, export.uri]
        subprocess.run([str(word) for word in copy], check=True)
        export.kill()
        export.start()
        with disk.open("r+b") as file:
            for number in range(40):
                offset = random.Random(number).randrange(60 * MIB) // 4096 * 4096
                file.seek(offset)
                file.write(bytes([number]) * 65536)
                call = ["qemu-io", "-f", "raw", "-c", f"write -P {number} {offset} 64k", export.uri]
                subprocess.run(call, check=True, capture_output=True)
        compare = ["qemu-img", "compare", "-f", "raw", "-F", "raw", disk, export.uri]
        subprocess.run([str(word) for word in compare], check=True, capture_output=True)
        assert journal_bytes(export.heads) < 2 * JOURNAL
        assert any(name.startswith("host/vaultway-head-") for name in groups(vault))
        assert "sealed" in run("head", "seal", "vm/100", "--heads", export.heads, *common).stdout
        assert groups(vault) == ["vm/100"]
    run("restore", "vm/100", "disk.img", tmp_path / "restored", *common)
    assert (tmp_path / "restored").read_bytes() == disk.read_bytes()
