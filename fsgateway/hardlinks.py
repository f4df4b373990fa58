"""How many names each regular file of an archive has: st_nlink, which the format does not store.

A hard link names its target's offset, so a target's count needs all links of the archive. `cp -a`,
`tar` and `rsync -H` keep links only if the first name they meet already says more than one, so the
count comes before the first attribute. In a metadata stream (v2) the links are found by their item
type, at the speed of a byte search; a v1 archive is interleaved with the files' content, and there
its catalog says where links are.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from struct import Struct

from store.errors import StoreError
from store.format.buffer import Buffer
from store.format.catalog import Catalog, CatalogEntry
from store.format.pxar.accessor import Accessor
from store.format.pxar.entries import Entry, EntryKind
from store.format.pxar.items import HEADER_SIZE, MAX_NAME_LENGTH, PXAR_FILENAME, PXAR_HARDLINK

log = logging.getLogger(__name__)

# Offset of a target's FILENAME item -> how many hard links point there.
Links = Counter[int]

TIME_LIMIT_S = 10.0
_ITEM = Struct("<QQ")
_DISTANCE = Struct("<Q")
_HARDLINK = _DISTANCE.pack(PXAR_HARDLINK)
_FILENAME = _DISTANCE.pack(PXAR_FILENAME)
_MAX_FILENAME = HEADER_SIZE + MAX_NAME_LENGTH + 1
_LINK_START = HEADER_SIZE + _DISTANCE.size


def links_in_stream(chunks: Iterable[Buffer]) -> Links:
    """Count the hard links of a metadata stream, given whole, in pieces of any size.

    An xattr's value that looks like FILENAME and HARDLINK items counts as well: that is one wrong
    st_nlink in an archive made to deceive, and nothing else.
    """
    links: Links = Counter()
    base, window, start = 0, b"", 0
    for chunk in chunks:
        window += bytes(chunk)
        links.update(_targets(window, base, start))
        start = max(start, len(window) - _LINK_START + 1)
        keep = max(0, start - _MAX_FILENAME)
        base, window, start = base + keep, window[keep:], start - keep
    return links


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
) -> Links:
    """Count the hard links of a v1 archive: the catalog has their paths, the archive their targets.

    Each costs a look into the archive; after ten seconds it goes on without the rest, which then
    show one name.
    """
    links: Links = Counter()
    deadline = clock() + TIME_LIMIT_S
    for path, entry in _walk(catalog, index_name):
        if clock() > deadline:
            log.warning("%s: not all hard links counted, it takes too long", index_name.decode())
            break
        if entry.kind == EntryKind.HARDLINK.value:
            links.update(_target(accessor, path + entry.name))
    return links


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
    return 1 + links.get(entry.offset, 0)
