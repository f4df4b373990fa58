"""From a path to an entry: as the kernel does it, with the tree as its whole world."""

from dataclasses import dataclass

from store.errors import NotFound
from store.format.pxar.entries import Entry, EntryKind
from store.trees.base import FileTree
from store.trees.joined import MemberEntry
from store.trees.names import quote

MAX_LINKS = 40
"""As Linux: so many symbolic links on the way, and it is a loop."""


@dataclass(frozen=True)
class Spot:
    """An entry and the directories that lead to it, the root first."""

    entries: tuple[Entry, ...]

    @property
    def entry(self) -> Entry:
        return self.entries[-1]

    @property
    def path(self) -> bytes:
        """From the root, without a leading slash; empty for the root itself."""
        return b"/".join(entry.name for entry in self.entries[1:])

    @property
    def prefix(self) -> bytes:
        """What the paths of its children begin with."""
        return b"%b/" % self.path if len(self.entries) > 1 else b""

    def child(self, entry: Entry) -> "Spot":
        return Spot((*self.entries, entry))

    @property
    def parent(self) -> "Spot":
        """The directory around it; the root is its own."""
        return Spot(self.entries[:-1] or self.entries)


def root_of(tree: FileTree) -> Spot:
    """Where paths begin."""
    return Spot((tree.root(),))


def find_path(
    tree: FileTree, path: bytes, start: Spot | None = None, *, follow: bool = True
) -> Spot:
    """The entry at a path: absolute, or from `start`; `.`, `..` and symbolic links are followed.

    No link leads out of the tree, nor out of the partition that it lies in.

    Args:
        follow: a link at the very end, too; also with a slash behind it.

    Raises:
        NotFound: nothing is there, something on the way is no directory, or links go in circles.
    """
    spot = start if start is not None and not path.startswith(b"/") else root_of(tree)
    todo, links = [name for name in reversed(path.split(b"/")) if name], 0
    while todo:
        name = todo.pop()
        if spot.entry.kind is not EntryKind.DIRECTORY:
            raise NotFound(f"{quote(path)}: {quote(spot.path)} is no directory")
        if name in (b".", b".."):
            spot = spot.parent if name == b".." else spot
            continue
        entry = tree.lookup(spot.entry, name)
        if entry is None:
            raise NotFound(f"{quote(path)}: no {quote(spot.prefix + name)}")
        if entry.kind is EntryKind.SYMLINK and (todo or follow or path.endswith(b"/")):
            links += 1
            if links > MAX_LINKS:
                raise NotFound(f"{quote(path)}: symbolic links that lead in circles")
            todo += [part for part in reversed(entry.target.split(b"/")) if part]
            spot = _file_system(spot) if entry.target.startswith(b"/") else spot
        else:
            spot = spot.child(entry)
    return spot


def followed(tree: FileTree, entry: Entry) -> Entry:
    """The entry itself or, of a hard link, the regular file with its facts."""
    return tree.follow(entry) if entry.kind is EntryKind.HARDLINK else entry


def _file_system(spot: Spot) -> Spot:
    """The root of the file system that an entry is in: where its absolute links begin."""
    for depth in range(len(spot.entries), 1, -1):
        entry = spot.entries[depth - 1]
        if isinstance(entry, MemberEntry) and entry.top:
            return Spot(spot.entries[:depth])
    return Spot(spot.entries[:1])
