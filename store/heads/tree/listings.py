"""The names of a directory: first the base's that are left, then those that the head has.

A cookie below 2^62 is where the base's entry is; the others are the first bits of a name's hash,
in the order of which the head's names are listed. So a listing goes on wherever it was left.
"""

from collections.abc import Iterator

from store.heads.base import DirectoryEntry
from store.heads.database import ARCHIVE_SHIFT
from store.heads.tree.inodes import NO_BASE, Inode
from store.heads.tree.table import Table

OWN_NAMES = 1 << 62
PAGE = 256


def listing(table: Table, directory: Inode, after: int) -> Iterator[DirectoryEntry]:
    """The names behind a cookie. Called under the lock, step by step."""
    if after < OWN_NAMES:
        if directory.base != NO_BASE and table.base is not None:
            yield from _below(table, directory, after)
        after = 0
    yield from _own(table, directory, after)


def _below(table: Table, directory: Inode, after: int) -> Iterator[DirectoryEntry]:
    assert table.base is not None
    has_changes = directory.stored or directory.number in table.dirty
    entry = table.base.directory(directory.base)
    for position, name, child in table.base.children(entry, after):
        if has_changes and _is_changed(table, directory, name):
            continue
        yield DirectoryEntry(name, table.of_entry(child), position)


def _is_changed(table: Table, directory: Inode, name: bytes) -> bool:
    """Whether the head says what the name means, or that it is gone."""
    pending = (directory.number, name)
    if pending in table.dirty_names:
        return table.dirty_names[pending] is not None
    owner = table.archive << ARCHIVE_SHIFT | directory.number
    may_wait = not table.journal.hurry.now
    return table.journal.rows.name(owner, name, may_wait=may_wait) is not None


def _own(table: Table, directory: Inode, after: int) -> Iterator[DirectoryEntry]:
    known = table.directory(directory)
    if known.complete:
        yield from _at_hand(table, directory, after)
        return
    if table.dirty_names:
        table.journal.flush_some()
    owner = table.archive << ARCHIVE_SHIFT | directory.number
    last = _first_hash(after)
    while True:
        may_wait = not table.journal.hurry.now
        page = table.journal.rows.names(owner, last, PAGE, may_wait=may_wait)
        for hashed, number, name in page:
            last = hashed
            if number:
                yield DirectoryEntry(name, table.get(number), _cookie(hashed))
        if len(page) < PAGE:
            return


def _at_hand(table: Table, directory: Inode, after: int) -> Iterator[DirectoryEntry]:
    owner = table.archive << ARCHIVE_SHIFT | directory.number
    hash_name = table.journal.protection.hash_name
    names = table.directory(directory).names
    found = sorted((hash_name(owner, name), name) for name, number in names.items() if number)
    for hashed, name in found:
        cookie = _cookie(hashed)
        number = names.get(name)
        if cookie > after and number:
            yield DirectoryEntry(name, table.get(number), cookie)


def _cookie(hashed: bytes) -> int:
    return OWN_NAMES | int.from_bytes(hashed[:8], "big") >> 2


def _first_hash(after: int) -> bytes:
    """A hash that all of this cookie come before, or are."""
    if not after:
        return b""
    return ((after & (OWN_NAMES - 1)) << 2 | 3).to_bytes(8, "big") + b"\xff" * 8
