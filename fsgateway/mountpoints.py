"""Where mounts are: is this place free, is that mount ours, take it away again."""

import errno
import os
import select
import stat
import subprocess
from pathlib import Path

from fsgateway.names import PID_XATTR
from fsgateway.options import MountOptions
from store.errors import (
    BackendError,
    InvalidName,
    Locked,
    NotFound,
    PermissionDenied,
)

FUSE_DEVICE = Path("/dev/fuse")
FUSE_CONF = Path("/etc/fuse.conf")
FILE_SYSTEM_TYPE = "fuse.vaultway"
GOODBYE_S = 60.0


def check_mountpoint(mountpoint: Path) -> Path:
    """Return the absolute mount point, if something can be mounted there.

    Raises:
        NotFound: it does not exist.   InvalidName: no directory.   PermissionDenied: it cannot be
            looked at.
        Locked: a datastore is mounted there already, or one that died.
    """
    path = resolved(mountpoint)
    try:
        info = path.stat()
    except FileNotFoundError as error:
        raise NotFound(f"mount point {path} does not exist") from error
    except PermissionError as error:
        raise PermissionDenied(f"mount point {path}: {error.strerror}") from error
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            advice = f"run vaultway umount {path}"
            raise Locked(f"mount point {path} has a mount whose process died: {advice}") from error
        raise BackendError(f"mount point {path}: {error.strerror}") from error
    if not stat.S_ISDIR(info.st_mode):
        raise InvalidName(f"mount point {path} is not a directory")
    if mounted_type(path) == FILE_SYSTEM_TYPE:
        raise Locked(f"mount point {path}: a datastore is mounted there already")
    return path


def check_empty(mountpoint: Path) -> None:
    """Raise InvalidName if the mount would hide something. libfuse would, and not say a word."""
    try:
        with os.scandir(mountpoint) as entries:
            is_empty = next(entries, None) is None
    except OSError:
        return  # what cannot be listed is not missed
    if not is_empty:
        raise InvalidName(
            f"mount point {mountpoint} is not empty: what is in it would be hidden; "
            "to mount all the same add -o nonempty"
        )


def check_fuse(options: MountOptions) -> None:
    """Raise BackendError or PermissionDenied if this machine or user cannot mount."""
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR))
    except FileNotFoundError as error:
        advice = "load the kernel's module (modprobe fuse), in a container pass the device in"
        raise BackendError(f"{FUSE_DEVICE} is missing: {advice}") from error
    except PermissionError as error:
        raise PermissionDenied(f"{FUSE_DEVICE}: {error.strerror}") from error
    except OSError as error:
        raise BackendError(f"{FUSE_DEVICE}: {error.strerror}") from error
    if options.allow_other and os.geteuid() != 0 and not _users_may_allow_other():
        raise PermissionDenied(
            f"mount option allow_other: for root only, unless {FUSE_CONF} has user_allow_other"
        )


def _users_may_allow_other() -> bool:
    try:
        lines = FUSE_CONF.read_text().splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def resolved(mountpoint: Path) -> Path:
    """Return the path as the kernel lists it; it may end in a dead mount."""
    return Path(os.path.realpath(mountpoint))


def mounted_type(path: Path) -> str | None:
    """Return the type of what is mounted at a resolved path; None if nothing is."""
    found = None
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        if _unescaped(before.split(b" ")[4]) == os.fsencode(path):
            found = os.fsdecode(after.split(b" ")[0])
    return found


def _unescaped(field: bytes) -> bytes:
    for character in (b" ", b"\t", b"\n", b"\\"):
        field = field.replace(b"\\%03o" % character[0], character)
    return field


def unmount(mountpoint: Path, *, lazy: bool = False, wait_s: float = GOODBYE_S) -> None:
    """Unmount a datastore and wait until its process has ended.

    Args:
        mountpoint: where it is.
        lazy: detach it at once; open files stay readable, and nobody waits for them.
        wait_s: how long the process may take to end.

    Raises:
        NotFound: nothing is mounted there.   InvalidName: something else is.   Locked: it is in
            use.
        PermissionDenied, BackendError: the unmount failed for another reason, or the process does
            not end.
    """
    path = resolved(mountpoint)
    kind = mounted_type(path)
    if kind is None:
        raise NotFound(f"nothing is mounted at {path}")
    if kind != FILE_SYSTEM_TYPE:
        raise InvalidName(f"{path} is no datastore's mount but one of type {kind}")
    process = _open_process(path)
    try:
        _run_umount(path, lazy=lazy)
        if process is not None and not lazy and not select.select([process], [], [], wait_s)[0]:
            raise BackendError(f"{path} is unmounted, but its process has not ended yet")
    finally:
        if process is not None:
            os.close(process)


def _open_process(path: Path) -> int | None:
    """A pidfd of the process behind a mount; None if it is gone, or the mount does not answer."""
    try:
        return os.pidfd_open(int(os.getxattr(path, PID_XATTR)))
    except (OSError, ValueError):
        return None


def _run_umount(path: Path, *, lazy: bool) -> None:
    if os.geteuid() == 0:
        # Internal: umount(8) would call our helper, and that us.
        command = ["umount", "--internal-only", *(["--lazy"] if lazy else []), str(path)]
    else:
        command = ["fusermount3", "-u", *(["-z"] if lazy else []), str(path)]
    try:
        done = subprocess.run(
            command, capture_output=True, check=False, env={**os.environ, "LC_ALL": "C"}
        )
    except FileNotFoundError as error:
        raise BackendError(f"{command[0]} is not installed") from error
    if done.returncode == 0:
        return
    reason = done.stderr.decode(errors="replace").strip().replace("\n", "; ")
    if "busy" in reason:
        raise Locked(f"{path} is in use: close what is open in it (fuser -vm {path} lists it)")
    if "not permitted" in reason or "superuser" in reason:
        raise PermissionDenied(f"{path}: {reason}")
    raise BackendError(f"{path}: {reason}")
