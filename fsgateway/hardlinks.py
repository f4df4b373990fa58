"""How many names each regular file of an archive has: st_nlink, which the format does not store.

A hard link names its target's offset, so a target's count needs all links of the archive. `cp -a`,
`tar` and `rsync -H` keep links only if the first name they meet already says more than one, so the
count comes before the first attribute. In a metadata stream (v2) the links are found by their item
type, at the speed of a byte search; a v1 archive is interleaved with the files' content, and there
its catalog says where links are.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from threading import Lock
from typing import Protocol

from store.errors import StoreError
from store.format.catalog import Catalog, CatalogEntry
from store.format.pxar.accessor import Accessor
from store.format.pxar.entries import Entry, EntryKind
from store.format.pxar.hardlinks import MAX_LINKS, Links, links_in_stream

__all__ = [
    "MAX_LINKS",
    "HasLinks",
    "LinkBudget",
    "Links",
    "links_in_catalog",
    "links_in_stream",
    "names_of",
]

log = logging.getLogger(__name__)

# Of 8 bytes each, of all archives together.
REMEMBERED_LINKS = 8 << 20
TIME_LIMIT_S = 10.0


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
