"""A writable export over a bucket, whose server goes away meanwhile."""

from pathlib import Path

import pytest

from tests.s3_vault import IMAGE, MIB, Vault
from tests.writable_export import qemu_io, writable

pytestmark = pytest.mark.needs("s3", "nbd", "qemu")

PLAIN = ("--crypt-mode", "none")


def test_a_server_that_goes_away(vault: Vault, tmp_path: Path) -> None:
    """What is written and flushed meanwhile is safe; sealing waits for its return."""
    vault.back_up(IMAGE, 1, *PLAIN)
    arguments = ("host/web01/current", "--retry-for", "1s", *PLAIN)
    with writable(tmp_path, *arguments, env=vault.env) as export:
        vault.site.proxy.go_down()
        assert "Input/output error" in qemu_io(export, "read 6M 4k")
        assert "failed" not in qemu_io(export, "write -P 1 4M 64k", "flush", "read -P 1 4M 64k")
        export.kill()
        vault.site.proxy.come_up()
        export.start()
        assert "failed" not in qemu_io(export, "read -P 1 4M 64k", "read 6M 4k")
        seal = ("head", "seal", "host/web01", "--heads", export.heads, *PLAIN)
        assert "sealed host/web01/" in vault.run(*seal).stdout
    expected = bytearray(vault.disk.read_bytes())
    expected[4 * MIB : 4 * MIB + 65536] = b"\1" * 65536
    vault.restore(IMAGE, tmp_path / "restored.raw")
    assert (tmp_path / "restored.raw").read_bytes() == expected


def test_a_seal_at_the_end_without_a_server(vault: Vault, tmp_path: Path) -> None:
    """The export fails as the seal did; the head has it all, and is sealed by the next."""
    vault.back_up(IMAGE, 1, *PLAIN)
    arguments = ("host/web01/current", "--retry-for", "1s", "--seal", "close", *PLAIN)
    with writable(tmp_path, *arguments, env=vault.env) as export:
        assert "failed" not in qemu_io(export, "write -P 1 4M 64k")
        vault.site.proxy.go_down()
        export.process.terminate()
        export.process.communicate(timeout=60)
        assert export.process.returncode == 16, export.log.read_text()
        vault.site.proxy.come_up()
        export.start()
        assert "sealed host/web01/" in export.stop()
    assert len(vault.snapshots()) == 2
