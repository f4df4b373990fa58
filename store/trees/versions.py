"""An archive of all snapshots of a group as one tree, in which a file is a directory: its versions.

    etc/                              a directory, with the names of all snapshots
    etc/hosts/                        a file, or a symlink, device, ...
    etc/hosts/2026-01-02T03:04:05Z    as it was in that snapshot, and until the next version
    notes.txt/2026-01-02T03:04:05Z.txt

A version begins with the first snapshot that has the file, and with each in which it differs from
what it was in the one before: in kind, size or mtime (a symlink in its target, a device in its
number). PBS's own change detection judges so, too. So the newest version that is no younger than
some time is the file at that time. What was a file once and a directory then is both at once.

A version's number is one more than the entry's that it shows, any other's that of the newest entry
at its path (places.py).
"""

from collections.abc import Iterator, Sequence
from functools import partial

from store.errors import FormatError
from store.format.buffer import ReadAt
from store.format.pxar.entries import Entry, EntryKind, encode_stat
from store.trees.base import FileTree
from store.trees.closed import closed
from store.trees.moments import Moment
from store.trees.places import Found, Path, Place, Places, Warm, asked
from store.trees.unions import Name, Union
from store.trees.version_names import is_version_name, version_name

VERSIONS_MODE = 0o40555


class VersionsTree:
    """A FileTree over the moments of one archive. Every name in it but the versions is a directory.

    Memory: what 64 paths have in each snapshot, and the names of a directory while it is listed.

    Raises as FileTree; KeyRequired when there is no snapshot that can be read.
    """

    def __init__(self, moments: Sequence[Moment], warm: Warm | None = None) -> None:
        """`moments`, newest first, and `warm` as those of `Places`."""
        self._places = Places(moments, warm)

    def root(self) -> Entry:
        """The root directory."""
        return self._directory(self._places.at(()))

    def iterate(self, directory: Entry) -> Iterator[Entry]:
        """The versions of a file by time; the names of all snapshots' directories, sorted."""
        place = self._places.at(_path(directory))
        yield from self._versions(place)
        union = Union()
        for found, entries in self._places.listings(place):
            union.add(found.position, found.moment, entries)
        for name in union.sorted():
            yield self._listed(place.path, name)

    def lookup(self, directory: Entry, name: bytes) -> Entry | None:
        """The version or the child of this name, or None."""
        place = self._places.at(_path(directory))
        if is_version_name(name):
            for version in self._versions(place):
                if version.name == name:
                    return version
        child = self._places.child(place, name)
        return None if child is None else self._directory(child)

    def follow(self, link: Entry) -> Entry:
        """Raises FormatError: no version is a hard link, each is a file by itself."""
        raise FormatError(f"{link!r} is no hard link")

    def entry_at(self, offset: int, directory_end: int = 0) -> Entry:
        """The entry of a number that was met before."""
        if not offset:
            return self.root()
        path, found = self._places.entry(offset)
        number = self._places.number(found)
        if number == offset:
            return self._directory(self._places.at(path))
        if number + 1 != offset or found.is_directory:
            raise FormatError(f"{found.moment.label}: nothing has the number {offset}")
        return self._version(found, found.followed())

    def content(self, file: Entry) -> tuple[ReadAt, int]:
        """Where the bytes of a version are, in the archive of its snapshot."""
        return self._whole(file).content(file)

    def read(self, file: Entry, offset: int, size: int) -> bytes:
        """Bytes of a version."""
        return self._whole(file).read(file, offset, size)

    def _whole(self, file: Entry) -> FileTree:
        return self._places.moment(file.offset).whole()

    def _directory(self, place: Place) -> Entry:
        """The directory that shows a place."""
        raws = [found.entry.raw_metadata for found in place.directories()]
        raw = closed(raws) if raws else _owner(place.found[0])
        number = self._places.number(place.found[0]) if place.path else 0
        return _entry(number, place.path, raw)

    def _listed(self, parent: Path, name: Name) -> Entry:
        """The same for a name that was met in a listing."""
        found = name.newest
        raw = closed(name.directories) if name.directories else _owner(found)
        return _entry(self._places.number(found), (*parent, found.entry.name), raw)

    def _versions(self, place: Place) -> Iterator[Entry]:
        """The versions of a file, the oldest first."""
        previous: Entry | None = None
        for found in place.files():
            entry = asked(found, partial(_decoded, found))
            if entry is not None and (previous is None or _differs(previous, entry)):
                yield self._version(found, entry)
                previous = entry

    def _version(self, found: Found, file: Entry) -> Entry:
        """An entry as a version; `file` is what it shows, itself or its hard link's target."""
        return Entry(
            version_name(found.moment.time, found.entry.name),
            file.kind,
            self._places.number(found) + 1,
            0,
            file.raw_metadata,
            file.payload_offset,
            file.size,
            file.target,
            0,
            file.device,
            links=1,
        )


def _entry(number: int, path: Path, raw: bytes) -> Entry:
    """A directory of the merged tree. Its path is its `target`, which leads back to its place."""
    name = path[-1] if path else b""
    return Entry(name, EntryKind.DIRECTORY, number, 0, raw, target=b"/".join(path))


def _path(directory: Entry) -> Path:
    return tuple(directory.target.split(b"/")) if directory.target else ()


def _owner(newest: Found) -> bytes:
    """The metadata of the directory of a file's versions: its owner's, open to all.

    The versions have permissions of their own, and so have the directories around.
    """
    file = asked(newest, partial(_decoded, newest))
    if file is None:
        return encode_stat(VERSIONS_MODE, 0, 0, 0, newest.moment.time, 0)
    stat = file.metadata
    return encode_stat(VERSIONS_MODE, 0, stat.uid, stat.gid, stat.mtime_s, stat.mtime_ns)


def _decoded(found: Found) -> Entry:
    """The file that an entry is, its metadata decoded. Raises FormatError."""
    file = found.followed()
    _ = file.metadata
    return file


def _differs(older: Entry, newer: Entry) -> bool:
    """Whether it is another version of the file."""
    if older.kind is not newer.kind:
        return True
    if older.kind is EntryKind.FILE:
        before, after = older.metadata, newer.metadata
        times = (before.mtime_s, before.mtime_ns), (after.mtime_s, after.mtime_ns)
        return older.size != newer.size or times[0] != times[1]
    return older.target != newer.target or older.device != newer.device
