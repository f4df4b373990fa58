"""A shell on a copy of this machine: whatever it writes, mounts or starts is gone with it."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from tests.conftest import scratch_folder
from tests.machine import LEAVE_OTHERS_MOUNTS

REPOSITORY = Path(__file__).parents[1]

# Ours are: /dev (beside the few nodes that programs need), /run, and all that is written.
SYSTEM = """{leave_others}
mount -t tmpfs tmpfs "$1" && trap 'cd / && umount -l "$1"' EXIT
cd "$1" && mkdir upper work root
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" root
mount -t proc proc root/proc
mount -t tmpfs tmpfs root/run
mount -t tmpfs tmpfs root/dev
mkdir root/dev/shm
for node in null zero full random urandom fuse; do
    touch root/dev/$node && mount --bind /dev/$node root/dev/$node
done
ln -s /proc/self/fd root/dev/fd
for place in {places}; do mkdir -p root$place && mount --rbind $place root$place; done
chroot root bash -c "$2"
"""


def on_a_throwaway_system(script: str, *places: Path, timeout_s: int = 280) -> str:
    """Run a script for bash there; what it said. `places` are there as they are here."""
    here = {REPOSITORY, Path(sys.prefix).resolve(), *places}
    system = SYSTEM.format(
        leave_others=LEAVE_OTHERS_MOUNTS, places=shlex.join(str(place) for place in sorted(here))
    )
    with scratch_folder() as folder:
        done = subprocess.run(
            ["timeout", str(timeout_s), "unshare", "--mount", "--propagation", "unchanged", "--pid",
             "--fork", "--kill-child",
             "bash", "-euc", system, "bash", folder, script],
            env={"HOME": "/root", "LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"],
                 "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", check=False,
        )  # fmt: skip
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}"
    return done.stdout
