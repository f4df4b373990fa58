"""Locks that reach other hosts: record locks on files of their own, which NFS carries.

The object `host/web01` is locked by the file `.vaultway/locks/host%2Fweb01`. Whoever holds it
exclusively writes `<pid> <host> <token>` into it, for the others to read and for itself to know it
again. When its object is gone, the last holder writes `removed` and unlinks it: who had it open
reads that when it gets the lock, whatever its host has cached, and opens the new one. So a lock
file that is unlinked while somebody waits for it locks nobody in or out.
"""

import errno
import fcntl
import logging
import os
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from urllib.parse import quote

from store.backends.local.locks import (
    MAX_CONTENT,
    HeldLocks,
    HeldRecordLock,
    make_lock_file,
    set_record_lock,
)
from store.backends.local.reading import open_existing
from store.errors import Locked

log = logging.getLogger(__name__)

LOCKS = ".vaultway/locks"
MODE = 0o644
MAX_NAME = 255
REMOVED = b"removed\n"
HOLDER = re.compile(rb"(\d+) (\S+) [0-9a-f]+\n")
POLL_S = 0.1  # each look is a request to the server
ATTEMPTS = 10
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


class HeldLockFile(HeldRecordLock):
    """A locked lock file."""

    def __init__(self, descriptor: int, kind: int, path: str, is_there: Callable[[], bool]) -> None:
        """`is_there`: whether the object it stands for still is."""
        super().__init__(descriptor, kind, path)
        self._is_there = is_there
        self._status = os.fstat(descriptor)

    @property
    def written_ns(self) -> int:
        """When it was written last, by the clock of the file server: nanoseconds since 1970."""
        return os.fstat(self._descriptor).st_mtime_ns

    def _is_ours(self) -> bool:
        """Somebody may have removed the file, and the next one locks another of that name."""
        return super()._is_ours() and os.path.samestat(self._status, os.lstat(self._path))

    def release(self) -> None:
        if self._descriptor >= 0 and self._kind == fcntl.F_WRLCK:
            with suppress(OSError, Locked):  # lost: then it is not ours to write
                self.check()
                self._leave()
        super().release()

    def _leave(self) -> None:
        os.ftruncate(self._descriptor, 0)
        if not self._is_there():
            _write(self._descriptor, REMOVED)
            os.unlink(self._path)


class LockFiles:
    """The lock files of one datastore. Thread-safe."""

    def __init__(self, root: str, owner: tuple[int, int] | None) -> None:
        """`root`: the datastore's directory; `owner`: who new files are given to, None for us."""
        self._root, self._owner = root, owner

    @property
    def are_used(self) -> bool:
        """Whether some host ever needed them."""
        return os.path.isdir(f"{self._root}/{LOCKS}")

    def lock(self, name: str, *, exclusive: bool, deadline: float) -> HeldLocks | HeldLockFile:
        """Lock the object `name`, there or not.

        A reader who may not write here gets no lock at all, and reads without.

        Raises Locked after `deadline` (time.monotonic), naming the holder; OSError.
        """
        try:
            return self._lock(name, exclusive=exclusive, deadline=deadline)
        except OSError as error:
            if exclusive or error.errno not in READ_ONLY:
                raise
            log.info("%s/%s is read without a lock: %s", self._root, name, error.strerror)
            return HeldLocks()

    def _lock(self, name: str, *, exclusive: bool, deadline: float) -> HeldLockFile:
        kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
        path = self._path(name)
        for _ in range(ATTEMPTS):
            descriptor = self._open(path, exclusive=exclusive)
            try:
                self._wait(descriptor, kind, name, deadline)
                if os.pread(descriptor, len(REMOVED), 0) == REMOVED:
                    self._finish_removal(descriptor, path)
                else:
                    held = self._take(descriptor, kind, name)
                    descriptor = -1
                    return held
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
        raise Locked(f"{self._root}/{name}: its lock file is being removed again and again")

    def _path(self, name: str) -> str:
        escaped = quote(name, safe="")
        if len(escaped) > MAX_NAME:
            escaped = sha256(name.encode()).hexdigest()
        return f"{self._root}/{LOCKS}/{escaped}"

    def _open(self, path: str, *, exclusive: bool) -> int:
        """A descriptor of a lock file, made if need be. Raises OSError."""
        for _ in range(ATTEMPTS):
            try:
                return _open(path, exclusive=exclusive)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ESTALE):
                    raise
            make_lock_file(path, self._owner, MODE)
        return _open(path, exclusive=exclusive)

    def _finish_removal(self, descriptor: int, path: str) -> None:
        """Unlink the lock file that we hold if who removed it died before doing so.

        Making it exclusively asks the server what is there, whatever this host has cached.
        """
        with suppress(OSError):
            make_lock_file(path, self._owner, MODE)
            is_still_there = os.path.samestat(os.fstat(descriptor), os.stat(path))
            if is_still_there and set_record_lock(descriptor, fcntl.F_WRLCK):
                os.unlink(path)

    def _wait(self, descriptor: int, kind: int, name: str, deadline: float) -> None:
        while not set_record_lock(descriptor, kind):
            if time.monotonic() >= deadline:
                raise Locked(f"{self._root}/{name} is in use{_holder(descriptor)}")
            time.sleep(POLL_S)

    def _take(self, descriptor: int, kind: int, name: str) -> HeldLockFile:
        """Say who holds it now; a shared holder takes away the name of one that died."""
        if kind == fcntl.F_WRLCK:
            who = f"{os.getpid()} {os.uname().nodename} {secrets.token_hex(8)}\n"
            _write(descriptor, who.encode())
        elif os.fstat(descriptor).st_size:
            with suppress(OSError):  # opened to read alone
                os.ftruncate(descriptor, 0)
        path = f"{self._root}/{name}"
        return HeldLockFile(descriptor, kind, self._path(name), lambda: os.path.lexists(path))


def _open(path: str, *, exclusive: bool) -> int:
    try:
        return open_existing(path, os.O_RDWR)
    except OSError as error:
        if exclusive or error.errno not in READ_ONLY:
            raise
        return open_existing(path)


def _write(descriptor: int, content: bytes) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)
    os.fsync(descriptor)


def _holder(descriptor: int) -> str:
    with suppress(OSError):
        found = HOLDER.fullmatch(os.pread(descriptor, MAX_CONTENT, 0))
        if found:
            return f" by process {int(found[1])} on {found[2].decode(errors='replace')}"
    return ""
