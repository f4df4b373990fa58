"""How the commands look into disk images."""

from contextlib import contextmanager
from typing import TYPE_CHECKING

from store.cli.disk_keys import add_disk_key_option, disk_keys

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from store.cli.options import Parser
    from store.datastore.archives import SnapshotReader
    from store.disks.disk import Disks
    from store.operations.browse.contents import OpenDisk
    from store.trees.base import FileTree


def add_disk_options(parser: "Parser") -> None:
    """Add `--disk-keyfile`."""
    add_disk_key_option(parser)


@contextmanager
def disk_opener(args: "argparse.Namespace") -> "Iterator[OpenDisk]":
    """What opens an image's tree, and closes all it has opened in the end."""
    opener = _Opener(args)
    try:
        yield opener
    finally:
        opener.close()


class _Opener:
    """Opens disks; what that takes is imported, and the keys are read, with the first."""

    def __init__(self, args: "argparse.Namespace") -> None:
        self._args = args
        self._disks: Disks | None = None

    def __call__(self, reader: "SnapshotReader", image: str) -> "FileTree":
        from store.operations.browse.disk_tree import disk_tree

        if self._disks is None:
            self._disks = self._opened()
        name = f"{reader.snapshot}/{image}"
        disk = self._disks.open(name, lambda: reader.open_image(image), name)
        return disk_tree(disk.parts, reader.snapshot.time)

    def close(self) -> None:
        """End all children."""
        if self._disks is not None:
            self._disks.close()

    def _opened(self) -> "Disks":
        from store.disks.disk import DiskOptions, Disks

        return Disks(DiskOptions(disk_keys(getattr(self._args, "disk_keyfile", ()))))
