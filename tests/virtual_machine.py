"""Boots what scripts/make-vm made and reads what the guest says on its serial port."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

QEMU = (
    "qemu-system-x86_64", "-machine", "pc", "-accel", "tcg,thread=multi", "-cpu", "max",
    "-m", "256", "-display", "none", "-monitor", "none", "-serial", "stdio",
    "-no-reboot", "-nic", "none",
)  # fmt: skip


def boot(disk: str | Path, *, timeout_s: int = 120) -> list[str]:
    """Boot from `disk` (a raw file or an NBD URI) under TCG until the guest powers off; returns
    its VAULTWAY lines."""
    done = subprocess.run(
        [
            *QEMU,
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


class ChurningMachine:
    """A guest that writes files for ever, and says when each is synced. It boots from `disk`."""

    def __init__(self, disk: str) -> None:
        drive = f"file={disk},format=raw,if=virtio,cache=writeback,discard=unmap"
        self.process = subprocess.Popen(
            [
                *QEMU, "-smbios", "type=1,serial=churn", "-device", "virtio-rng-pci",
                "-drive", f"{drive},werror=report,rerror=report",
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.acknowledged = 0

    def lines(self) -> Iterator[str]:
        """What it says, until it is killed; counts what it acknowledges."""
        assert self.process.stdout
        for raw in self.process.stdout:
            line = raw.decode(errors="replace").strip()
            if "VAULTWAY" not in line:
                continue
            words = line[line.index("VAULTWAY") :].split()
            if words[1] == "ack":
                self.acknowledged = int(words[2])
            yield " ".join(words)

    def kill(self) -> None:
        """As a power failure does; reads what it had said before."""
        self.process.kill()
        for _ in self.lines():
            pass
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()
