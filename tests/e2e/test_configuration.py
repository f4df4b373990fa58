"""A configured repository, mounted as mount(8) and fstab do it, and exported."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from store.format.crypt import CryptConfig
from store.format.keys import create_key_file
from tests.fakes.archives import snapshot
from tests.fakes.datastores import local_datastore
from tests.program import PROGRAM, environment, error_line, exported, run, uri

KEY = CryptConfig(bytes(range(32)))
TIME = "2025-01-01T00:00:00Z"


@pytest.fixture
def config(tmp_path: Path) -> dict[str, str]:
    """Variables for `vault`, a datastore with an encrypted snapshot, and `other`."""
    with local_datastore(tmp_path / "store") as datastore:
        with snapshot(datastore, f"host/h/{TIME}", KEY) as builder:
            builder.blob("a.conf", b"line\n")
        with snapshot(datastore, f"vm/1/{TIME}", KEY) as builder:
            builder.image("disk.img", b"x" * 8192)
    key = tmp_path / "a, b.json"
    now = "2025-01-01T00:00:00+00:00"
    key.write_bytes(create_key_file(KEY.key, None, None, bytes(16), now).encode())
    file = tmp_path / "config.toml"
    file.write_text(
        f'[repository.vault]\nurl = "{tmp_path}/store"\nkeyfile = {json.dumps(str(key))}\n'
        f'[repository.other]\nurl = "{tmp_path}/store"\n'
    )
    return {"VAULTWAY_CONFIG": str(file)}


@contextmanager
def system_mount(mountpoint: Path, *arguments: object, env: dict[str, str]) -> Iterator[Path]:
    """mount(8), which starts us through mount.fuse."""
    mountpoint.mkdir(exist_ok=True)
    command = ["mount", *map(str, arguments)]
    done = subprocess.run(
        command, env=environment(env), capture_output=True, text=True, timeout=240, check=False
    )
    try:
        assert done.returncode == 0, done.stderr
        yield mountpoint
    finally:
        if os.path.ismount(mountpoint):
            run("umount", mountpoint)


@pytest.mark.needs("fuse", "root")
@pytest.mark.xdist_group("mount")
class TestMount:
    """The name of a repository stands where mount(8) has a device."""

    def test_by_name(self, config: dict[str, str], tmp_path: Path) -> None:
        arguments = ("-t", "fuse", f"{PROGRAM}#vault", tmp_path / "m", "-o", "ro,memory=64M")
        with system_mount(tmp_path / "m", *arguments, env=config) as mount:
            assert (mount / "host/h/latest/a.conf").read_bytes() == b"line\n"
            assert f"\nvault {mount} fuse.vaultway " in Path("/proc/mounts").read_text()

    @pytest.mark.parametrize("quoted", ['"{}/a, b.json"', r"{}/a\, b.json"])
    def test_a_comma_in_an_option(
        self, config: dict[str, str], tmp_path: Path, quoted: str
    ) -> None:
        options = f"ro,keyfile={quoted.format(tmp_path)}"
        arguments = ("-t", "fuse", f"{PROGRAM}#other", tmp_path / "m", "-o", options)
        with system_mount(tmp_path / "m", *arguments, env=config) as mount:
            assert (mount / "host/h/latest/a.conf").read_bytes() == b"line\n"

    def test_fstab(self, config: dict[str, str], tmp_path: Path) -> None:
        fstab = tmp_path / "fstab"
        options = f'ro,nofail,x-a=b,keyfile="{tmp_path}/a,\\040b.json",retry-for=0'
        fstab.write_text(f"{PROGRAM}#other {tmp_path}/m fuse {options} 0 0\n")
        with system_mount(tmp_path / "m", "-T", fstab, tmp_path / "m", env=config) as mount:
            assert (mount / "host/h/latest/a.conf").read_bytes() == b"line\n"

    def test_a_name_that_is_not_configured(self, config: dict[str, str], tmp_path: Path) -> None:
        line = error_line("valt", tmp_path, "-o", "ro", env=config, expect=10)
        assert line == "vaultway: repository 'valt' is not configured; configured: other, vault"

    def test_errors_come_before_the_background(
        self, config: dict[str, str], tmp_path: Path
    ) -> None:
        line = error_line("mount", "vault", tmp_path / "store", env=config, expect=2)
        assert "would hide the datastore" in line
        (tmp_path / "m").mkdir()
        small = ("mount", "vault", tmp_path / "m", "-o", "memory=8M")
        assert "at least 32M" in error_line(*small, env=config, expect=2)


@pytest.mark.needs("nbd")
def test_export_by_name(config: dict[str, str], tmp_path: Path) -> None:
    """The key is the configured one; nbdkit gets it, and no credential, from us alone."""
    secrets = {"AWS_SECRET_ACCESS_KEY": "canary", "VAULTWAY_SESSION_TOKEN": "canary"}
    place = tmp_path / "s"
    arguments = ("vm/1", "--repository", "vault", "--memory", "8M")
    with exported(*arguments, socket=place, env=config | secrets):
        copy = tmp_path / "copy"
        subprocess.run(["nbdcopy", uri(place), copy], check=True, timeout=120)
        assert copy.read_bytes() == b"x" * 8192
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            if str(place).encode() in process.read_bytes() and b"nbdkit" in process.read_bytes():
                assert b"canary" not in process.with_name("environ").read_bytes()
                break
        else:
            pytest.fail("no nbdkit")
