"""What the child gives up before it looks at a single byte of an image.

No root, no new files, processes, sockets or programs, so much memory, and, with a seccomp filter,
no system call but a few harmless ones. It cannot ask for PR_SET_PDEATHSIG: that signal comes when
the *thread* ends that started it, and the mount's threads come and go. It ends instead when its
socket does, and by its own timer when it is in a loop then.
"""

import ctypes
import os
import platform
import resource
import struct
import sys

NOBODY = 65534
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_SECCOMP_SET_MODE_FILTER, _ALL_THREADS = 1, 1
_ALLOW, _KILL, _ERRNO_EPERM = 0x7FFF0000, 0x80000000, 0x00050001
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4
# By machine: what the kernel calls it, and the numbers of
#   read write close fstat lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn
#   mremap madvise sendto recvfrom sendmsg recvmsg exit exit_group futex clock_gettime gettimeofday
#   getrandom getpid gettid setitimer sigaltstack restart_syscall sched_yield sched_getaffinity
# and of seccomp itself.
_SYSTEM_CALLS = {
    "x86_64": (
        0xC000003E,
        (0, 1, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15, 25, 28, 44, 45, 46, 47, 60, 231, 202, 228, 96,
         318, 39, 186, 38, 131, 219, 24, 204),
        317,
    ),
    "aarch64": (
        0xC00000B7,
        (63, 64, 57, 80, 62, 222, 226, 215, 214, 134, 135, 139, 216, 233, 206, 207, 211, 212, 93,
         94, 98, 113, 169, 278, 172, 178, 103, 132, 128, 124, 123),
        277,
    ),
}  # fmt: skip


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def enter(memory: int) -> None:
    """Give everything up, for good; all modules have to be imported already.

    Raises OSError when something cannot be given up: then nothing must be parsed.
    """
    os.chdir("/")
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(limit, (value, value))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)
    filter_system_calls()


def filter_system_calls() -> None:
    """Refuse (EPERM) all system calls but those in the table; on other machines, nothing."""
    known = _SYSTEM_CALLS.get(platform.machine())
    if known is None or sys.byteorder != "little":
        return
    architecture, allowed, seccomp = known
    program = bpf(architecture, allowed)
    buffer = ctypes.create_string_buffer(program, len(program))
    described = _Program(len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_ulong(ctypes.addressof(described))
    if libc.syscall(seccomp, _SECCOMP_SET_MODE_FILTER, _ALL_THREADS, address):
        code = ctypes.get_errno()
        raise OSError(code, f"seccomp: {os.strerror(code)}")


def bpf(architecture: int, allowed: tuple[int, ...]) -> bytes:
    """The filter: kill on another architecture's calls, allow those, refuse the rest."""
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    for left, number in zip(range(len(allowed), 0, -1), allowed, strict=True):
        steps.append((_JUMP_EQUAL, left, 0, number))
    steps += [(_RETURN, 0, 0, _ERRNO_EPERM), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("<HBBI", *step) for step in steps)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero):
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")
