"""One entry of an archive, as both readers give it: name, kind, metadata, where its content is.

What users of pxar need beside it can be imported from here too: metadata, ACLs, payload headers.

Source: pxar src/lib.rs, src/accessor/mod.rs (spec 9.4, 9.5).
"""

from enum import Enum

from store.format.pxar.acl import Acl, DefaultAcl, acl_from_xattrs, acl_to_xattrs
from store.format.pxar.items import (
    HEADER_SIZE,
    PAYLOAD_START,
    PAYLOAD_TAIL,
    hash_name,
    name_is_valid,
    payload_header,
)
from store.format.pxar.metadata import Metadata, decode_metadata, encode_metadata, encode_stat

__all__ = [
    "PAYLOAD_START",
    "PAYLOAD_TAIL",
    "Acl",
    "DefaultAcl",
    "Entry",
    "EntryKind",
    "Metadata",
    "acl_from_xattrs",
    "acl_to_xattrs",
    "decode_metadata",
    "encode_metadata",
    "encode_stat",
    "hash_name",
    "name_is_valid",
    "payload_header",
]


class EntryKind(Enum):
    """What an entry is. The letter is the catalog's (spec 10)."""

    DIRECTORY = b"d"
    FILE = b"f"
    SYMLINK = b"l"
    HARDLINK = b"h"
    CHAR_DEVICE = b"c"
    BLOCK_DEVICE = b"b"
    FIFO = b"p"
    SOCKET = b"s"


class Entry:
    """One entry of an archive. Offsets are positions in it, of v2 in its metadata stream.

    name: raw bytes, b"" for the root; checked: 1 to 4096 bytes, no `/`, no NUL, not `.` or `..`.
    kind: from the mode, or HARDLINK.
    offset: of the FILENAME item; of the ENTRY item for the root.
    end: first byte after it, v1 content included. 0 for a directory met by the sequential decoder,
        which cannot know.
    raw_metadata: ENTRY and attribute items as stored; b"" for a hard link.
    target: of a symlink, or the path (from the archive root) that a hard link names.
    target_offset: of the FILENAME item that a hard link points to; checked to lie before the link.
    device: (major, minor).
    payload_offset: v1: of the content in the archive. v2: of the PAYLOAD header in the payload
        stream.
    size: of a file's content, in bytes; not yet compared with what is there.
    links: how many names a file has, where the tree knows it; 0 in an archive, which does not say.
    """

    __slots__ = (
        "_metadata",
        "device",
        "end",
        "kind",
        "links",
        "name",
        "offset",
        "payload_offset",
        "raw_metadata",
        "size",
        "target",
        "target_offset",
    )

    def __init__(
        self,
        name: bytes,
        kind: EntryKind,
        offset: int,
        end: int,
        raw_metadata: bytes,
        payload_offset: int = 0,
        size: int = 0,
        target: bytes = b"",
        target_offset: int = 0,
        device: tuple[int, int] = (0, 0),
        links: int = 0,
    ) -> None:
        self.name = name
        self.kind = kind
        self.offset = offset
        self.end = end
        self.raw_metadata = raw_metadata
        self.payload_offset = payload_offset
        self.size = size
        self.target = target
        self.target_offset = target_offset
        self.device = device
        self.links = links
        self._metadata: Metadata | None = None

    def __repr__(self) -> str:
        return f"Entry({self.name!r}, {self.kind.name}, at {self.offset})"

    @property
    def metadata(self) -> Metadata:
        """The decoded metadata, kept after the first use.

        Raises FormatError; always, for a hard link.
        """
        if self._metadata is None:
            self._metadata = decode_metadata(self.raw_metadata)
        return self._metadata

    @property
    def content_offset(self) -> int:
        """Of a directory: offset of the first child's FILENAME, or of GOODBYE if there is none."""
        return self.stat_offset + len(self.raw_metadata)

    @property
    def stat_offset(self) -> int:
        """Offset of the ENTRY item."""
        return self.offset + (HEADER_SIZE + len(self.name) + 1 if self.name else 0)
