"""A disk image as a stream."""

import os
from pathlib import Path

from store.errors import FormatError


class DiskFile:
    """A ReadAt over a file."""

    def __init__(self, path: Path) -> None:
        self._data = path.open("rb")
        self.size = os.fstat(self._data.fileno()).st_size

    def read(self, offset: int, size: int) -> bytes:
        if offset < 0 or offset + size > self.size:
            raise FormatError(f"{size} bytes at {offset} of {self.size}")
        return os.pread(self._data.fileno(), size, offset)

    def close(self) -> None:
        self._data.close()
