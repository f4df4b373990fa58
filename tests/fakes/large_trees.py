"""Snapshots of very large trees, encoded straight into a datastore: no file of them ever existed.

usage: python -m tests.fakes.large_trees DATASTORE SNAPSHOT ENTRIES [--legacy] [--key FILE]
    [--flat FILES]
"""

import argparse
import base64
import json
from collections.abc import Callable
from itertools import count
from pathlib import Path

from store.backends.local.nfs import open_directory
from store.datastore.datastore import Datastore
from store.format.catalog import CatalogWriter
from store.format.crypt import CryptConfig
from store.format.pxar.encoder import Encoder
from store.format.pxar.entries import payload_header
from store.format.pxar.items import PAYLOAD_START, PAYLOAD_TAIL
from store.names import CATALOG_NAME
from tests.fakes.archives import Builder, snapshot, stat
from tests.fakes.datastores import local_datastore, open_on

CHUNK = 4 << 20
FILES = 8
"""Files, and subdirectories, of one directory: about what /usr has."""


class _Stream:
    """A stream being written, cut into chunks of 4 MiB."""

    def __init__(self, builder: Builder, filename: str) -> None:
        self._builder, self._filename = builder, filename
        self._index = builder.writer.create_dynamic_index(filename)
        self._buffer = bytearray()
        self._cut = 0

    @property
    def position(self) -> int:
        return self._cut + len(self._buffer)

    def write(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= CHUNK:
            self._store(CHUNK)

    def _store(self, size: int) -> None:
        self._cut += size
        self._index.add(self._cut, self._builder.chunk(bytes(self._buffer[:size])))
        del self._buffer[:size]

    def close(self) -> None:
        if self._buffer:
            self._store(len(self._buffer))
        self._builder.add_index(self._filename, self._cut, self._index.close())


class LargeTree:
    """A tree being written into a snapshot: split, or legacy with its catalog."""

    def __init__(self, builder: Builder, *, split: bool = True) -> None:
        name = "root.mpxar.didx" if split else "root.pxar.didx"
        self._encoder = Encoder(split=split)
        self._payload = _Stream(builder, "root.ppxar.didx") if split else None
        self._items = _Stream(builder, name)
        self._catalog, self._catalog_stream = CatalogWriter(), None
        if self._payload:
            self._payload.write(PAYLOAD_START)
        else:
            self._catalog_stream = _Stream(builder, CATALOG_NAME)
        self._put(self._catalog.start())
        self._catalog.begin_archive(name.encode())
        self._items.write(self._encoder.begin(stat(0o40755)))

    def _put(self, block: bytes) -> None:
        if self._catalog_stream:
            self._catalog_stream.write(block)

    def enter(self, name: bytes) -> None:
        self._items.write(self._encoder.enter_directory(name, stat(0o40750, 1000, 1000)))
        self._catalog.enter_directory(name)

    def leave(self) -> None:
        self._items.write(self._encoder.leave_directory())
        self._put(self._catalog.leave_directory())

    def file(self, name: bytes, content: bytes, mtime_s: int, mode: int = 0o100644) -> None:
        metadata, size = stat(mode, 1000, 1000, mtime_s), len(content)
        if self._payload:
            offset = self._payload.position
            self._payload.write(payload_header(size) + content)
            self._items.write(self._encoder.file_ref(name, metadata, offset, size))
        else:
            self._items.write(self._encoder.file(name, metadata, size) + content)
            self._catalog.file(name, size, mtime_s)

    def symlink(self, name: bytes, target: bytes) -> None:
        self._items.write(self._encoder.symlink(name, stat(0o120777), target))
        self._catalog.other(b"l", name)

    def finish(self) -> None:
        self._items.write(self._encoder.finish())
        self._put(self._catalog.end_archive() + self._catalog.finish())
        if self._payload:
            self._payload.write(PAYLOAD_TAIL)
        for stream in (self._payload, self._items, self._catalog_stream):
            if stream:
                stream.close()


def content_of(number: int) -> bytes:
    """What is in a file of `fill`."""
    return (b"%d " % number) * (20 + number % 250)


def mtime_of(number: int) -> int:
    """When it was changed, in seconds."""
    return 1_600_000_000 + number


def fill(tree: LargeTree, entries: int) -> None:
    """Add `entries` in directories of about a dozen, one in nine of them a directory."""
    numbers = count()

    def level(left: int) -> None:
        files, shares = min(left, FILES), max(0, left - FILES)
        for _ in range(files):
            number = next(numbers)
            name = b"file-%07d.txt" % number
            if number % 12 == 11:
                tree.symlink(name, b"../somewhere/%d" % number)
            else:
                tree.file(name, content_of(number), mtime_of(number))
        branches = FILES if shares > 4 * FILES else 1
        for branch in range(branches if shares else 0):
            share = shares // branches + (branch < shares % branches)
            tree.enter(b"sub-%d" % branch)
            level(share - 1)
            tree.leave()

    level(entries)


def fill_flat(tree: LargeTree, files: int) -> None:
    """Add `files` to the directory that is open."""
    for number in range(files):
        tree.file(b"flat-%07d" % number, b"%d" % number, 1_500_000_000 + number)


def write_large_tree(
    datastore: Datastore,
    name: str,
    make: Callable[[LargeTree], None],
    key: CryptConfig | None = None,
    *,
    split: bool = True,
) -> None:
    """Write the snapshot `name` (type/id/time) with one archive `root.pxar`."""
    with snapshot(datastore, name, key) as builder:
        tree = LargeTree(builder, split=split)
        make(tree)
        tree.finish()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("datastore", type=Path)
    parser.add_argument("snapshot")
    parser.add_argument("entries", type=int)
    parser.add_argument("--legacy", action="store_true")
    parser.add_argument("--key", type=Path)
    parser.add_argument("--flat", type=int, default=0)
    arguments = parser.parse_args()

    def make(tree: LargeTree) -> None:
        if arguments.flat:
            tree.enter(b"a-flat-one")
            fill_flat(tree, arguments.flat)
            tree.leave()
        fill(tree, arguments.entries)

    key = read_key(arguments.key) if arguments.key else None
    where = arguments.datastore
    is_new = not (where / ".chunks").is_dir()
    datastore = local_datastore(where) if is_new else open_datastore(where)
    write_large_tree(datastore, arguments.snapshot, make, key, split=not arguments.legacy)


def read_key(path: Path) -> CryptConfig:
    """A key file without a passphrase."""
    return CryptConfig(base64.b64decode(json.loads(path.read_text())["data"]))


def open_datastore(path: Path) -> Datastore:
    """The one that is there."""
    return open_on(open_directory(str(path)))


if __name__ == "__main__":
    main()
