"""A mount and an export that are written to while things go wrong: what is said, and what is left.

The storage goes away, the clock jumps, another process takes the head: nothing that was
acknowledged is lost. Full disks, wrong keys and chunks that are gone are in the neighbouring files.
"""

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import scratch_folder
from tests.other_clock import OtherClock
from tests.program import error_line, run
from tests.s3_vault import DATA, MIB, Vault
from tests.writable_export import qemu_io, writable
from tests.writable_mount import WritableMount, writable_mount

pytestmark = [pytest.mark.needs("fuse", "root"), pytest.mark.xdist_group("writable")]

DAY = 86400
YEAR = 365 * DAY
PLAIN = ("--crypt-mode", "none")
RETRY = "retry-for=1s"
CONTENT = b"what was acknowledged"


@pytest.fixture
def mount() -> Iterator[WritableMount]:
    with scratch_folder() as folder, writable_mount(folder) as made:
        made.make_tree()
        yield made


@dataclass
class BucketMount(WritableMount):
    """One of a datastore in a bucket."""

    bucket: str = ""

    @property
    def repository(self) -> str:
        return self.bucket


@pytest.fixture
def bucket(vault: Vault) -> Iterator[BucketMount]:
    """A group with a snapshot of a tree, mounted through the proxy."""
    vault.back_up(DATA, 1, *PLAIN)
    with scratch_folder() as folder:
        made = BucketMount(folder, f"seal=manual,{RETRY}", env=vault.env, bucket=vault.repository)
        try:
            made.up()
            yield made
        finally:
            made.end()


def write(path: Path, content: bytes) -> None:
    """Write and fsync: afterwards it is acknowledged."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def away(vault: Vault) -> Iterator[None]:
    """Nobody reaches the server meanwhile."""
    vault.site.proxy.go_down()
    try:
        yield
    finally:
        vault.site.proxy.come_up()


def errno_of_reading(path: Path) -> int | None:
    try:
        path.read_bytes()
    except OSError as error:
        return error.errno
    return None


@pytest.mark.needs("s3")
class TestServer:
    """Of a bucket."""

    def test_it_is_gone_for_a_while(self, bucket: BucketMount, vault: Vault) -> None:
        """Of what is below, EIO; what is written meanwhile is safe, whatever happens then."""
        tree = bucket.mountpoint / "host/web01/current/root.pxar"
        before = (tree / "a/1").read_bytes()
        assert sorted(os.listdir(tree / "a"))[:2] == ["0", "1"]
        bucket.kill()
        bucket.up()
        os.listdir(tree / "a")
        with away(vault):
            write(tree / "new", CONTENT)
            assert errno_of_reading(tree / "a/19") == errno.EIO
            time.sleep(2)  # the kernel asks again for what is above
            write(tree / "a/2", CONTENT)
            assert (tree / "new").read_bytes() == CONTENT
            bucket.kill()
        bucket.up()
        assert (tree / "new").read_bytes() == (tree / "a/2").read_bytes() == CONTENT
        assert (tree / "a/1").read_bytes() == before
        assert "sealed" in bucket.head("seal", "host/web01", *PLAIN)
        vault.restore(DATA, vault.folder / "restored")
        restored = vault.folder / "restored"
        assert (restored / "a/2").read_bytes() == (restored / "new").read_bytes() == CONTENT
        assert (restored / "a/1").read_bytes() == before
        assert "Traceback" not in bucket.log

    def test_it_is_gone_for_good(self, bucket: BucketMount, vault: Vault) -> None:
        """Sealing says so, ending works, and the head has it all for whoever opens it."""
        tree = bucket.mountpoint / "host/web01/current/root.pxar"
        os.listdir(tree)
        seal = ("head", "seal", "host/web01", "--heads", bucket.heads, "--retry-for", "1s", *PLAIN)
        with away(vault):
            write(tree / "new", CONTENT)
            line = error_line(*seal, env=bucket.env, expect=16)
            assert "127.0.0.1" in line
            assert (tree / "new").read_bytes() == CONTENT
            bucket.down()
        bucket.up()
        assert (tree / "new").read_bytes() == CONTENT
        assert "Traceback" not in bucket.log

    def test_a_full_journal_waits_for_it(self, bucket: BucketMount, vault: Vault) -> None:
        """Who writes more than there is room for waits, and nothing fails."""
        bucket.kill()
        bucket.up(f"seal=manual,{RETRY},journal={4 * MIB}")
        tree = bucket.mountpoint / "host/web01/current/root.pxar"
        os.listdir(tree)
        contents = {f"large{number}": os.urandom(MIB) for number in range(12)}
        failed: list[OSError] = []

        def write_all() -> None:
            try:
                for name, content in contents.items():
                    write(tree / name, content)
            except OSError as error:
                failed.append(error)

        writer = threading.Thread(target=write_all)
        with away(vault):
            writer.start()
            writer.join(timeout=8)
            assert writer.is_alive()
        writer.join(timeout=200)
        assert not failed
        bucket.kill()
        bucket.up()
        for name, content in contents.items():
            assert (tree / name).read_bytes() == content


def test_the_clock_jumps(tmp_path: Path) -> None:
    """Days, years, past 2038 and back: each seal is a later snapshot, and has what was written."""
    clock = OtherClock(tmp_path)
    with scratch_folder() as folder:
        folder.chmod(0o755)
        mount = WritableMount(folder, env=clock.environment)
        run("datastore", "create", mount.vault)
        try:
            mount.up()
            tree, sealed = mount.make_tree(), []
            for number, offset in enumerate((0, 3 * DAY, -3 * DAY, 20 * YEAR, -10 * YEAR, 0)):
                clock.jump_to(offset)
                write(tree / f"f{number}", CONTENT)
                sealed.append(mount.seal())
                names = sorted(os.listdir(sealed[-1] / "root.pxar"))
                assert names == [f"f{before}" for before in range(number + 1)]
            assert [path.name for path in sealed] == sorted({path.name for path in sealed})
            write(tree / "last", CONTENT)
            clock.jump_to(-20 * YEAR)
            mount.kill()
            mount.up()
            assert (tree / "last").read_bytes() == CONTENT
            assert "ERROR" not in mount.log
            assert "Traceback" not in mount.log
        finally:
            mount.end()


def take_over(heads: Path) -> None:
    """Be another host that got the locks after the file server had forgotten who had them."""
    found = list((heads / ".vaultway/locks").iterdir())
    assert found
    for path in found:
        path.write_bytes(b"1234 elsewhere 0123456789abcdef\n")
        path.unlink()


def test_another_host_takes_the_head_from_a_mount(mount: WritableMount) -> None:
    """EBUSY for who asks that something last, then for every change; nothing of it is sealed."""
    write(mount.tree / "file", CONTENT)
    take_over(mount.heads)
    for _ in range(2):
        with pytest.raises(OSError, match="busy") as caught:
            write(mount.tree / "late", CONTENT)
        assert caught.value.errno == errno.EBUSY
    with pytest.raises(OSError, match="busy") as caught:
        (mount.tree / "later").mkdir()
    assert caught.value.errno == errno.EBUSY
    assert "lock was lost" in mount.head("seal", "host/test", expect=12)
    assert not (mount.vault / "host/test").exists()
    mount.kill()
    mount.up()
    assert (mount.tree / "file").read_bytes() == CONTENT
    write(mount.tree / "file2", CONTENT)
    assert "Traceback" not in mount.log


@pytest.mark.needs("nbd", "qemu")
def test_another_host_takes_the_head_from_an_export(tmp_path: Path) -> None:
    """An I/O error for FLUSH and FUA; what was flushed before is there for who opens it next."""
    vault = tmp_path / "vault"
    run("datastore", "create", vault)
    common = ("--repository", vault)
    with writable(tmp_path, "vm/100/current/disk.img", "--size", "8M", *common) as export:
        assert "failed" not in qemu_io(export, "write -P 1 0 64k", "flush")
        take_over(export.heads)
        assert "Input/output error" in qemu_io(export, "write -f -P 2 64k 64k")
        assert "Input/output error" in qemu_io(export, "write -P 2 64k 64k", "flush")
        line = error_line("head", "seal", "vm/100", "--heads", export.heads, *common, expect=12)
        assert "lock was lost" in line
        export.kill()
        export.start()
        assert "failed" not in qemu_io(export, "read -P 1 0 64k", "write -P 3 0 64k", "flush")
