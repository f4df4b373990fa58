"""A v1 archive by its catalog: names, kinds, and of files sizes and times, all close together.

In the archive itself they lie between the contents: to go through its names is to read it whole.
What the catalog does not know (modes, owners, contents, what a hard link names) is looked up there.
"""

from collections.abc import Callable, Iterator

from store.errors import FormatError, NotFound
from store.format.buffer import ReadAt
from store.format.catalog import Catalog, CatalogEntry
from store.format.pxar.accessor import Accessor
from store.format.pxar.entries import Entry, EntryKind, encode_stat

_KINDS = {kind.value: kind for kind in EntryKind}
_MODES = {
    EntryKind.DIRECTORY: 0o40000,
    EntryKind.FILE: 0o100000,
    EntryKind.SYMLINK: 0o120000,
    EntryKind.CHAR_DEVICE: 0o20000,
    EntryKind.BLOCK_DEVICE: 0o60000,
    EntryKind.FIFO: 0o10000,
    EntryKind.SOCKET: 0o140000,
}


class NamedEntry(Entry):
    """What the catalog says of an entry, and the path where the archive has it."""

    __slots__ = ("path",)
    path: bytes


class CatalogTree:
    """A FileTree. Entries have a mode of their kind, no owner, and a time only if they are files.

    `content` and `follow` open the archive.
    """

    def __init__(
        self, catalog: Catalog, directory: CatalogEntry, open_archive: Callable[[], Accessor]
    ) -> None:
        """`directory`: the archive's root in the catalog."""
        self._catalog = catalog
        self._open_archive = open_archive
        self._archive: Accessor | None = None
        self._root = _entry(CatalogEntry(b"d", b"", offset=directory.offset), b"")

    @property
    def archive(self) -> Accessor:
        """The archive itself."""
        if self._archive is None:
            self._archive = self._open_archive()
        return self._archive

    def root(self) -> Entry:
        return self._root

    def iterate(self, directory: Entry) -> Iterator[Entry]:
        if directory.kind is not EntryKind.DIRECTORY:
            raise FormatError(f"catalog: {directory!r} is no directory")
        prefix = b"%b/" % path if (path := _path(directory)) else b""
        found = CatalogEntry(b"d", directory.name, offset=directory.offset)
        for entry in self._catalog.entries(found):
            yield _entry(entry, prefix + entry.name)

    def lookup(self, directory: Entry, name: bytes) -> Entry | None:
        return next((entry for entry in self.iterate(directory) if entry.name == name), None)

    def follow(self, link: Entry) -> Entry:
        return self.archive.follow(self.archive.resolve(_path(link)))

    def entry_at(self, offset: int, directory_end: int = 0) -> Entry:
        raise NotFound(f"no entry {offset}: a catalog has paths only")

    def content(self, file: Entry) -> tuple[ReadAt, int]:
        return self.archive.content(self._resolved(file))

    def read(self, file: Entry, offset: int, size: int) -> bytes:
        return self.archive.read(self._resolved(file), offset, size)

    def _resolved(self, file: Entry) -> Entry:
        return self.archive.resolve(file.path) if isinstance(file, NamedEntry) else file


def _path(entry: Entry) -> bytes:
    assert isinstance(entry, NamedEntry)
    return entry.path


def _entry(found: CatalogEntry, path: bytes) -> NamedEntry:
    kind = _KINDS[found.kind]
    mode = _MODES.get(kind, 0)
    raw = encode_stat(mode, 0, 0, 0, found.mtime_s, 0) if mode else b""
    entry = NamedEntry(found.name, kind, found.offset, 0, raw, size=found.size)
    entry.path = path
    return entry
