"""What archives, snapshots and groups say of themselves in extended attributes."""

import hashlib
import os
import random
import subprocess
from pathlib import Path

import pytest

from store.format.crypt import CryptConfig
from store.format.pxar.entries import Metadata, encode_metadata
from store.names import Namespace, Snapshot
from tests.fakes.archives import SplitTree, snapshot
from tests.fakes.datastores import local_datastore
from tests.program import mounted

pytestmark = [pytest.mark.needs("fuse", "root"), pytest.mark.xdist_group("mount")]

MIB = 1 << 20
TIME = "2025-01-01T00:00:00Z"
SNAPSHOT = Snapshot.parse(f"vm/1/{TIME}")
KEY = CryptConfig(bytes(range(32)))


def xattr(path: Path, name: str) -> str | None:
    try:
        return os.getxattr(path, f"user.vaultway.{name}").decode()
    except OSError:
        return None


def own(path: Path) -> list[str]:
    return [name for name in os.listxattr(path) if name.startswith("user.vaultway.")]


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "without its key"])
def test_archives(tmp_path: Path, key: CryptConfig | None) -> None:
    datastore = local_datastore(tmp_path / "store")
    tree = SplitTree()
    stored = Metadata(0o100644, xattrs=((b"user.mine", b"1"), (b"user.vaultway.digest", b"old")))
    tree.file(b"copied", b"x", encode_metadata(stored))
    with snapshot(datastore, str(SNAPSHOT), key) as builder:
        builder.image("disk.img", bytes(12 * MIB) + random.Random(1).randbytes(4 * MIB))
        builder.split_tree("root", tree)
        builder.blob("a.conf", b"text")
    manifest = datastore.read_manifest(Namespace(), SNAPSHOT)
    csums = {info.filename: info.csum.hex() for info in manifest.files}
    with mounted(tmp_path / "store", tmp_path / "m", "--log", tmp_path / "log") as mount:
        top = mount / "vm/1/latest"
        assert xattr(top / "disk.img", "digest") == csums["disk.img.fidx"]
        assert xattr(top / "disk.img", "chunks") == "4/2"
        assert xattr(top / "a.conf", "digest") == csums["a.conf.blob"]
        assert xattr(top / "a.conf", "chunks") is None
        assert xattr(top / "root.pxar", "digest") == (
            f"{csums['root.mpxar.didx']} {csums['root.ppxar.didx']}"
        )
        assert xattr(top / "root.pxar", "chunks") == "2/2"
        assert own(top / "disk.img") == ["user.vaultway.digest", "user.vaultway.chunks"]
        assert own(top / "a.conf") == ["user.vaultway.digest"]
        assert own(top / "root.pxar") == []
        assert own(top / "index.json") == []
        assert xattr(mount / "vm/1", "owner") == datastore.owner(Namespace(), SNAPSHOT.group)
        assert [xattr(top / "disk.img", name) for name in ("verify-state", "pid", "none")] == (
            [None] * 3
        )
        if key is None:  # what was backed up is not ours to hide
            assert xattr(top / "root.pxar/copied", "digest") == "old"
            assert os.getxattr(top / "root.pxar/copied", "user.mine") == b"1"


def test_the_verify_state_is_that_of_now(tmp_path: Path) -> None:
    datastore = local_datastore(tmp_path / "store")
    with snapshot(datastore, str(SNAPSHOT)) as builder:
        builder.image("disk.img", bytes(MIB))
    state = {"state": "failed", "upid": "UPID:x"}
    with mounted(tmp_path / "store", tmp_path / "m") as mount:
        top = mount / "vm/1" / TIME
        assert own(top) == []
        datastore.update_manifest(
            Namespace(), SNAPSHOT, lambda old: old.with_unprotected(verify_state=state)
        )
        script = 'until getfattr --only-values -n user.vaultway.verify-state "$1"; do :; done'
        found = subprocess.run(
            ["timeout", "20", "sh", "-c", script, "sh", top], capture_output=True, check=True
        )
        assert found.stdout == b"failed"
        for path in (top, top / "disk.img"):
            assert xattr(path, "verify-state") == "failed"
            assert "user.vaultway.verify-state" in own(path)


def test_a_copy_of_an_image_carries_its_digest(tmp_path: Path) -> None:
    """`cp -a` keeps attributes: later anybody can tell what it is a copy of."""
    datastore = local_datastore(tmp_path / "store")
    with snapshot(datastore, str(SNAPSHOT)) as builder:
        builder.image("disk.img", b"x" * MIB)
    copy = tmp_path / "copy"
    with mounted(tmp_path / "store", tmp_path / "m") as mount:
        subprocess.run(["cp", "-a", mount / "vm/1/latest/disk.img", copy], check=True)
    chunk = hashlib.sha256(b"x" * MIB).digest()
    assert copy.read_bytes() == b"x" * MIB
    assert xattr(copy, "digest") == hashlib.sha256(chunk).hexdigest()
