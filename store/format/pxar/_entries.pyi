from typing import overload

from store.format.buffer import Buffer
from store.format.pxar.entries import Entry, EntryKind

@overload
def children(
    entry_type: type[Entry],
    kinds: tuple[EntryKind | None, ...],
    window: Buffer,
    base: int,
    position: int,
    records: Buffer,
    table_start: int,
    content_item: int,
    /,
) -> tuple[list[Entry], int]: ...
@overload
def children(
    entry_type: None,
    kinds: None,
    window: Buffer,
    base: int,
    position: int,
    records: Buffer,
    table_start: int,
    content_item: int,
    /,
) -> tuple[bytes, int]: ...
def directory(
    window: Buffer, base: int, offset: int, end: int, content_item: int, /
) -> bytes | None: ...
def index(packed: Buffer, longest_name: int, /) -> tuple[bytes, bool, bool] | None: ...
