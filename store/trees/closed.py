"""The metadata of a directory that is several: no more open than any of them was.

Whoever could not enter a directory when a file was in it does not get at the file because the
directory was opened, or given to him, later.
"""

from collections.abc import Sequence

from store.errors import FormatError
from store.format.pxar.entries import Metadata, decode_metadata, encode_stat
from store.format.pxar.items import ENTRY_SIZE

USER, GROUP, OTHER = 0o700, 0o070, 0o007
PERMISSIONS = USER | GROUP | OTHER
# Of an ENTRY item: in front type, mode and owners, behind it the attributes; mtime in between.
BEFORE_TIME = 40
NOBODYS = encode_stat(0o40000, 0, 0, 0, 0, 0)


def is_alike(raw: bytes, other: bytes) -> bool:
    """Whether two directories differ in nothing but their time."""
    return raw == other or (
        raw[:BEFORE_TIME] == other[:BEFORE_TIME] and raw[ENTRY_SIZE:] == other[ENTRY_SIZE:]
    )


def closed(raws: Sequence[bytes]) -> bytes:
    """The metadata to show for directories with these, the newest first, at least one.

    The newest's, if they are alike. Else its owner and time, with the permissions that all gave to
    the same owner and the same group. An ACL that changed leaves the owner's alone; metadata that
    cannot be decoded leaves none.
    """
    if all(is_alike(raws[0], raw) for raw in raws[1:]):
        return raws[0]
    try:
        every = [decode_metadata(raw) for raw in raws]
    except FormatError:
        return NOBODYS
    newest = every[0]
    mode = newest.mode & ~_withheld(newest, every)
    return encode_stat(mode, 0, newest.uid, newest.gid, newest.mtime_s, newest.mtime_ns)


def _withheld(newest: Metadata, every: Sequence[Metadata]) -> int:
    """The permission bits that not all of them give to the same people."""
    bits = 0
    for one in every:
        bits |= PERMISSIONS & ~one.mode
        if one.uid != newest.uid:
            bits |= USER
        if one.gid != newest.gid:
            bits |= GROUP
        if one.acl is not None and one.acl.has_access:
            bits |= GROUP | OTHER
    return bits
