"""A datastore in a directory: local disk, NFS, any POSIX file system."""

import errno
import os
import shutil
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from mmap import PROT_READ, mmap
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from store.backends.base import (
    Listed,
    ObjectStat,
    OneCopy,
    Space,
    Walked,
    storage_error,
)
from store.backends.chunks import max_read
from store.backends.local_create import CHUNKS, create_layout
from store.backends.local_files import FileWriter, LocalTemporaryFile, sync_directory
from store.backends.local_locks import HeldLocks, lock_file, lock_path, lock_record
from store.errors import BackendError, FormatError, NotFound
from store.format.buffer import Buffer
from store.progress import SILENT, Progress

DIRECTORY_MODE = 0o755
CHUNK_DIRECTORY_MODE = 0o750
MAP_FROM = (
    1 << 20
)  # below, reading costs less than a map, and no vanished NFS file can end us with SIGBUS
READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@contextmanager
def _naming(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error


@dataclass(frozen=True, slots=True)
class _Subdirectory:
    """A directory that was listed; a look at the disk says whether it holds the mark."""

    name: str
    path: str
    mark: str

    @property
    def is_marked(self) -> bool:
        path = f"{self.path}/{self.mark}"
        with _naming(path):
            return os.path.lexists(path)


class LocalBackend(OneCopy):
    """A Backend on a directory. See store.backends.base for what each method promises.

    New files and directories made as root belong to the owner of the datastore's directory.
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
        self._open_root()

    def _open_root(self) -> None:
        """Keep one descriptor: its `syncfs` also reports write errors of files closed before."""
        try:
            descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._files = FileWriter(None)
            return
        except OSError as error:
            raise storage_error(error, self._root) from error
        self._descriptor = descriptor
        self._finalizer = weakref.finalize(self, os.close, descriptor)
        status = os.fstat(descriptor)
        owner = (status.st_uid, status.st_gid)
        self._files = FileWriter(owner if os.geteuid() == 0 and owner != (0, 0) else None)

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

    def create(self, progress: Progress = SILENT) -> None:
        create_layout(self._root, progress)
        if self._descriptor < 0:
            self._open_root()

    def status(self) -> Space:
        with _naming(self._root):
            status = os.statvfs(self._root)
        block = status.f_frsize
        return Space(
            status.f_blocks * block,
            (status.f_blocks - status.f_bfree) * block,
            status.f_bavail * block,
        )

    def read(self, name: str) -> bytes:
        path = self._path(name)
        try:
            return _read_file(path, max_read(name))
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise storage_error(error, path) from error
        with _naming(path):  # NFS: replaced on another host while we read; the new one is as good
            return _read_file(path, max_read(name))

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        path = self._path(name)
        with _naming(path):
            descriptor = os.open(path, READ_FLAGS)
            try:
                _regular_size(descriptor, path)
                return os.pread(descriptor, size, offset)
            finally:
                os.close(descriptor)

    def map(self, name: str) -> Buffer:
        path = self._path(name)
        with _naming(path):
            descriptor = os.open(path, READ_FLAGS)
            try:
                size = _regular_size(descriptor, path)
                if size >= MAP_FROM:
                    return mmap(descriptor, size, prot=PROT_READ)
                return _read_rest(descriptor, b"", size, path)
            finally:
                os.close(descriptor)

    def write(
        self, name: str, parts: Sequence[Buffer], *, exclusive: bool = False, durable: bool = False
    ) -> None:
        path = self._path(name)
        try:
            self._files.replace(path, parts, exclusive=exclusive, durable=durable)
        except OSError as error:
            raise storage_error(error, path) from error

    def create_temporary(self, name: str, temporary: str, size: int = 0) -> LocalTemporaryFile:
        return LocalTemporaryFile(self._files, self._path(name), self._path(temporary), size)

    def stat(self, name: str) -> ObjectStat | None:
        path = self._path(name)
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise storage_error(error, path) from error
        mode = status.st_mode
        return ObjectStat(
            status.st_size, status.st_mtime_ns, status.st_atime_ns, S_ISDIR(mode), S_ISREG(mode)
        )

    def touch(self, name: str) -> int | None:
        path = self._path(name)
        try:
            status = os.lstat(path)
            os.utime(path, ns=(time.time_ns(), status.st_mtime_ns), follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise storage_error(error, path) from error
        return status.st_size

    def rename(self, old: str, new: str) -> None:
        with _naming(self._path(old)):
            os.rename(self._path(old), self._path(new))

    def delete(self, name: str) -> None:
        with _naming(self._path(name)):
            os.unlink(self._path(name))

    def scan(self, name: str) -> list[Listed]:
        path = self._path(name)
        try:
            with os.scandir(path) as entries:
                return [Listed(entry.name, _is_directory(entry)) for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise storage_error(error, path) from error

    def subdirectories(self, name: str, mark: str) -> list[_Subdirectory]:
        return [
            _Subdirectory(entry.name, self._path(f"{name}/{entry.name}"), mark)
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
        with _naming(path):
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
        path = self._path(name)
        try:
            os.rmdir(path)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise storage_error(error, path) from error
        return True

    def remove_tree(self, name: str) -> None:
        path = self._path(name)
        with _naming(path), suppress(FileNotFoundError):
            try:
                shutil.rmtree(path)
            except OSError as error:
                if error.errno != errno.ENOTEMPTY or not _only_nfs_shadows(path):
                    raise

    def sync(self) -> None:
        with _naming(self._root):
            _sync_file_system(self._descriptor)
        path = self._path(CHUNKS)
        with _naming(path), suppress(FileNotFoundError):
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
        held = HeldLocks([])
        try:
            if self._pbs_lock_directory is not None:
                for lock_name in lock_names:
                    held.add(
                        lock_file(
                            self._pbs_lock_directory,
                            lock_name,
                            self._files.owner,
                            exclusive=exclusive,
                            deadline=deadline,
                        )
                    )
            held.add(lock_path(self._path(name), exclusive=exclusive, deadline=deadline))
        except BaseException:
            held.release()
            raise
        return held

    def forget_lock(self, lock_names: Sequence[str]) -> None:
        if self._pbs_lock_directory is not None:
            for lock_name in lock_names:
                with suppress(OSError):
                    os.unlink(f"{self._pbs_lock_directory}/{lock_name}")

    def lock_store(self, *, exclusive: bool = False) -> HeldLocks:
        return HeldLocks([lock_record(self._path(".lock"), exclusive=exclusive)])

    def close(self) -> None:
        if self._descriptor >= 0:
            self._finalizer()
            self._descriptor = -1


def _is_directory(entry: os.DirEntry[str]) -> bool:
    """Whether it is one or a symlink to one. A symlink that leads nowhere hides no other entry."""
    try:
        return entry.is_dir()
    except OSError:
        if entry.is_symlink():
            return False
        raise


def _sync_file_system(descriptor: int) -> None:
    """Wait until all of a file's file system is on disk. Raises OSError."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(descriptor) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _read_file(path: str, limit: int) -> bytes:
    descriptor = os.open(path, READ_FLAGS)
    try:
        size = _regular_size(descriptor, path)
        if size > limit:
            raise FormatError(f"{path}: {size} bytes, more than any such file has")
        data = os.read(descriptor, size)
        return data if len(data) == size else _read_rest(descriptor, data, size, path)
    finally:
        os.close(descriptor)


def _only_nfs_shadows(path: str) -> bool:
    """Whether all that is left are `.nfs…` names: removed files that somebody here still reads.

    They go when they are closed; the empty directory goes with the next removal of leftovers.
    """
    names = os.listdir(path)
    return bool(names) and all(name.startswith(".nfs") for name in names)


def _regular_size(descriptor: int, path: str) -> int:
    status = os.fstat(descriptor)
    if S_ISDIR(status.st_mode):
        raise NotFound(f"{path}: is a directory")
    if not S_ISREG(status.st_mode):
        raise BackendError(f"{path}: not a regular file")
    return status.st_size


def _read_rest(descriptor: int, data: bytes, size: int, path: str) -> bytes:
    """Go on after a short read (2 GiB is the most one call gives).

    Raises BackendError when the file shrank.
    """
    parts, have = [data], len(data)
    while have < size:
        part = os.read(descriptor, size - have)
        if not part:
            raise BackendError(f"{path}: ends at {have} of {size} bytes", retryable=True)
        parts.append(part)
        have += len(part)
    return b"".join(parts)
