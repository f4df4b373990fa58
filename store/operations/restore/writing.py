"""Writing bytes.

Whole buffers to descriptors, zeros as holes, and files that appear only when they are complete.
"""

import ctypes
import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from store.format.buffer import Buffer
from store.operations.restore.problems import target_error

HOLE_SIZE = 64 << 10
"""The least run of zeros that becomes a hole. Smaller ones cost more to find than they save."""

AT_FDCWD = -100
RENAME_NOREPLACE = 1

_ZEROS = bytes(HOLE_SIZE)


def write_all(file: int, data: Buffer) -> None:
    """Write all of `data`. Raises OSError."""
    written = os.write(file, data)
    while written < len(data):
        data = memoryview(data)[written:]
        written = os.write(file, data)


def write_sparse(file: int, pieces: Iterable[memoryview]) -> int:
    """Write a new file's content from its start, leaving holes for zeros; returns its size.

    Raises OSError.
    """
    size, in_hole = 0, False
    for piece in pieces:
        size += len(piece)
        if len(piece) < HOLE_SIZE:
            write_all(file, piece)
            in_hole = False
            continue
        for start, end, is_zero in _runs(piece):
            in_hole = is_zero
            if is_zero:
                os.lseek(file, end - start, os.SEEK_CUR)
            else:
                write_all(file, piece[start:end])
    if in_hole:
        os.ftruncate(file, size)
    return size


def _runs(piece: memoryview) -> Iterator[tuple[int, int, bool]]:
    """Split a piece into runs (start, end, is zero) of blocks of HOLE_SIZE.

    The last block may be shorter.
    """
    start, zero = 0, _is_zero(piece, 0)
    for block in range(HOLE_SIZE, len(piece), HOLE_SIZE):
        if _is_zero(piece, block) != zero:
            yield start, block, zero
            start, zero = block, not zero
    yield start, len(piece), zero


def _is_zero(piece: memoryview, start: int) -> bool:
    """Whether the block is nothing but zeros.

    Three probes reject nearly all others without a copy.
    """
    end = min(start + HOLE_SIZE, len(piece))
    if piece[start] or piece[(start + end) // 2] or piece[end - 1]:
        return False
    return bytes(piece[start:end]) == _ZEROS[: end - start]


@contextmanager
def new_file(path: Path, *, overwrite: bool) -> Iterator[int]:
    """Open a file that gets its name `path` when the block ends well, and else disappears.

    Raises:
        AlreadyExists: `path` is there and `overwrite` is not asked.
        SourceError, OutOfSpace: the target's side failed.
    """
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        if not overwrite and path.exists():
            raise FileExistsError(17, "exists already")
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise target_error(error, str(path)) from error
    try:
        try:
            yield file
            os.fchmod(file, 0o666 & ~_umask())
        finally:
            os.close(file)
        _publish(temporary, path, overwrite=overwrite)
    except OSError as error:
        raise target_error(error, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _publish(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Give the file its name; without `overwrite` never in the place of one that came meanwhile."""
    if overwrite:
        temporary.rename(path)
        return
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        _rename_exclusively(temporary, path)


def _rename_exclusively(old: Path, new: Path) -> None:
    """Rename, but not in the place of another. Raises FileExistsError, OSError.

    Where the file system can't (NFS), the name is made first: what is there then is ours.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(old), AT_FDCWD, os.fsencode(new)
    if libc.renameat2(AT_FDCWD, *names, RENAME_NOREPLACE) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        raise OSError(code, os.strerror(code), str(new))
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    old.rename(new)


def _umask() -> int:
    """The process's umask. It cannot be read without setting it, except here (Linux >= 4.7)."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return next(
        (int(line[6:], 8) for line in status.splitlines() if line.startswith("Umask:")), 0o22
    )
