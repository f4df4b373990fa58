"""How many names each regular file of an archive has: st_nlink, which the format does not store.

A hard link names its target's offset, so a target's count needs all links of the archive. `cp -a`,
`tar` and `rsync -H` keep links only if the first name they meet already says more than one, so the
count comes before the first attribute. In a metadata stream (v2) the links are found by their item
type, at the speed of a byte search; a v1 archive is interleaved with the files' content, and there
its catalog says where links are.
"""

import logging
import time
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from heapq import merge
from itertools import islice
from struct import Struct
from threading import Lock
from typing import Protocol

from store.errors import StoreError
from store.format.buffer import Buffer
from store.format.catalog import Catalog, CatalogEntry
from store.format.pxar.accessor import Accessor
from store.format.pxar.entries import Entry, EntryKind
from store.format.pxar.items import HEADER_SIZE, MAX_NAME_LENGTH, PXAR_FILENAME, PXAR_HARDLINK

log = logging.getLogger(__name__)

# Of 8 bytes each: what one archive may remember, and all of them together.
MAX_LINKS = 4 << 20
REMEMBERED_LINKS = 8 << 20
# So many are sorted at once, as Python's integers.
RUN = 64 << 10
TIME_LIMIT_S = 10.0
_ITEM = Struct("<QQ")
_DISTANCE = Struct("<Q")
_HARDLINK = _DISTANCE.pack(PXAR_HARDLINK)
_FILENAME = _DISTANCE.pack(PXAR_FILENAME)
_MAX_FILENAME = HEADER_SIZE + MAX_NAME_LENGTH + 1
_LINK_START = HEADER_SIZE + _DISTANCE.size


class Links:
    """How many hard links point to each file of an archive: their targets, sorted."""

    __slots__ = ("_targets",)

    def __init__(self, targets: Iterable[int] = ()) -> None:
        """`targets`: for each link the offset of its target's FILENAME item.

        Those past MAX_LINKS are not counted.
        """
        rest, runs = islice(targets, MAX_LINKS), []
        while run := array("Q", sorted(islice(rest, RUN))):
            runs.append(run)
        self._targets = array("Q", merge(*runs)) if len(runs) > 1 else (runs or [array("Q")])[0]

    def __len__(self) -> int:
        return len(self._targets)

    def count(self, offset: int) -> int:
        """How many links point to the file whose FILENAME item is at `offset`."""
        first = bisect_left(self._targets, offset)
        return bisect_right(self._targets, offset, first) - first


class HasLinks(Protocol):
    """An archive that remembers its links."""

    def forget_links(self) -> None:
        """Count them again when they are asked for."""


class LinkBudget:
    """The archives that remember their links: those counted last, within `limit` links in all.

    Thread-safe.
    """

    def __init__(self, limit: int = REMEMBERED_LINKS) -> None:
        self._limit = limit
        self._used = 0
        self._kept: OrderedDict[HasLinks, int] = OrderedDict()
        self._lock = Lock()

    def keep(self, archive: HasLinks, links: Links) -> None:
        """`archive` remembers `links` from now on; the oldest others forget theirs for it."""
        with self._lock:
            self._used += len(links) - self._kept.pop(archive, 0)
            self._kept[archive] = len(links)
            while self._used > self._limit and len(self._kept) > 1:
                oldest, count = self._kept.popitem(last=False)
                self._used -= count
                oldest.forget_links()


def links_in_stream(chunks: Iterable[Buffer]) -> Iterator[int]:
    """The targets of all hard links of a metadata stream, given whole, in pieces of any size.

    An xattr's value that looks like FILENAME and HARDLINK items counts as well: that is one wrong
    st_nlink in an archive made to deceive, and nothing else.
    """
    base, window, start = 0, b"", 0
    for chunk in chunks:
        window += bytes(chunk)
        yield from _targets(window, base, start)
        start = max(start, len(window) - _LINK_START + 1)
        keep = max(0, start - _MAX_FILENAME)
        base, window, start = base + keep, window[keep:], start - keep


def _targets(window: bytes, base: int, start: int) -> Iterator[int]:
    """Targets of the links that begin at window[start] or later and are there whole."""
    last = len(window) - _LINK_START
    position = window.find(_HARDLINK, start)
    while 0 <= position <= last:
        name = _name_before(window, position)
        distance = _DISTANCE.unpack_from(window, position + HEADER_SIZE)[0]
        if name is not None and 0 < distance <= base + name:
            yield base + name - distance
        position = window.find(_HARDLINK, position + 1)


def _name_before(window: bytes, position: int) -> int | None:
    """Where the FILENAME item starts that ends at `position`."""
    name = window.rfind(_FILENAME, max(0, position - _MAX_FILENAME), position)
    while name >= 0:
        if name + _ITEM.unpack_from(window, name)[1] == position:
            return name
        name = window.rfind(_FILENAME, max(0, position - _MAX_FILENAME), name)
    return None


def links_in_catalog(
    catalog: Catalog,
    index_name: bytes,
    accessor: Accessor,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[int]:
    """The targets of a v1 archive's hard links: the catalog has their paths, the archive the rest.

    Each costs a look into the archive; after ten seconds it goes on without the rest, which then
    show one name.
    """
    if not catalog.may_have_links():
        return
    deadline = clock() + TIME_LIMIT_S
    for path, entry in _walk(catalog, index_name):
        if clock() > deadline:
            log.warning("%s: not all hard links counted, it takes too long", index_name.decode())
            break
        if entry.kind == EntryKind.HARDLINK.value:
            yield from _target(accessor, path + entry.name)


def _target(accessor: Accessor, path: bytes) -> Iterator[int]:
    try:
        entry = accessor.resolve(path)
    except StoreError as error:
        log.debug("hard link %r: %s", path, error)
        return
    if entry.kind is EntryKind.HARDLINK:
        yield entry.target_offset


def _walk(catalog: Catalog, index_name: bytes) -> Iterator[tuple[bytes, CatalogEntry]]:
    """Everything in one archive's part of the catalog, with the path of its directory."""
    roots = [entry for entry in catalog.archives() if entry.name == index_name]
    stack: list[tuple[bytes, CatalogEntry]] = [(b"", entry) for entry in roots]
    while stack:
        path, directory = stack.pop()
        for entry in catalog.list(directory):
            yield path, entry
            if entry.kind == EntryKind.DIRECTORY.value:
                stack.append((path + entry.name + b"/", entry))


def names_of(entry: Entry, links: Links) -> int:
    """st_nlink of a regular file."""
    return entry.links or (1 + links.count(entry.offset) if links else 1)
