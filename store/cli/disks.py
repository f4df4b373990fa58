"""How the commands look into disk images. The one place where store/disks is wired in.

That room may be missing from an installation (its parsers have licences of their own); then images
are images and no more. So it is imported by name, and when it is needed.
"""

from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from store.cli.options import Parser
    from store.datastore.archives import SnapshotReader
    from store.operations.browse.contents import OpenDisk
    from store.trees.base import FileTree

ROOM, DISK, KEYS = "store.disks", "store.disks.disk", "store.cli.disk_keys"


def add_disk_options(parser: "Parser") -> None:
    """Add `--disk-keyfile`, where there is something to look into disks."""
    if _is_there(KEYS):
        import_module(KEYS).add_disk_key_option(parser)


@contextmanager
def disk_opener(args: "argparse.Namespace") -> "Iterator[OpenDisk | None]":
    """What opens an image's tree, and closes all it has opened in the end; None: nothing can."""
    if not (_is_there(ROOM) and _is_there(DISK)):
        yield None
        return
    opener = _Opener(args)
    try:
        yield opener
    finally:
        opener.close()


class _Opener:
    """Opens disks; what that takes is imported, and the keys are read, with the first."""

    def __init__(self, args: "argparse.Namespace") -> None:
        self._args = args
        self._disks: Any = None

    def __call__(self, reader: "SnapshotReader", image: str) -> "FileTree":
        from store.operations.browse.disk_tree import disk_tree

        if self._disks is None:
            self._disks = self._room()
        name = f"{reader.snapshot}/{image}"
        disk = self._disks.open(name, lambda: reader.open_image(image), name)
        return disk_tree(disk.parts, reader.snapshot.time)

    def close(self) -> None:
        """End all children."""
        if self._disks is not None:
            self._disks.close()

    def _room(self) -> Any:  # noqa: ANN401 - imported by name
        disks = import_module(DISK)
        paths = getattr(self._args, "disk_keyfile", ())
        keys = import_module(KEYS).disk_keys(paths) if _is_there(KEYS) else ()
        return disks.Disks(disks.DiskOptions(keys))


def _is_there(module: str) -> bool:
    return find_spec(module) is not None
