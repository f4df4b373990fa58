"""Runs other people's programs on what a guest wrote: e2fsck, ntfsrecover, QEMU.

    Popen(confined(...)) → python -m store.disks.confined → the program, in the same process

Before it starts there are no rights of root, no network, no other processes to be stopped or
started, no file to be written but the one it is for, and none to be read but programs, libraries
and settings. Where the kernel has no Landlock (before 5.13) its files are those of the user it runs
as; where the processor is not in the table of system calls the limits hold and no more.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from store.disks import landlock
from store.disks.parsers.sandbox import PACKAGES, deny_system_calls, drop_root, set_no_new_privs

_PR_SET_PDEATHSIG = 1
# Where programs, their libraries and their settings are, on some systems or others. Of /etc no more
# than that: keys may be there.
_PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt", "/nix", "/gnu")
_SETTINGS = (
    "/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/e2fsck.conf", "/etc/mke2fs.conf",
    "/etc/blkid.conf", "/etc/localtime", "/etc/ssl/openssl.cnf", "/etc/pki/tls/openssl.cnf",
    "/etc/gnutls", "/etc/crypto-policies", "/etc/selinux/config",
)  # fmt: skip
_READABLE = (*_PROGRAMS, *_SETTINGS, "/proc", "/sys/devices/system", "/dev/urandom")
_WRITABLE = ("/dev/null",)


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a program may have.

    writable: descriptors that it inherits, or paths, of files that it may open to write.
    memory: bytes of address space; 0: any.
    cpu_s: seconds of processor time; 0: any.
    groups: which root's programs keep, being nobody.
    has_threads: whether it may start some.
    ends_with_parent: with the thread that starts it.
    """

    writable: tuple[int | str, ...] = ()
    memory: int = 0
    cpu_s: int = 0
    groups: tuple[int, ...] = ()
    has_threads: bool = False
    ends_with_parent: bool = False


def confined(command: list[str], confinement: Confinement) -> list[str]:
    """The command line that runs `command`, whose first word is a path, so.

    Its environment has to have `environment()`.
    """
    # -P: else Python looks for modules in the directory we happen to be in, anybody's perhaps.
    launcher = [sys.executable, "-P", "-s", "-m", "store.disks.confined"]
    return [*launcher, json.dumps(asdict(confinement)), *command]


def environment() -> dict[str, str]:
    """What the launcher needs, and takes out again."""
    return {"PYTHONPATH": str(PACKAGES)}


def main(arguments: list[str]) -> None:
    """Give up all but what is granted, and become the program."""
    wanted, program = Confinement(**json.loads(arguments[0])), arguments[1:]
    parent = os.getppid()
    os.environ.pop("PYTHONPATH", None)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.chdir("/")
    for limit, value in (
        (resource.RLIMIT_AS, wanted.memory or resource.RLIM_INFINITY),
        (resource.RLIMIT_CPU, wanted.cpu_s or resource.RLIM_INFINITY),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    drop_root(wanted.groups)
    if wanted.ends_with_parent:
        _end_with(parent)
    set_no_new_privs()
    if landlock.version():
        own = str(Path(program[0]).resolve())
        landlock.restrict((*_READABLE, own), (*_WRITABLE, *wanted.writable))
    deny_system_calls(has_threads=wanted.has_threads)
    os.execv(program[0], program)  # noqa: S606 - no shell is wanted


def _end_with(parent: int) -> None:
    """Be killed with it. After the user was changed: that takes the setting back."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.exit(f"cannot be confined: {error}")
