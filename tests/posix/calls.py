"""System calls by path or descriptor, and what came of them: a value, or the error's name."""

import ctypes
import errno
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 1, 2, 8, 16, 32
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
AT_SYMLINK_NOFOLLOW = 0x100


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def outcome(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What `call` returns, or the name of its errno."""
    try:
        return call(*arguments, **named)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def renameat2(old: bytes, new: bytes, flags: int) -> None:
    """rename() with flags."""
    _checked(_LIBC.renameat2(AT_FDCWD, old, AT_FDCWD, new, flags))


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """Of any kind."""
    _checked(_LIBC.fallocate(descriptor, mode, ctypes.c_long(offset), ctypes.c_long(length)))


def utimensat(path: bytes, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    """Times as (seconds, nanoseconds); UTIME_NOW and UTIME_OMIT are nanoseconds."""
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    _checked(_LIBC.utimensat(AT_FDCWD, path, times, flags))


def open_and_close(path: bytes, flags: int, mode: int = 0o666) -> str:
    """Open, never waiting for a fifo's other end."""
    os.close(os.open(path, flags | os.O_NONBLOCK, mode))
    return "opened"


def through(path: bytes, flags: int, call: Callable[[int], Any]) -> Any:
    """`call` with a descriptor of `path`."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    try:
        return call(descriptor)
    finally:
        with suppress(OSError):
            os.close(descriptor)
