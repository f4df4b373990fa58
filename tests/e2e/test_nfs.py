"""A datastore on real NFS: kernel server and client, v4.2 and v3, in a guest made for it.

The machine's own kernel may have no NFS; the guest's has. It is made once, in about a minute, and
kept in /var/tmp; it boots in seconds without KVM.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.machine import LAB_PACKAGES

REPOSITORY = Path(__file__).parents[2]
KITS = REPOSITORY / "tests/kits"
LABS = Path("/var/tmp/vaultway-lab")
GUEST_S = 1500
LEFT_OUT = shutil.ignore_patterns(
    "__pycache__", "__editable__*", "seaweedfs*", "mypy*", "*__mypyc*", "ruff*",
    "Cython*", "cython*", "pip*", "setuptools*", "grimp*", "importlinter*", "rich*",
    "golden", "*.pxd",
)  # fmt: skip


@pytest.fixture(scope="session")
def lab() -> Path:
    """The guest: kernel, initrd and root disk."""
    maker = KITS / "make-lab.sh"
    folder = LABS / hashlib.sha256(maker.read_bytes()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with (LABS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "root.qcow2").exists():
            install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *LAB_PACKAGES]
            for command in (install, ["bash", str(maker), str(folder)]):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


@pytest.mark.slow
@pytest.mark.needs("lab")
@pytest.mark.timeout(GUEST_S + 300)
def test_on_real_nfs(lab: Path, tmp_path: Path) -> None:
    payload, log = tmp_path / "payload", tmp_path / "guest.log"
    shutil.copytree(sysconfig.get_path("purelib"), payload / "site", ignore=LEFT_OUT)
    for name in ("store", "fsgateway", "blockgw", "tests"):
        shutil.copytree(REPOSITORY / name, payload / "project" / name, ignore=LEFT_OUT)
    shutil.copy(REPOSITORY / "pyproject.toml", payload / "project")
    shutil.copy(KITS / "lab-nfs/run.sh", payload)
    shutil.copy(REPOSITORY / "tests/nfs/guest.sh", payload / "test.sh")
    done = subprocess.run(
        [KITS / "lab-run.sh", lab, payload, str(GUEST_S), log],
        env=os.environ | {"LAB_MEM": "2048"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = log.read_text(errors="replace")
    print(told)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{told[-20_000:]}"
    assert told.count("exit 0") == 4, told
