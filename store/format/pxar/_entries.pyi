from store.format.buffer import Buffer
from store.format.pxar.entries import Entry, EntryKind

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
