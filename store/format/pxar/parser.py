"""From items to entries: what both readers do with the bytes in front of them.

    child := FILENAME ( dir_entry
                      | metadata ( PAYLOAD | PAYLOAD_REF | SYMLINK | DEVICE )
                      | metadata                                 fifo, socket
                      | HARDLINK )                               no metadata at all

Source: pxar src/decoder/mod.rs (spec 9.4, 9.5).
"""

import struct
from collections.abc import Callable
from struct import Struct

from store.errors import FormatError
from store.format.pxar.entries import Entry, EntryKind
from store.format.pxar.goodbye import check_goodbye_size
from store.format.pxar.items import (
    ENTRY_SIZE,
    ENTRY_V1_SIZE,
    FORBIDDEN_NAMES,
    HEADER,
    HEADER_SIZE,
    MAX_METADATA_SIZE,
    MAX_NAME_LENGTH,
    MAX_STREAM_SIZE,
    MAX_TARGET_LENGTH,
    PXAR_DEVICE,
    PXAR_ENTRY,
    PXAR_ENTRY_V1,
    PXAR_FILENAME,
    PXAR_GOODBYE,
    PXAR_HARDLINK,
    PXAR_PAYLOAD,
    PXAR_SYMLINK,
    item_error,
    name_is_valid,
)
from store.format.pxar.metadata import ATTRIBUTE_SIZES

# st_mode >> 12 of the kinds that have a mode; a mode with any higher bit finds nothing here.
_KIND_OF_MODE = {
    0o01: EntryKind.FIFO,
    0o02: EntryKind.CHAR_DEVICE,
    0o04: EntryKind.DIRECTORY,
    0o06: EntryKind.BLOCK_DEVICE,
    0o10: EntryKind.FILE,
    0o12: EntryKind.SYMLINK,
    0o14: EntryKind.SOCKET,
}
KINDS = tuple(map(_KIND_OF_MODE.get, range(16)))
_STAT_SIZES = {PXAR_ENTRY: ENTRY_SIZE, PXAR_ENTRY_V1: ENTRY_V1_SIZE}
_MAX_FILENAME_ITEM = HEADER_SIZE + MAX_NAME_LENGTH + 1
_MAX_DEVICE_NUMBER = 0xFFFF_FFFF

_unpack_header = HEADER.unpack_from
_unpack_header_u64 = Struct("<QQQ").unpack_from
_unpack_pair = Struct("<QQ").unpack_from
_unpack_u64 = Struct("<Q").unpack_from


class Incomplete(Exception):
    """The buffer ends inside an entry: never seen outside this package.

    `end`: archive offset up to which there must be bytes before it is worth trying again; at least
    one more than there were.
    """

    def __init__(self, end: int) -> None:
        super().__init__(end)
        self.end = end


class EntryParser:
    """Parses the entries in a stretch of an archive.

    Args:
        buffer: the stretch.
        base: archive offset of buffer[0].
        content_item: PAYLOAD in a v1 archive, PAYLOAD_REF in a metadata stream.

    Raises (every method):
        Incomplete: the buffer is too short; after a directory, fifo or socket it must also have the
            header of the item that follows.
        FormatError: something the format does not allow there.
    """

    __slots__ = ("_base", "_buffer", "_content_item")

    def __init__(self, buffer: bytes, base: int, content_item: int) -> None:
        self._buffer = buffer
        self._base = base
        self._content_item = content_item

    def root(self) -> Entry:
        """The root directory, whose ENTRY item starts the buffer. Its `end` is 0."""
        try:
            htype, size, mode = _unpack_header_u64(self._buffer, 0)
        except struct.error:
            raise Incomplete(self._base + HEADER_SIZE + 8) from None
        kind = self._kind(0, htype, size, mode)
        if kind is not EntryKind.DIRECTORY:
            raise FormatError(f"pxar archive: the root has mode {mode:#o}, expected a directory")
        end, _, _ = self._after_metadata(0, size)
        return Entry(b"", kind, self._base, 0, self._buffer[:end])

    def child(self, position: int) -> Entry:
        """The child whose FILENAME item stands at `position` in the buffer, up to its content.

        Checked is everything but the values in its metadata. `end` is what its items say; that of
        a directory is 0.
        """
        buffer = self._buffer
        try:
            htype, size = _unpack_header(buffer, position)
            if htype != PXAR_FILENAME or not HEADER_SIZE + 2 <= size <= _MAX_FILENAME_ITEM:
                raise self._unexpected(position, "FILENAME")
            start = position + size
            htype, size, mode = _unpack_header_u64(buffer, start)
        except struct.error:
            raise self._incomplete_name(position) from None
        name = buffer[position + HEADER_SIZE : start - 1]
        if b"/" in name or b"\0" in name or name in FORBIDDEN_NAMES or buffer[start - 1]:
            raise FormatError(
                f"pxar archive: forbidden name {name[:64]!r} at {self._base + position}"
            )
        if htype == PXAR_HARDLINK:
            return self._hardlink(name, position, start)
        kind = self._kind(start, htype, size, mode)
        end, htype, size = self._after_metadata(start, size)
        return _CONTENT[kind](self, name, kind, position, buffer[start:end], end, htype, size)

    def goodbye_size(self, position: int) -> int:
        """Full size of the GOODBYE item that stands at `position`; 0 when another item does."""
        try:
            htype, size = _unpack_header(self._buffer, position)
        except struct.error:
            raise Incomplete(self._base + position + HEADER_SIZE) from None
        if htype != PXAR_GOODBYE:
            return 0
        check_goodbye_size(self._base + position, size)
        return int(size)

    def _kind(self, position: int, htype: int, size: int, mode: int) -> EntryKind:
        """Check an ENTRY or ENTRY_V1 item; the kind that its mode says."""
        if _STAT_SIZES.get(htype) != size:
            raise self._unexpected(position, "ENTRY")
        kind = _KIND_OF_MODE.get(mode >> 12)
        if kind is None:
            raise FormatError(
                f"pxar archive: mode {mode:#o} at {self._base + position} is of no file type"
            )
        return kind

    def _after_metadata(self, start: int, size: int) -> tuple[int, int, int]:
        """Position, type and full size of the first item after the stat item and its attributes."""
        position = start + size
        while True:
            try:
                htype, size = _unpack_header(self._buffer, position)
            except struct.error:
                raise Incomplete(self._base + position + HEADER_SIZE) from None
            limits = ATTRIBUTE_SIZES.get(htype)
            if limits is None:
                return position, htype, size
            if not limits[0] <= size <= limits[1]:
                raise self._unexpected(position, "an attribute of a valid size")
            position += size
            if position - start > MAX_METADATA_SIZE:
                raise FormatError(f"pxar archive: endless metadata at {self._base + start}")

    def _file(
        self,
        name: bytes,
        kind: EntryKind,
        position: int,
        raw_metadata: bytes,
        end: int,
        htype: int,
        size: int,
    ) -> Entry:
        offset, end = self._base + position, self._base + end
        if htype != self._content_item or not HEADER_SIZE <= size <= MAX_STREAM_SIZE:
            raise self._unexpected(end - self._base, "the file's content")
        if htype == PXAR_PAYLOAD:
            content = size - HEADER_SIZE
            return Entry(name, kind, offset, end + size, raw_metadata, end + HEADER_SIZE, content)
        payload_offset, content = self._pair(end - self._base, size)
        if max(payload_offset, content) > MAX_STREAM_SIZE:
            raise FormatError(f"pxar archive: content of {content} bytes at {payload_offset}")
        return Entry(name, kind, offset, end + size, raw_metadata, payload_offset, content)

    def _symlink(
        self,
        name: bytes,
        kind: EntryKind,
        position: int,
        raw_metadata: bytes,
        end: int,
        htype: int,
        size: int,
    ) -> Entry:
        if htype != PXAR_SYMLINK:
            raise self._unexpected(end, "SYMLINK")
        target = self._text(end, HEADER_SIZE, size)
        offset = self._base + position
        return Entry(name, kind, offset, self._base + end + size, raw_metadata, target=target)

    def _device(
        self,
        name: bytes,
        kind: EntryKind,
        position: int,
        raw_metadata: bytes,
        end: int,
        htype: int,
        size: int,
    ) -> Entry:
        if htype != PXAR_DEVICE:
            raise self._unexpected(end, "DEVICE")
        device = self._pair(end, size)
        if max(device) > _MAX_DEVICE_NUMBER:
            raise FormatError(f"pxar archive: device {device} at {self._base + end}")
        offset = self._base + position
        return Entry(name, kind, offset, self._base + end + size, raw_metadata, device=device)

    def _bare(
        self,
        name: bytes,
        kind: EntryKind,
        position: int,
        raw_metadata: bytes,
        end: int,
        htype: int,
        _size: int,
    ) -> Entry:
        """A directory, fifo or socket: nothing of its own follows."""
        if htype not in (PXAR_FILENAME, PXAR_GOODBYE):
            raise self._unexpected(end, "FILENAME or GOODBYE")
        known_end = 0 if kind is EntryKind.DIRECTORY else self._base + end
        return Entry(name, kind, self._base + position, known_end, raw_metadata)

    def _hardlink(self, name: bytes, position: int, start: int) -> Entry:
        """HARDLINK at `start`: distance u64 back to the target's FILENAME, then its path."""
        _, size, distance = _unpack_header_u64(self._buffer, start)
        path = self._text(start, HEADER_SIZE + 8, size)
        offset = self._base + position
        if not 0 < distance <= offset or not all(map(name_is_valid, path.split(b"/"))):
            raise FormatError(
                f"pxar archive: hard link at {offset} to {path[:64]!r}, {distance} bytes back"
            )
        end = self._base + start + size
        target_offset = offset - distance
        kind = EntryKind.HARDLINK
        return Entry(name, kind, offset, end, b"", target=path, target_offset=target_offset)

    def _text(self, position: int, skip: int, size: int) -> bytes:
        """What follows the first `skip` bytes of an item, without the NUL that must end it."""
        if not skip < size <= skip + MAX_TARGET_LENGTH + 1:
            raise self._unexpected(position, "a link's target of a valid size")
        end = position + size
        if len(self._buffer) < end:
            raise Incomplete(self._base + end)
        text = self._buffer[position + skip : end]
        if text.find(b"\0") != len(text) - 1:
            raise FormatError(
                f"pxar archive: link's target at {self._base + position} not ended by its only NUL"
            )
        return text[:-1]

    def _pair(self, position: int, size: int) -> tuple[int, int]:
        """The two integers that an item has for content."""
        if size != HEADER_SIZE + 16:
            raise self._unexpected(position, "two integers")
        try:
            first, second = _unpack_pair(self._buffer, position + HEADER_SIZE)
        except struct.error:
            raise Incomplete(self._base + position + size) from None
        return first, second

    def _incomplete_name(self, position: int) -> Incomplete:
        """What it takes to read the name and the start of what follows."""
        needed = HEADER_SIZE
        if len(self._buffer) >= position + HEADER_SIZE:
            needed += 8 + _unpack_u64(self._buffer, position + 8)[0]
        return Incomplete(self._base + position + needed)

    def _unexpected(self, position: int, expected: str) -> FormatError:
        htype, size = _unpack_header(self._buffer, position)
        return item_error(self._base + position, htype, size, expected)


_Content = Callable[[EntryParser, bytes, EntryKind, int, bytes, int, int, int], Entry]

_CONTENT: dict[EntryKind, _Content] = {
    EntryKind.FILE: EntryParser._file,
    EntryKind.SYMLINK: EntryParser._symlink,
    EntryKind.CHAR_DEVICE: EntryParser._device,
    EntryKind.BLOCK_DEVICE: EntryParser._device,
    EntryKind.DIRECTORY: EntryParser._bare,
    EntryKind.FIFO: EntryParser._bare,
    EntryKind.SOCKET: EntryParser._bare,
}
