"""How the commands look into disk images. The one place where store/disks is wired in."""

from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from store.datastore.archives import SnapshotReader
    from store.operations.browse.contents import OpenDisk
    from store.trees.base import FileTree

ROOM = "store.disks.disk"


@contextmanager
def disk_opener() -> "Iterator[OpenDisk | None]":
    """What opens an image's tree, and closes all it has opened in the end; None: nothing can."""
    from importlib.util import find_spec

    if find_spec("store.disks") is None or find_spec(ROOM) is None:
        yield None
        return
    opener = _Opener()
    try:
        yield opener
    finally:
        opener.close()


class _Opener:
    """Opens disks; imports what that takes with the first."""

    def __init__(self) -> None:
        self._disks: Any = None

    def __call__(self, reader: "SnapshotReader", image: str) -> "FileTree":
        from store.operations.browse.disk_tree import disk_tree

        if self._disks is None:
            self._disks = import_module(ROOM).Disks()
        name = f"{reader.snapshot}/{image}"
        disk = self._disks.open(name, lambda: reader.open_image(image), name)
        return disk_tree(disk, reader.snapshot.time)

    def close(self) -> None:
        """End all children."""
        if self._disks is not None:
            self._disks.close()
