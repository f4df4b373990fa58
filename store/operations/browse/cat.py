"""The bytes of one file of a snapshot, in order: `snapshot cat`."""

from collections.abc import Iterator

from store.datastore.archives import IndexedStream
from store.errors import InvalidName
from store.format.buffer import Buffer, ReadAt
from store.format.pxar.entries import Entry, EntryKind
from store.operations.browse.contents import IMAGE, SnapshotContents, spot_of
from store.trees.base import FileTree
from store.trees.names import quote
from store.trees.paths import followed

RAW = ("utf-8", "surrogateescape")
READ_SIZE = 4 << 20
READ_AHEAD_FROM = 16 << 20
"""A file of this size is worth threads that read ahead."""


def read_file(contents: SnapshotContents, path: str) -> Iterator[Buffer]:
    """Yield what `ARCHIVE/PATH`, an image or a blob contains. Symbolic links are followed.

    Raises NotFound, InvalidName (no regular file), before the first byte; and what reading raises.
    """
    place = contents.locate(path)
    if place.tree is None:
        if not place.archive.endswith(IMAGE):
            yield contents.reader.read_blob(place.archive)
            return
        image = contents.reader.open_image(place.archive)
        yield from _stretch(image, 0, image.size)
        return
    yield from read_entry(place.tree, spot_of(place).entry, path.encode(*RAW))


def read_entry(tree: FileTree, entry: Entry, path: bytes) -> Iterator[Buffer]:
    """Yield a regular file's content. Raises InvalidName (it is none), and what reading raises."""
    entry = followed(tree, entry)
    if entry.kind is not EntryKind.FILE:
        kind = entry.kind.name.lower().replace("_", " ")
        more = ", list it with `snapshot files`" if entry.kind is EntryKind.DIRECTORY else ""
        raise InvalidName(f"{quote(path)}: is a {kind}{more}")
    stream, offset = tree.content(entry)
    yield from _stretch(stream, offset, entry.size)


def _stretch(stream: ReadAt, offset: int, size: int) -> Iterator[Buffer]:
    if isinstance(stream, IndexedStream) and size >= READ_AHEAD_FROM:
        yield from stream.chunks(offset, offset + size)
        return
    for start in range(offset, offset + size, READ_SIZE):
        yield stream.read(start, min(READ_SIZE, offset + size - start))
