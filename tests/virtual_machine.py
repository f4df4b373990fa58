"""Boots what scripts/make-vm made and reads what the guest says on its serial port."""

import subprocess
from pathlib import Path


def boot(disk: str | Path, *, timeout_s: int = 120) -> list[str]:
    """Boot from `disk` (a raw file or an NBD URI) under TCG until the guest powers off; returns
    its VAULTWAY lines."""
    done = subprocess.run(
        [
            "qemu-system-x86_64", "-machine", "pc", "-accel", "tcg,thread=multi", "-cpu", "max",
            "-m", "256", "-display", "none", "-monitor", "none", "-serial", "stdio",
            "-no-reboot", "-nic", "none",
            "-drive", f"file={disk},format=raw,if=virtio,snapshot=on",
        ],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    text = done.stdout.decode(errors="replace")
    return [line.strip() for line in text.splitlines() if line.startswith("VAULTWAY")]


def assert_boot_is_whole(lines: list[str]) -> None:
    """The guest came up, found all its files as they were made, and went down by itself."""
    assert any(line.startswith("VAULTWAY boot ok") for line in lines), lines
    assert any(line.startswith("VAULTWAY data ok") for line in lines), lines
    assert any(line.startswith("VAULTWAY done") for line in lines), lines
