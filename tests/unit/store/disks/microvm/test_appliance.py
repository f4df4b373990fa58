import os
from pathlib import Path

import pytest

from store.disks.microvm import appliance, kernels
from store.disks.microvm.appliance import find_appliance
from store.disks.microvm.engine import MicroVmEngine
from store.disks.microvm.kernels import find_kernels
from store.errors import BackendError, NotFound


def kernel_in(root: Path, version: str) -> None:
    (root / "boot").mkdir(parents=True, exist_ok=True)
    (root / "boot" / f"vmlinuz-{version}").write_bytes(b"kernel")
    (root / "lib/modules" / version / "kernel").mkdir(parents=True)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, on a machine that can run QEMU and has no kernel of its own."""
    monkeypatch.setattr(appliance, "_caches", lambda: [tmp_path])
    monkeypatch.setattr(appliance, "_own_cache", lambda: tmp_path)
    monkeypatch.setattr(appliance, "why_no_qemu", lambda: "")
    monkeypatch.setattr(appliance, "find_kernels", lambda caches: kernels_in(*caches))
    return tmp_path


def kernels_in(*caches: Path) -> list[kernels.Kernel]:
    """Those of the caches, not those that this machine boots."""
    places = [cache / "kernel" for cache in caches]
    return [
        one for one in find_kernels(caches) if any(place in one.image.parents for place in places)
    ]


def tool(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_kernels_for_virtual_machines_come_first_and_newer_before_older(cache: Path) -> None:
    for version in ("6.1.0-9-cloud-amd64", "6.1.0-10-cloud-amd64", "6.12.1-amd64"):
        kernel_in(cache / "kernel", version)
    (cache / "kernel/boot/vmlinuz-6.99-amd64").touch()  # without modules
    assert [kernel.version for kernel in kernels_in(cache)] == [
        "6.1.0-10-cloud-amd64", "6.1.0-9-cloud-amd64", "6.12.1-amd64",
    ]  # fmt: skip


def test_what_is_missing_is_said_with_the_command(cache: Path) -> None:
    with pytest.raises(NotFound, match="has no kernel yet: run `vaultway microvm prepare` once"):
        find_appliance()
    kernel_in(cache / "kernel", "6.1.0-1-cloud-amd64")
    with pytest.raises(NotFound, match="has no agent yet: run `vaultway microvm prepare` once"):
        find_appliance()
    assert "run `vaultway microvm prepare`" in MicroVmEngine().why_not("xfs")
    assert MicroVmEngine().why_not("ntfs") == "a micro-VM does not read ntfs"


def test_preparing_compiles_and_unpacks_and_does_neither_twice(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    tool(tools, "cc", 'while [ "$1" != -o ]; do shift; done; echo agent > "$2"; chmod +x "$2"')
    tool(tools, "apt-cache", r"printf 'linux-image-cloud-amd64\n  Depends: linux-image-6-amd64\n'")
    tool(tools, "apt-get", 'touch "$3_1.deb"')
    unpack = 'case $2 in */linux-image-6-amd64_1.deb) ;; *) exit 1;; esac; mkdir -p "$3/boot"'
    tool(
        tools,
        "dpkg-deb",
        f'{unpack} "$3/lib/modules/6-amd64/kernel"; touch "$3/boot/vmlinuz-6-amd64"',
    )
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    made = appliance.prepare()
    assert made.kernel.version == "6-amd64"
    assert made.agent.read_text() == "agent\n"
    for name in ("cc", "apt-get", "apt-cache", "dpkg-deb"):
        tool(tools, name, "exit 1")
    assert appliance.prepare() == made


def test_what_a_tool_says_last_is_why(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    tool(tools, "cc", "echo first >&2; echo cannot find -lc >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    with pytest.raises(BackendError, match="compiling the agent failed: cannot find -lc"):
        appliance.prepare()
