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
from pathlib import Path
from typing import NamedTuple

# Where our own packages are, for children to find them.
PACKAGES = Path(__file__).resolve().parents[3]
NOBODY = 65534
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_SECCOMP_SET_MODE_FILTER, _ALL_THREADS = 1, 1
_ALLOW, _KILL, _ERRNO_EPERM = 0x7FFF0000, 0x80000000, 0x00050001
_LOAD, _JUMP_EQUAL, _JUMP_NOT_BELOW, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4
# From here on x86-64 has its calls a second time, for 32-bit pointers.
_X32 = 0x40000000


class _SystemCalls(NamedTuple):
    """Of one architecture.

    architecture: what the kernel calls it.
    harmless: all that a parser may call.
    harmful: what reaches other processes, the network or the kernel's insides.
    starting: what starts or wakes threads and processes.
    seccomp: itself.
    """

    architecture: int
    harmless: tuple[int, ...]
    harmful: tuple[int, ...]
    starting: tuple[int, ...]
    seccomp: int


# By machine, the numbers of
#   read write close fstat lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn
#   mremap madvise sendto recvfrom sendmsg recvmsg exit exit_group futex clock_gettime gettimeofday
#   getrandom getpid gettid setitimer sigaltstack restart_syscall sched_yield sched_getaffinity;
#   socket socketpair bind listen accept connect accept4 kill tkill ptrace mount umount2 swapon
#   init_module finit_module add_key request_key keyctl unshare setns perf_event_open
#   process_vm_readv process_vm_writev kcmp bpf userfaultfd io_uring_setup pidfd_open
#   pidfd_send_signal pidfd_getfd;
#   clone clone3 tgkill, and fork and vfork where there are such.
_SYSTEM_CALLS = {
    "x86_64": _SystemCalls(
        0xC000003E,
        (0, 1, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15, 25, 28, 44, 45, 46, 47, 60, 231, 202, 228, 96,
         318, 39, 186, 38, 131, 219, 24, 204),
        (41, 53, 49, 50, 43, 42, 288, 62, 200, 101, 165, 166, 167, 175, 313, 248, 249, 250, 272,
         308, 298, 310, 311, 312, 321, 323, 425, 434, 424, 438),
        (56, 435, 234, 57, 58),
        317,
    ),
    "aarch64": _SystemCalls(
        0xC00000B7,
        (63, 64, 57, 80, 62, 222, 226, 215, 214, 134, 135, 139, 216, 233, 206, 207, 211, 212, 93,
         94, 98, 113, 169, 278, 172, 178, 103, 132, 128, 124, 123),
        (198, 199, 200, 201, 202, 203, 242, 129, 130, 117, 40, 39, 224, 105, 273, 217, 218, 219,
         97, 268, 241, 270, 271, 272, 280, 282, 425, 434, 424, 438),
        (220, 435, 131),
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
    drop_root()
    set_no_new_privs()
    _prctl(_PR_SET_DUMPABLE, 0)
    filter_system_calls()


def drop_root(groups: tuple[int, ...] = ()) -> None:
    """Be nobody from now on, if we are root; in these groups."""
    if os.geteuid() == 0:
        os.setgroups(groups)
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def set_no_new_privs() -> None:
    """No program gives us rights that we have not."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def filter_system_calls() -> None:
    """Refuse (EPERM) all system calls but those in the table; on other machines, nothing."""
    if (calls := _known()) is not None:
        _install(calls, calls.harmless, _ALLOW, _ERRNO_EPERM)


def deny_system_calls(*, has_threads: bool) -> None:
    """Refuse (EPERM) those that reach other processes, the network or the kernel's insides.

    A new process or thread, too, unless `has_threads`. On other machines, nothing.
    """
    if (calls := _known()) is not None:
        refused = calls.harmful if has_threads else (*calls.harmful, *calls.starting)
        _install(calls, refused, _ERRNO_EPERM, _ALLOW)


def _known() -> _SystemCalls | None:
    return _SYSTEM_CALLS.get(platform.machine()) if sys.byteorder == "little" else None


def _install(calls: _SystemCalls, numbers: tuple[int, ...], those: int, others: int) -> None:
    program = bpf(calls.architecture, numbers, those, others)
    buffer = ctypes.create_string_buffer(program, len(program))
    described = _Program(len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_ulong(ctypes.addressof(described))
    if libc.syscall(calls.seccomp, _SECCOMP_SET_MODE_FILTER, _ALL_THREADS, address):
        code = ctypes.get_errno()
        raise OSError(code, f"seccomp: {os.strerror(code)}")


def bpf(architecture: int, numbers: tuple[int, ...], those: int, others: int) -> bytes:
    """The filter: kill on another architecture's calls, do `those` for `numbers`, else `others`."""
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_JUMP_NOT_BELOW, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
    ]
    for left, number in zip(range(len(numbers), 0, -1), numbers, strict=True):
        steps.append((_JUMP_EQUAL, left, 0, number))
    steps += [(_RETURN, 0, 0, others), (_RETURN, 0, 0, those)]
    return b"".join(struct.pack("<HBBI", *step) for step in steps)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero):
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")
