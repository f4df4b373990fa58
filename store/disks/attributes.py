"""Metadata of guests' files as pxar items."""

import stat
from collections.abc import Iterable

from store.errors import FormatError
from store.format.pxar.acl import ACCESS_XATTR, DEFAULT_XATTR
from store.format.pxar.entries import (
    EntryKind,
    Metadata,
    acl_from_xattrs,
    encode_metadata,
    encode_stat,
)

# By the file type in st_mode.
KINDS = {
    stat.S_IFREG: EntryKind.FILE,
    stat.S_IFDIR: EntryKind.DIRECTORY,
    stat.S_IFLNK: EntryKind.SYMLINK,
    stat.S_IFCHR: EntryKind.CHAR_DEVICE,
    stat.S_IFBLK: EntryKind.BLOCK_DEVICE,
    stat.S_IFIFO: EntryKind.FIFO,
    stat.S_IFSOCK: EntryKind.SOCKET,
}
CAPABILITY = b"security.capability"
NAMESPACES = (b"user.", b"trusted.", b"security.")


def encode_attributes(
    mode: int,
    owner: tuple[int, int],
    mtime: tuple[int, int],
    xattrs: Iterable[tuple[bytes, bytes]] = (),
) -> bytes:
    """The pxar items of an inode; xattrs that pxar has no room for are left out, all of them.

    Args:
        mode: st_mode.
        owner: uid and gid.
        mtime: seconds, and nanoseconds below a second.
        xattrs: names and values as Linux has them, ACLs and capabilities among them.
    """
    plain = encode_stat(mode, 0, *owner, *mtime)
    found = dict(xattrs)
    if not found:
        return plain
    metadata = Metadata(mode, 0, *owner, *mtime)
    metadata.fcaps = found.pop(CAPABILITY, None)
    access, default = found.pop(ACCESS_XATTR, None), found.pop(DEFAULT_XATTR, None)
    metadata.xattrs = tuple(pair for pair in found.items() if pair[0].startswith(NAMESPACES))
    try:
        metadata.acl = acl_from_xattrs(access, default)
        return encode_metadata(metadata)
    except FormatError:
        return plain
