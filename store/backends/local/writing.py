"""Files that appear whole or not at all: a temporary file, then rename (spec 1.3, 4.3)."""

import errno
import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from mmap import mmap
from pathlib import PurePosixPath

from store.backends.base import storage_error
from store.errors import StoreError
from store.format.buffer import Buffer

FILE_MODE = 0o644
NO_HARD_LINKS = frozenset((errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK))


Identity = tuple[int, int]
"""Device and inode number."""


def temporary_path(path: str) -> str:
    """`path` with its extension replaced by `tmp_XXXXXX`, which PBS and its GC ignore."""
    directory, _, name = path.rpartition("/")
    return f"{directory}/{PurePosixPath(name).stem}.tmp_{secrets.token_hex(3)}"


def write_all(descriptor: int, parts: Sequence[Buffer]) -> None:
    """Write `parts` one after the other, whole, with as few calls and copies as can be.

    Raises OSError.
    """
    views = [memoryview(part).cast("B") for part in parts if len(part)]
    while views:
        written = os.writev(descriptor, views)
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if written:
            views[0] = views[0][written:]


def write_at(descriptor: int, offset: int, data: Buffer) -> None:
    """Write `data` at `offset`, whole. Raises OSError."""
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(descriptor, view, offset)
        offset, view = offset + written, view[written:]


def sync_directory(path: str) -> None:
    """Make the names in a directory durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move(source: str, target: str, identity: Identity) -> None:
    """Rename, or find it done: when an answer of an NFS server is lost, the question is repeated.

    Raises OSError.
    """
    try:
        os.rename(source, target)
    except OSError:
        if not leads_to(target, identity):
            raise


def leads_to(path: str, identity: Identity) -> bool:
    """Whether `path` is that very file. Opening the directory makes NFS ask its server again."""
    try:
        os.close(os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        return identity_of(os.lstat(path)) == identity
    except OSError:
        return False


def identity_of(status: os.stat_result) -> Identity:
    """What stays the same when a file is renamed."""
    return status.st_dev, status.st_ino


class FileWriter:
    """Makes files that belong to the datastore's owner, mode 0644, whatever the umask."""

    def __init__(
        self,
        owner: tuple[int, int] | None,
        error: Callable[[OSError, str], StoreError] = storage_error,
    ) -> None:
        """Say who new files are for, and what errors mean.

        Args:
            owner: uid and gid to give to new files; None leaves them as they come.
            error: the StoreError for an OSError at a path.
        """
        self.owner, self.error = owner, error

    def open_new(self, path: str, flags: int = os.O_WRONLY) -> int:
        """Descriptor of a new file with its mode and owner set. Raises OSError (EEXIST)."""
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, FILE_MODE)
            if self.owner is not None:
                os.fchown(descriptor, *self.owner)
        except OSError:
            os.close(descriptor)
            os.unlink(path)
            raise
        return descriptor

    def replace(
        self, path: str, parts: Sequence[Buffer], *, exclusive: bool, durable: bool
    ) -> None:
        """Put a file with `parts` at `path`.

        Raises OSError (EEXIST when `exclusive` and it is there).
        """
        temporary, descriptor = self._open_temporary(path)
        try:
            try:
                identity = identity_of(os.fstat(descriptor))
                write_all(descriptor, parts)
                if durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if exclusive:
                self._link(temporary, path, identity, parts, durable=durable)
            else:
                move(temporary, path, identity)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        if durable:
            sync_directory(os.path.dirname(path))

    def _open_temporary(self, path: str) -> tuple[str, int]:
        while True:
            temporary = temporary_path(path)
            with suppress(FileExistsError):
                return temporary, self.open_new(temporary)

    def _link(
        self,
        temporary: str,
        path: str,
        identity: Identity,
        parts: Sequence[Buffer],
        *,
        durable: bool,
    ) -> None:
        """Move `temporary` to `path` unless something is there, other than it: an answer was lost.

        File systems without hard links create in place.
        """
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno in NO_HARD_LINKS:
                self._create(path, parts, durable=durable)
            elif not leads_to(path, identity):
                raise
        with suppress(FileNotFoundError):
            os.unlink(temporary)

    def _create(self, path: str, parts: Sequence[Buffer], *, durable: bool) -> None:
        descriptor = self.open_new(path)
        try:
            write_all(descriptor, parts)
            if durable:
                os.fsync(descriptor)
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(descriptor)


class LocalTemporaryFile:
    """A TemporaryFile (see base) on disk.

    A `size` is reserved at once, so that memory never meets a full disk.
    """

    def __init__(self, writer: FileWriter, path: str, temporary: str, size: int) -> None:
        self._path, self._temporary, self._error = path, temporary, writer.error
        self._map: mmap | None = None
        self._open = True
        try:
            with suppress(FileNotFoundError):
                os.unlink(temporary)  # left by a process that was killed
            self._descriptor = writer.open_new(temporary, os.O_RDWR)
        except OSError as error:
            raise self._error(error, temporary) from error
        try:
            self._identity = identity_of(os.fstat(self._descriptor))
            if size:
                self._map = self._reserve(size)
        except BaseException as error:
            self.discard()
            if isinstance(error, OSError):
                raise self._error(error, temporary) from error
            raise

    def _reserve(self, size: int) -> mmap:
        """The first `size` bytes as memory; what is appended comes after.

        Raises OSError, StoreError.
        """
        os.posix_fallocate(self._descriptor, 0, size)
        os.lseek(self._descriptor, size, os.SEEK_SET)
        return mmap(self._descriptor, size)

    def write(self, data: Buffer) -> None:
        try:
            write_all(self._descriptor, (data,))
        except OSError as error:
            raise self._error(error, self._temporary) from error

    def write_at(self, offset: int, data: Buffer) -> None:
        try:
            write_at(self._descriptor, offset, data)
        except OSError as error:
            raise self._error(error, self._temporary) from error

    def map(self) -> memoryview:
        return memoryview(self._map if self._map is not None else bytearray())

    def commit(self, *, durable: bool = False) -> None:
        try:
            self._flush()
            if durable:
                os.fsync(self._descriptor)  # covers what was written through the map
            self._close()
            move(self._temporary, self._path, self._identity)
            if durable:
                sync_directory(os.path.dirname(self._path))
        except OSError as error:
            self.discard()
            with suppress(OSError):
                os.unlink(self._temporary)
            raise self._error(error, self._path) from error

    def _flush(self) -> None:
        """Bring what was written through the map into the file: it is the file's own memory."""

    def discard(self) -> None:
        if self._open:
            with suppress(OSError):
                os.unlink(self._temporary)
            with suppress(OSError):
                self._close()

    def _close(self) -> None:
        if not self._open:
            return
        self._open = False
        if self._map is not None:
            with suppress(
                BufferError
            ):  # a view is still held somewhere; it goes with its last holder
                self._map.close()
        os.close(self._descriptor)
