"""Files that have no name: what is too large for memory on its way to or from the bucket."""

import os
import secrets
import tempfile
from collections.abc import Callable, Sequence
from mmap import PROT_READ, mmap

from store.backends.base import storage_error
from store.backends.local.writing import FileWriter, LocalTemporaryFile
from store.format.buffer import Buffer


def scratch_map(size: int) -> mmap:
    """Memory of `size` bytes (at least 1) that need not be resident; its room is reserved.

    Raises OutOfSpace, BackendError: of TMPDIR.
    """
    folder = tempfile.gettempdir()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk would kill us at a store
            return mmap(file.fileno(), size)
    except OSError as error:
        raise storage_error(error, folder) from error


class S3TemporaryFile(LocalTemporaryFile):
    """A TemporaryFile (see base) in TMPDIR; nothing of it is in the bucket before `commit`.

    After a `commit` that failed it is still whole: `commit` may be tried again.
    """

    def __init__(self, put: Callable[[Sequence[Buffer]], None], size: int) -> None:
        """`put` stores the whole object."""
        path = f"{tempfile.gettempdir()}/vaultway-{secrets.token_hex(8)}"
        super().__init__(FileWriter(None), path, path, size)
        os.unlink(path)
        self._put = put

    def commit(self, *, durable: bool = False) -> None:
        size = os.fstat(self._descriptor).st_size
        self._put((mmap(self._descriptor, size, prot=PROT_READ),) if size else ())
        self._close()
