"""Which parts of the machine work: found out by running them once."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from store.disks.engines import machine

# For a shell with mounts of its own, first of all: a copy of another test's FUSE mount would keep
# that one from ending. Shared ones, whose end is everybody's, are let be.
LEAVE_OTHERS_MOUNTS = """
    awk '{ for (i = 7; $i != "-"; i++) if ($i ~ /^shared:/) next
           if ($(i + 1) ~ /^fuse/) print $5 }' /proc/self/mountinfo |
        while read -r place; do umount -l "$place" 2>/dev/null || true; done
"""
# In no ordinary user's path.
SMBD = shutil.which("smbd") or "/usr/sbin/smbd"
SHADOW_COPY = "samba/vfs/shadow_copy2.so"
WEED = str(Path(sys.executable).parent / "weed")


def _runs(*command: str) -> str:
    """Return why `command` does not run, or the empty text."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}"
    return "" if done.returncode == 0 else f"{command[0]}: {done.stderr.strip() or done.returncode}"


def _fuse() -> str:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return str(error)
    return _runs("fusermount3", "--version")


def _nbd() -> str:
    return _runs("nbdkit", "--dump-plugin", "python") or _runs("nbdinfo", "--version")


def _qemu() -> str:
    return _runs("qemu-system-x86_64", "--version") or _runs("qemu-img", "--version")


def _fio() -> str:
    return _runs("fio", "--version")


def _root() -> str:
    return "" if os.geteuid() == 0 else "not root"


def _loop() -> str:
    """Loop devices: root only."""
    return _root() or _runs("losetup", "--find")


def _s3() -> str:
    return _runs(WEED, "version") or _runs("setpriv", "--version")


def _ceph() -> str:
    return _runs("ceph-mon", "--version") or _runs("radosgw", "--version")


def _samba() -> str:
    """With the module for previous versions, which has a package of its own in Debian 12."""
    if not [*Path("/usr/lib").glob(f"*/{SHADOW_COPY}")]:
        return f"no {SHADOW_COPY}"
    return _runs(SMBD, "--version") or _runs("smbclient", "--version")


LAB_PACKAGES = (
    "mmdebstrap", "busybox-static", "cpio", "kmod", "e2fsprogs", "qemu-utils", "qemu-system-x86",
)  # fmt: skip


def _images() -> str:
    """Programs that make file systems of every kind, and a kernel that mounts ours by loop."""
    programs = (
        "mkfs.ext4",
        "mkfs.xfs",
        "mkfs.btrfs",
        "mkntfs",
        "ntfs-3g",
        "mkfs.vfat",
        "mcopy",
        "sfdisk",
        "cryptsetup",
    )
    missing = [name for name in programs if shutil.which(name) is None]
    known = Path("/proc/filesystems").read_text().split()
    missing += [f"{kind} in the kernel" for kind in ("xfs", "btrfs") if kind not in known]
    return f"missing: {', '.join(missing)}" if missing else _loop()


def _microvm() -> str:
    """What replays the journals of XFS and Btrfs."""
    engine = machine()
    return "not in this installation" if engine is None else engine.why_not("xfs")


def _lab() -> str:
    """A guest with a kernel of its own: root makes it, from Debian packages."""
    return _root() or _runs("apt-cache", "show", "linux-image-cloud-amd64", *LAB_PACKAGES)


PROBES = {
    "fuse": _fuse, "nbd": _nbd, "qemu": _qemu, "root": _root, "loop": _loop,
    "fio": _fio, "s3": _s3, "ceph": _ceph, "lab": _lab, "samba": _samba, "images": _images,
    "microvm": _microvm,
}  # fmt: skip


@cache
def why_missing(part: str) -> str:
    """Return why `part` does not work on this machine, or the empty text."""
    return PROBES[part]()


def missing_parts(parts: Iterable[str]) -> dict[str, str]:
    """Return the parts of `parts` that do not work here, each with the reason."""
    return {part: why for part in parts if (why := why_missing(part))}


def scratch_parent(*, xattrs: bool = False) -> str | None:
    """Where scratch datastores go: RAM where there is room, else (None) the usual place.

    `xattrs`: there are to be user's ones, which Linux has in RAM since 6.6.
    """
    ram = "/dev/shm"
    roomy = os.access(ram, os.W_OK) and shutil.disk_usage(ram).free > 2 << 30
    return ram if roomy and (not xattrs or _has_xattrs(ram)) else None


def _has_xattrs(folder: str) -> bool:
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            os.setxattr(file.fileno(), "user.probe", b"")
        except OSError:
            return False
    return True
