"""A virtual machine boots from its encrypted backup, through NBD and through the mount."""

from pathlib import Path

import pytest

from tests.program import exported, mounted, run, uri
from tests.virtual_machine import assert_boot_is_whole, boot

pytestmark = pytest.mark.needs("qemu", "nbd", "fuse")


def test_boot(store: Path, tmp_path: Path, vm_disk: Path) -> None:
    key, socket = tmp_path / "key.json", tmp_path / "s"
    run("key", "create", key, "--kdf", "none")
    run(
        "backup", f"drive-scsi0.img:{vm_disk}", "--backup-type", "vm", "--backup-id", "100",
        "--repository", store, "--keyfile", key,
    )  # fmt: skip
    with exported("vm/100", "--repository", store, "--keyfile", key, socket=socket):
        assert_boot_is_whole(boot(uri(socket)))
    with mounted(store, tmp_path / "mnt", "--keyfile", key) as mount:
        assert_boot_is_whole(boot(mount / "vm/100/latest/drive-scsi0.img"))
