"""A virtual machine on a writable export, killed again and again: it, or the export."""

import random
from pathlib import Path

import pytest

from tests.program import run
from tests.virtual_machine import ChurningMachine
from tests.writable_export import Export, writable

pytestmark = pytest.mark.needs("qemu", "nbd")

MOST_FILES = 12


@pytest.mark.parametrize(
    ("rounds", "seed"),
    [(3, 1), pytest.param(50, 2, marks=[pytest.mark.slow, pytest.mark.timeout(1500)])],
    ids=["few", "many"],
)
def test_no_acknowledged_file_is_lost(
    store: Path, tmp_path: Path, vm_disk: Path, rounds: int, seed: int
) -> None:
    """Each boot finds all files that were synced before, whole; with a seal in between, too."""
    key, rng = tmp_path / "key.json", random.Random(seed)
    common = ("--repository", store, "--keyfile", key)
    run("key", "create", key, "--kdf", "none")
    source = f"drive-scsi0.img:{vm_disk}"
    run("backup", source, "--backup-type", "vm", "--backup-id", "100", *common)
    acknowledged = 0
    with writable(tmp_path, "vm/100", "--label", "churn", *common) as export:
        for number in range(rounds + 1):
            acknowledged = churn(export, acknowledged, rng.randint(1, MOST_FILES), rng)
            if number % 7 == 1:
                run("head", "seal", "vm/100", "--label", "churn", "--heads", export.heads, *common)
    assert acknowledged > rounds


def churn(export: Export, before: int, files: int, rng: random.Random) -> int:
    """Boot, see that all is there, write some files, and kill; the last that was acknowledged."""
    machine = ChurningMachine(export.uri)
    try:
        for line in machine.lines():
            assert "BAD" not in line, line
            assert "FAIL" not in line, line
            if line.startswith("VAULTWAY kept ok"):
                last = int(line.partition("last=")[2].split()[0])
                assert last >= before, f"{line}: file {before} was acknowledged"
                machine.acknowledged = last
                before = last
            if machine.acknowledged >= before + files:
                break
        else:
            pytest.fail("the guest went down by itself")
        if rng.random() < 0.5:
            export.kill()
            machine.kill()
            export.start()
        else:
            machine.kill()
    finally:
        machine.process.kill()
        machine.process.wait()
    return machine.acknowledged
