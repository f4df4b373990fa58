"""Comparing two snapshots: `snapshot diff`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from store.errors import InvalidName, NotFound, StoreError
from store.operations.browse.contents import IMAGE, TREE, Place, SnapshotContents, spot_of
from store.operations.browse.image_diff import differing, have_comparable_digests
from store.operations.browse.tree_diff import Change, Letter, TreeDiff

OnError = Callable[[bytes, StoreError], None]


@dataclass(frozen=True, slots=True)
class ArchiveChange:
    """An archive that only one snapshot has, or an image or blob that differs.

    stretches: of an image, `(offset, size, chunks)` in bytes. size: of an archive that is new.
    """

    letter: Letter
    path: bytes
    stretches: tuple[tuple[int, int, int], ...] = ()

    @property
    def chunks(self) -> int:
        return sum(chunks for _, _, chunks in self.stretches)

    @property
    def bytes(self) -> int:
        return sum(size for _, size, _ in self.stretches)


Difference = Change | ArchiveChange


def diff_snapshots(
    before: SnapshotContents,
    after: SnapshotContents,
    where: str | None = None,
    *,
    content: bool = False,
    on_error: OnError,
) -> Iterator[Difference]:
    """Yield what differs. Paths begin with the archive's name.

    Args:
        where: an archive or a path in one; default all archives, images as images.
        content: compare the contents of files, too, and bytes of images whose digests do not tell.
        on_error: gets the path of what is damaged and left out.

    Raises:
        NotFound: neither snapshot has `where`.
        InvalidName: the images' digests are not comparable, and `content` is not asked for.
    """
    if where is not None:
        yield from _located(before, after, where, on_error, content=content)
        return
    for archive in sorted({*before.archives, *after.archives}):
        try:
            yield from _archive(before, after, archive, on_error, content=content)
        except StoreError as error:
            on_error(archive.encode(), error)


def _archive(
    before: SnapshotContents,
    after: SnapshotContents,
    archive: str,
    on_error: OnError,
    *,
    content: bool,
) -> Iterator[Difference]:
    """One archive as a whole."""
    if archive not in before.archives or archive not in after.archives:
        letter = Letter.ADDED if archive in after.archives else Letter.REMOVED
        yield ArchiveChange(letter, archive.encode())
    elif archive.endswith((TREE, IMAGE)):
        yield from _located(before, after, archive, on_error, content=content)
    elif before.reader.read_blob(archive) != after.reader.read_blob(archive):
        yield ArchiveChange(Letter.MODIFIED, archive.encode())


def _located(
    before: SnapshotContents,
    after: SnapshotContents,
    where: str,
    on_error: OnError,
    *,
    content: bool,
) -> Iterator[Difference]:
    left, right = _place(before, where), _place(after, where)
    place = right or left
    if place is None:
        after.locate(where)
        raise NotFound(f"{where}: neither snapshot has it")
    if place.tree is not None:
        yield from _trees(left, right, place, on_error, content=content)
    elif left is None or right is None:
        letter = Letter.ADDED if right else Letter.REMOVED
        yield ArchiveChange(letter, place.archive.encode())
    elif place.archive.endswith(IMAGE):
        yield from _image(before, after, place.archive, content=content)
    elif before.reader.read_blob(place.archive) != after.reader.read_blob(place.archive):
        yield ArchiveChange(Letter.MODIFIED, place.archive.encode())


def _place(contents: SnapshotContents, where: str) -> Place | None:
    try:
        place = contents.locate(where)
        if place.tree is not None:
            spot_of(place, follow=False)
    except NotFound:
        return None
    return place


def _trees(
    left: Place | None, right: Place | None, place: Place, on_error: OnError, *, content: bool
) -> Iterator[Change]:
    """Compare what is at one path in two trees; at most one of them does not have it."""
    tree = place.tree
    assert tree is not None
    head = place.archive.encode()
    path = b"%b/%b" % (head, spot_of(place, follow=False).path)
    path = path.rstrip(b"/")
    before = left.tree if left and left.tree else tree
    after = right.tree if right and right.tree else tree
    diff = TreeDiff(before, after, on_error, content=content)
    if left is None or right is None:
        letter = Letter.ADDED if right else Letter.REMOVED
        yield from diff.one_sided(spot_of(place, follow=False).entry, path, letter)
        return
    entries = [spot_of(one, follow=False).entry for one in (left, right)]
    yield from diff.entries(entries[0], entries[1], path)


def _image(
    before: SnapshotContents, after: SnapshotContents, archive: str, *, content: bool
) -> Iterator[ArchiveChange]:
    left, right = before.reader.open_image(archive), after.reader.open_image(archive)
    comparable = have_comparable_digests(left, right)
    if not comparable and not content:
        raise InvalidName(
            f"{archive}: the snapshots have different keys or chunk sizes, "
            "so that their indexes do not tell; compare with --content"
        )
    stretches = tuple(differing(left, right, content=not comparable))
    if stretches:
        yield ArchiveChange(Letter.MODIFIED, archive.encode(), stretches)
