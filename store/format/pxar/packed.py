"""Entries packed in one piece of bytes: a directory as it is kept and shown, whatever its size.

    record := kind u8 | lengths of name u16, target u16, metadata u32 | links u32
            | offset, end, payload_offset, size, target_offset, device major and minor u64
            | name | target | metadata

Integers are little-endian, kinds are numbered as in EntryKind. The format is ours: it is in memory,
in kept listings (`store.trees.kept_listings`), and in no archive. 150 bytes an entry, a third of
what an `Entry` takes, and C makes and reads them.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator
from struct import Struct, error
from typing import NamedTuple

from store import native
from store.errors import FormatError
from store.format.pxar.entries import Entry, EntryKind

RECORD = Struct("<BHHIIQQQQQQQ")
KINDS = tuple(EntryKind)
_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}
_SIZES = Struct("<BHHI")
_NAME_SIZE = Struct("<H")
_OFFSET = Struct("<Q")
_NAME_SIZE_AT, _OFFSET_AT = 1, 13
_HARDLINK = _NUMBERS[EntryKind.HARDLINK]


class Index(NamedTuple):
    """Where the records of a listing begin (u64 each), in order.

    ascends: each name is larger than the one before; so none is there twice.
    has_links: there are hard links.
    """

    starts: "array[int]"
    ascends: bool
    has_links: bool


def pack(entry: Entry, name: bytes | None = None) -> bytes:
    """One record, of another name if one is given.

    Raises FormatError: it has no room for this entry, which no archive has.
    """
    name = entry.name if name is None else name
    lengths = len(name), len(entry.target), len(entry.raw_metadata)
    numbers = entry.offset, entry.end, entry.payload_offset, entry.size, entry.target_offset
    try:
        head = RECORD.pack(_NUMBERS[entry.kind], *lengths, entry.links, *numbers, *entry.device)
    except error as reason:
        raise FormatError(f"{entry!r} does not fit a listing: {reason}") from reason
    return b"".join((head, name, entry.target, entry.raw_metadata))


def pack_all(entries: Iterable[Entry]) -> bytes:
    """A listing."""
    return b"".join(map(pack, entries))


def unpack(packed: bytes, start: int) -> Entry:
    """The entry whose record begins at `start`, as `index` gave it."""
    kind, name, target, metadata, links, *numbers = RECORD.unpack_from(packed, start)
    offset, end, payload_offset, size, target_offset, major, minor = numbers
    at_name = start + RECORD.size
    at_target = at_name + name
    at_metadata = at_target + target
    return Entry(
        packed[at_name:at_target],
        KINDS[kind],
        offset,
        end,
        packed[at_metadata : at_metadata + metadata],
        payload_offset,
        size,
        packed[at_target:at_metadata],
        target_offset,
        (major, minor),
        links,
    )


def unpack_all(packed: bytes) -> Iterator[Entry]:
    """All entries. Raises FormatError."""
    return (unpack(packed, start) for start in index(packed).starts)


def name_at(packed: bytes, start: int) -> bytes:
    """The name in the record that begins at `start`."""
    size = _NAME_SIZE.unpack_from(packed, start + _NAME_SIZE_AT)[0]
    begin = start + RECORD.size
    return packed[begin : begin + size]


def offset_at(packed: bytes, start: int) -> int:
    """The offset in it."""
    offset: int = _OFFSET.unpack_from(packed, start + _OFFSET_AT)[0]
    return offset


def index(packed: bytes, longest_name: int = 0xFFFF) -> Index:
    """Where the records begin; those of longer names are left out.

    Raises FormatError: this is no listing.
    """
    found = _index(packed, longest_name)
    if found is None:
        raise FormatError(f"a packed listing of {len(packed)} bytes is damaged")
    starts, ascends, has_links = found
    return Index(array("Q", starts), ascends, has_links)


_Found = tuple[bytes, bool, bool] | None


def index_slowly(packed: bytes, longest_name: int) -> _Found:
    """What `_entries.index` finds; None: it is no listing."""
    starts, before, position = array("Q"), b"", 0
    ascends, has_links = True, False
    while position < len(packed):
        if position + RECORD.size > len(packed):
            return None
        kind, name, target, metadata = _SIZES.unpack_from(packed, position)
        end = position + RECORD.size + name + target + metadata
        if kind >= len(KINDS) or end > len(packed):
            return None
        if name <= longest_name:
            found = name_at(packed, position)
            ascends &= before < found
            has_links |= kind == _HARDLINK
            before = found
            starts.append(position)
        position = end
    return starts.tobytes(), ascends, has_links


def _indexer() -> Callable[[bytes, int], _Found]:
    if not native.is_usable("store.format.pxar._entries"):
        return index_slowly
    from store.format.pxar import _entries

    return _entries.index


_index = _indexer()
