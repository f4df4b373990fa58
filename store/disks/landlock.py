"""Landlock: a process gives up files for good, and so does all that it starts.

Source: linux include/uapi/linux/landlock.h, Documentation/userspace-api/landlock.rst.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # on every architecture
_CREATE_RULESET_VERSION, _RULE_PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
# All that each version can refuse: the first reading, writing, making, removing; then moving; then
# truncating.
_REFUSABLE = (0, (1 << 13) - 1, (1 << 14) - 1, (1 << 15) - 1)


def version() -> int:
    """Of Landlock in this kernel, 0 when there is none."""
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, int(libc.syscall(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)))


def restrict(readable: Iterable[str], writable: Iterable[int | str]) -> None:
    """Nothing else may be opened from now on: what is open stays so.

    Args:
        readable: files that may be read and executed, and directories below which all may; those
            that exist.
        writable: files that may be read and written: paths, or descriptors of what has none.

    Raises OSError: this kernel has no Landlock, or refuses.
    """
    handled = _REFUSABLE[min(version(), len(_REFUSABLE) - 1)]
    ruleset = _call(_CREATE_RULESET, struct.pack("<Q", handled), 8, 0)
    try:
        for path in readable:
            _allow_path(ruleset, path, _READ & handled)
        for file in writable:
            rights = _OF_FILES & handled
            if isinstance(file, int):
                _allow(ruleset, file, rights)
            else:
                _allow_path(ruleset, file, rights)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow_path(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _allow(ruleset, descriptor, rights)
    finally:
        os.close(descriptor)


def _allow(ruleset: int, descriptor: int, rights: int) -> None:
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        rights &= _OF_FILES
    rule = struct.pack("<Qi", rights, descriptor)
    _call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)


def _call(number: int, *arguments: int | bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    words = [word if isinstance(word, bytes) else ctypes.c_ulong(word) for word in arguments]
    result = int(libc.syscall(number, *words))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {os.strerror(code)}")
    return result
