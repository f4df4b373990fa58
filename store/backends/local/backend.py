"""A datastore in a directory: local disk, any POSIX file system. NFS adds to it in `nfs`."""

import errno
import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from mmap import PROT_READ, mmap
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import TypeVar

from store.backends.base import (
    Listed,
    Lock,
    ObjectStat,
    OneCopy,
    Space,
    Walked,
    storage_error,
)
from store.backends.chunks import max_read
from store.backends.local.create import CHUNKS, LOCK, create_layout
from store.backends.local.directories import list_directory, remove_directory, remove_tree
from store.backends.local.lock_files import LockFiles
from store.backends.local.locks import (
    HeldLocks,
    HeldRecordLock,
    lock_file,
    lock_path,
    lock_record,
)
from store.backends.local.reading import (
    open_regular,
    read_file,
    read_file_into,
    read_part,
    read_rest,
)
from store.backends.local.writing import (
    FileWriter,
    LocalTemporaryFile,
    identity_of,
    move,
    sync_directory,
)
from store.errors import Locked, NotFound, StoreError
from store.format.buffer import Buffer
from store.progress import SILENT, Progress

T = TypeVar("T")

DIRECTORY_MODE = 0o755
CHUNK_DIRECTORY_MODE = 0o750
CHUNK_NAME_SIZE = len(".chunks/0000/") + 64
MAP_FROM = 1 << 20  # below, reading costs less than a map


@dataclass(frozen=True, slots=True)
class _Subdirectory:
    """A directory that was listed; a look at the disk says whether it holds the mark."""

    name: str
    mark: str
    backend: "LocalBackend"

    @property
    def is_marked(self) -> bool:
        return self.backend.stat(self.mark) is not None


class LocalBackend(OneCopy):
    """A Backend on a directory. See store.backends.base for what each method promises.

    New files and directories made as root belong to the owner of the datastore's directory. The
    directory may be exported over NFS: where other hosts left lock files, they are locked too.
    """

    def __init__(self, path: str, *, pbs_lock_directory: str | None = None) -> None:
        """Open the directory `path`; while it is no datastore only `create` may be called.

        Args:
            path: the datastore's directory.
            pbs_lock_directory: where a PBS on this host keeps its locks for it
                (`/run/proxmox-backup/locks/<name>`); None when none does.
        Raises:
            StoreError: the directory exists and cannot be opened.
        """
        self._root = str(Path(path).absolute())
        self._pbs_lock_directory = pbs_lock_directory
        self._descriptor = -1
        self._store_locks: list[HeldRecordLock] = []
        self._open_root()

    def _open_root(self) -> None:
        """Keep one descriptor: its `syncfs` also reports write errors of files closed before."""
        try:
            descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._own(None)
            return
        except OSError as error:
            raise self._error(error, self._root) from error
        self._descriptor = descriptor
        self._finalizer = weakref.finalize(self, os.close, descriptor)
        status = os.fstat(descriptor)
        owner = (status.st_uid, status.st_gid)
        self._own(owner if os.geteuid() == 0 and owner != (0, 0) else None)

    def _own(self, owner: tuple[int, int] | None) -> None:
        """Make files for `owner` from now on; None leaves them as they come."""
        self._files = FileWriter(owner, self._error)
        self._lock_files = LockFiles(self._root, owner)

    @property
    def location(self) -> str:
        return self._root

    @property
    def parallelism(self) -> int:
        return len(os.sched_getaffinity(0))

    @property
    def is_object_store(self) -> bool:
        return False

    def __repr__(self) -> str:
        return f"LocalBackend({self._root!r})"

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _error(self, error: OSError, path: str) -> StoreError:
        """What an error of the file system means."""
        return storage_error(error, path)

    @contextmanager
    def _naming(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._error(error, path) from error

    def _do(self, name: str, action: Callable[[str], T], *, must_be_sure: bool = True) -> T:
        """What `action` gives for the path of `name`; its errors as StoreError.

        ESTALE comes over NFS, for a file that another host removed or replaced while we had it
        open: the new one is as good, so it is tried once more.

        Args:
            name: an object or directory.
            action: may be done twice.
            must_be_sure: NotFound has to be the truth of this moment, not of a cache.
        """
        path, attempt = self._path(name), 0
        while True:
            attempt += 1
            try:
                return action(path)
            except OSError as error:
                if not self._may_change(error, path, attempt, must_be_sure=must_be_sure):
                    raise self._error(error, path) from error

    def _may_change(self, error: OSError, path: str, attempt: int, *, must_be_sure: bool) -> bool:
        """Whether `_do` should try again after attempt number `attempt`."""
        return error.errno == errno.ESTALE and attempt == 1

    def create(self, progress: Progress = SILENT) -> None:
        create_layout(self._root, self._lock_creation, progress)
        if self._descriptor < 0:
            self._open_root()

    def _lock_creation(self) -> Lock:
        return lock_path(self._root, exclusive=True, deadline=0)

    def status(self) -> Space:
        status = self._do("", os.statvfs)
        block = status.f_frsize
        return Space(
            status.f_blocks * block,
            (status.f_blocks - status.f_bfree) * block,
            status.f_bavail * block,
        )

    def read(self, name: str) -> bytes:
        limit = max_read(name)
        return self._do(name, lambda path: read_file(path, limit))

    def read_into(self, name: str, room: memoryview) -> Buffer:
        limit = max_read(name)
        return self._do(name, lambda path: read_file_into(path, room, limit))

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        return self._do(name, lambda path: read_part(path, offset, size))

    def map(self, name: str) -> Buffer:
        return self._do(name, self._map)

    def _map(self, path: str) -> Buffer:
        with open_regular(path) as (descriptor, size):
            if size < MAP_FROM:
                return read_rest(descriptor, b"", size, path)
            return mmap(descriptor, size, prot=PROT_READ)

    def write(
        self, name: str, parts: Sequence[Buffer], *, exclusive: bool = False, durable: bool = False
    ) -> None:
        self._do(
            name,
            lambda path: self._files.replace(path, parts, exclusive=exclusive, durable=durable),
            must_be_sure=not is_chunk(name),
        )

    def create_temporary(self, name: str, temporary: str, size: int = 0) -> LocalTemporaryFile:
        return LocalTemporaryFile(self._files, self._path(name), self._path(temporary), size)

    def stat(self, name: str) -> ObjectStat | None:
        try:
            status = self._do(name, os.lstat, must_be_sure=not is_chunk(name))
        except NotFound:
            return None
        mode = status.st_mode
        return ObjectStat(
            status.st_size, status.st_mtime_ns, status.st_atime_ns, S_ISDIR(mode), S_ISREG(mode)
        )

    def touch(self, name: str) -> int | None:
        try:
            return self._do(name, self._touch, must_be_sure=not is_chunk(name))
        except NotFound:
            return None

    def _touch(self, path: str) -> int:
        status = os.lstat(path)
        os.utime(path, ns=(time.time_ns(), status.st_mtime_ns), follow_symlinks=False)
        return status.st_size

    def rename(self, old: str, new: str) -> None:
        target = self._path(new)
        self._do(old, lambda path: move(path, target, identity_of(os.lstat(path))))

    def delete(self, name: str) -> None:
        self._do(name, os.unlink)

    def scan(self, name: str) -> list[Listed]:
        try:
            return self._do(name, list_directory)
        except NotFound:
            return []

    def subdirectories(self, name: str, mark: str) -> list[_Subdirectory]:
        return [
            _Subdirectory(entry.name, f"{name}/{entry.name}/{mark}", self)
            for entry in self.scan(name)
            if entry.is_directory
        ]

    def walk(self, name: str, after: str = "") -> Iterator[Walked]:
        first, _, below = after.partition("/")
        for entry in sorted(self.scan(name)):
            path = f"{name}/{entry.name}" if name else entry.name
            if entry.name < first or os.path.islink(self._path(path)):
                continue
            if entry.is_directory:
                for found in self.walk(path, below if entry.name == first else ""):
                    yield Walked(f"{entry.name}/{found.name}", found.size)
            elif entry.name != after and (status := self.stat(path)) is not None:
                yield Walked(entry.name, status.size)

    def mkdir(self, name: str, *, durable: bool = False) -> bool:
        path = self._path(name)
        with self._naming(path):
            try:
                os.mkdir(path)
            except FileExistsError:
                return False
            except FileNotFoundError:
                parent = name.rpartition("/")[0]
                if not parent:
                    raise
                self.mkdir(parent, durable=durable)
                return self.mkdir(name, durable=durable)
            os.chmod(path, CHUNK_DIRECTORY_MODE if name.startswith(".chunks") else DIRECTORY_MODE)
            if self._files.owner is not None:
                os.chown(path, *self._files.owner)
            if durable:
                sync_directory(os.path.dirname(path))
        return True

    def rmdir(self, name: str) -> bool:
        try:
            return self._do(name, remove_directory)
        except NotFound:
            return True

    def remove_tree(self, name: str) -> None:
        with suppress(NotFound):
            self._do(name, remove_tree)

    def sync(self) -> None:
        with self._naming(self._root):
            _sync_file_system(self._descriptor)
        path = self._path(CHUNKS)
        with self._naming(path), suppress(FileNotFoundError):
            chunks = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:  # they may be on a larger disk
                if os.fstat(chunks).st_dev != os.fstat(self._descriptor).st_dev:
                    _sync_file_system(chunks)
            finally:
                os.close(chunks)

    def lock(
        self, name: str, lock_names: Sequence[str], *, exclusive: bool, timeout_s: float = 0
    ) -> HeldLocks:
        deadline = time.monotonic() + timeout_s
        held = HeldLocks()
        try:
            self._lock_for_pbs(held, lock_names, exclusive=exclusive, deadline=deadline)
            self._lock(held, name, exclusive=exclusive, deadline=deadline)
        except BaseException:
            held.release()
            raise
        return held

    def _lock_for_pbs(
        self, held: HeldLocks, lock_names: Sequence[str], *, exclusive: bool, deadline: float
    ) -> None:
        if self._pbs_lock_directory is not None:
            owner = self._files.owner
            for lock_name in lock_names:
                held.add(
                    lock_file(
                        self._pbs_lock_directory,
                        lock_name,
                        owner,
                        exclusive=exclusive,
                        deadline=deadline,
                    )
                )

    def _lock(self, held: HeldLocks, name: str, *, exclusive: bool, deadline: float) -> None:
        """Lock `name`. Its own lock comes last: that one knows if `name` is gone."""
        if self._lock_files.are_used:
            with self._naming(self._path(name)):
                held.add(self._lock_files.lock(name, exclusive=exclusive, deadline=deadline))
        held.add(lock_path(self._path(name), exclusive=exclusive, deadline=deadline))

    def forget_lock(self, lock_names: Sequence[str]) -> None:
        if self._pbs_lock_directory is not None:
            for lock_name in lock_names:
                with suppress(OSError):
                    os.unlink(f"{self._pbs_lock_directory}/{lock_name}")

    def lock_store(self, *, exclusive: bool = False) -> Lock:
        with self._naming(self._path(LOCK)):
            return self._lock_record(exclusive=exclusive)

    def _lock_record(self, *, exclusive: bool = False) -> HeldRecordLock:
        lock = lock_record(self._path(LOCK), exclusive=exclusive)
        self._store_locks = [held for held in [*self._store_locks, lock] if held.is_held]
        return lock

    def is_alone(self) -> bool:
        return not self._lock_files.are_used or self._is_only_writer()

    def _is_only_writer(self) -> bool:
        """Whether no other descriptor, of any process on any host, holds the store's lock."""
        with self._naming(self._path(LOCK)):
            held = next((lock for lock in self._store_locks if lock.is_held), None)
            if held is not None:
                return held.is_only_holder()
            try:
                with self._lock_record() as lock:
                    return lock.is_only_holder()
            except Locked:
                return False

    def close(self) -> None:
        if self._descriptor >= 0:
            self._finalizer()
            self._descriptor = -1


def is_chunk(name: str) -> bool:
    """Whether it is a chunk: one that is not seen is stored again, which is harmless."""
    return name.startswith(CHUNKS) and len(name) == CHUNK_NAME_SIZE


def _sync_file_system(descriptor: int) -> None:
    """Wait until all of a file's file system is on disk. Raises OSError."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(descriptor) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
