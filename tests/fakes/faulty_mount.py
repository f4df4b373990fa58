"""A mount whose insides fail at random, until FILE is removed.

usage: faulty_mount.py REPOSITORY MOUNTPOINT FILE
"""

import errno
import logging
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY, MOUNTPOINT, BROKEN = (Path(argument).absolute() for argument in sys.argv[1:])
sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from fsgateway import (  # noqa: E402
    archive,
    attributes,
    inodes,
    operations,
    reading,
    seeking,
    tree,
    view,
)
from fsgateway.mount import MountRequest, serve  # noqa: E402
from fsgateway.options import parse_options  # noqa: E402
from store.errors import Cancelled, ChunkMissing, KeyRequired  # noqa: E402
from store.repositories.repository import open_datastore  # noqa: E402

WAYS = [
    lambda: OSError(errno.EBADF, "injected"),
    lambda: ValueError("injected"),
    lambda: KeyError("injected"),
    lambda: RecursionError("injected"),
    lambda: AssertionError("injected"),
    lambda: StopIteration("injected"),
    lambda: Cancelled("injected"),
    lambda: ChunkMissing("injected"),
    lambda: KeyRequired("injected"),
    lambda: UnicodeDecodeError("utf-8", b"x", 0, 1, "injected"),
    lambda: struct.error("injected"),
]


def faulty(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which fails every fifth time or so."""

    def call(*arguments: Any, **options: Any) -> Any:
        if BROKEN.exists() and random.random() < 0.2:
            raise random.choice(WAYS)()
        return function(*arguments, **options)

    return call


PLACES = [
    (archive.Archive, "listing"), (archive.Archive, "lookup"), (archive.Archive, "entry"),
    (archive.Archive, "content"), (archive.Archive, "content_if_cached"),
    (archive.Archive, "links"),
    (attributes.Presentation, "of_entry"), (attributes.Presentation, "of_facts"),
    (inodes.EntryTable, "remember"), (inodes.EntryTable, "forget"), (inodes.NodeTable, "forget"),
    (reading.Reader, "open_entry"), (reading.Reader, "open_node"), (reading.Reader, "read"),
    (tree.GroupNode, "children"), (tree.SnapshotNode, "children"), (view.View, "status"),
    (operations, "xattrs_of"), (operations, "names_of"), (operations, "own_names"),
    (operations, "own_value"), (seeking, "find"),
]  # fmt: skip


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    random.seed(7)
    for place, name in PLACES:
        setattr(place, name, faulty(getattr(place, name)))
    request = MountRequest(str(REPOSITORY), MOUNTPOINT, parse_options([]))
    with open_datastore(str(REPOSITORY)) as datastore:
        serve(request, datastore, lambda: None)


main()
