"""Writing pxar archives, as one stream (v1) or as the metadata stream of a split pair (v2).

Source: pxar src/encoder/mod.rs (spec 9.4, 9.5, 9.7, 9.10).
"""

from collections.abc import Sequence
from itertools import accumulate
from operator import add
from struct import Struct

from store.errors import FormatError, InvalidName
from store.format.pxar.goodbye import GoodbyeBuilder
from store.format.pxar.items import (
    HEADER,
    HEADER_SIZE,
    MAX_NAME_LENGTH,
    MAX_TARGET_LENGTH,
    ONE_U64,
    PXAR_DEVICE,
    PXAR_FILENAME,
    PXAR_FORMAT_VERSION,
    PXAR_HARDLINK,
    PXAR_PAYLOAD,
    PXAR_PAYLOAD_REF,
    PXAR_PRELUDE,
    PXAR_SYMLINK,
    TWO_U64,
    encode_item,
    hash_name,
    name_is_valid,
)

EXCLUDE_CLI_NAME = b".pxarexclude-cli"

_AFTER_ALL_NAMES = b"\xff" * (MAX_NAME_LENGTH + 1)
_filename_header = HEADER.pack
_payload_ref = Struct("<QQQQ").pack
_put_u64 = Struct("<Q").pack_into


class _Directory:
    """An open directory: where it began, the last child's name, its table."""

    __slots__ = ("children", "last_name", "offset", "stat_offset")

    def __init__(self, offset: int, stat_offset: int) -> None:
        self.offset = offset
        self.stat_offset = stat_offset
        self.last_name = b""
        self.children = GoodbyeBuilder()


class Encoder:
    """Encodes one tree. Every call returns the bytes to append to the (metadata) stream.

    The payload stream of a split pair is the caller's: PAYLOAD_START, for each file its
    payload_header(size) and content, PAYLOAD_TAIL. Memory: 24 bytes per child of the open
    directories, and nothing of the others.

    `metadata` arguments come from encode_stat() or encode_metadata() and are trusted. Children come
    in ascending order of their raw names; only `.pxarexclude-cli` may come last in the root of a v1
    archive whatever the order. After an error nothing was appended; the entry may be left out.

    Attributes:
        position: length of the stream so far, v1 content included.
        last_offset: of the FILENAME item of the entry just written, for hard links to it.

    Raises (every method):
        InvalidName: a name that may not stand in an archive, or not after the one before.
        FormatError: calls in an impossible order, or a reference that no reader could follow.
    """

    def __init__(self, *, split: bool, prelude: bytes | None = None) -> None:
        if prelude is not None and not split:
            raise FormatError("a pxar archive of version 1 has no prelude")
        self.position = 0
        self.last_offset = 0
        self._split = split
        self._prelude = prelude
        self._payload_end = HEADER_SIZE
        self._open: list[_Directory] = []
        self._directory = _Directory(0, 0)
        self._started = False

    def begin(self, metadata: bytes) -> bytes:
        """Format version and prelude (split only), and the root directory's metadata."""
        if self._started:
            raise FormatError("pxar encoder: begun twice")
        self._started = True
        start = ONE_U64.pack(PXAR_FORMAT_VERSION, 24, 2) if self._split else b""
        if self._prelude is not None:
            start += encode_item(PXAR_PRELUDE, self._prelude)
        # The root's tail record points at the start of the stream, not at its ENTRY: a quirk that
        # readers rely on.
        self._open.append(self._directory)
        self.position = len(start) + len(metadata)
        return start + metadata

    def enter_directory(self, name: bytes, metadata: bytes) -> bytes:
        """FILENAME and metadata; what follows are its children, until leave_directory()."""
        self._check(name)
        offset = self.position
        item = _filename(name) + metadata
        self._directory = _Directory(offset, offset + len(item) - len(metadata))
        self._open.append(self._directory)
        self.last_offset = offset
        self.position += len(item)
        return item

    def leave_directory(self) -> bytes:
        """GOODBYE of the innermost open directory, which becomes a child of the one around it."""
        if len(self._open) < 2:
            raise FormatError("pxar encoder: no directory to leave")
        left = self._open.pop()
        goodbye = left.children.encode(self.position, left.stat_offset)
        self._directory = self._open[-1]
        self.position += len(goodbye)
        children = self._directory.children
        children.starts.append(left.offset)
        children.sizes.append(self.position - left.offset)
        return goodbye

    def finish(self) -> bytes:
        """GOODBYE of the root: the end of the archive."""
        if len(self._open) != 1:
            raise FormatError(
                f"pxar encoder: {len(self._open)} open directories at the end, expected the root"
            )
        goodbye = self._open.pop().children.encode(self.position, 0)
        self.position += len(goodbye)
        return goodbye

    def file(self, name: bytes, metadata: bytes, size: int) -> bytes:
        """A regular file of a v1 archive, up to the PAYLOAD header.

        The caller appends exactly `size` bytes of content itself; `position` counts them already.
        """
        if self._split:
            raise FormatError("pxar encoder: content has no place in a metadata stream")
        item = b"".join((_filename(name), metadata, HEADER.pack(PXAR_PAYLOAD, HEADER_SIZE + size)))
        return self._add(name, item, size, size)

    def file_ref(
        self, name: bytes, metadata: bytes, payload_offset: int, size: int, *, reused: bool = False
    ) -> bytes:
        """A regular file of a split archive.

        Args:
            name: as everywhere.
            metadata: as everywhere.
            payload_offset: of its PAYLOAD header in the payload stream; not before the end of the
                file before.
            size: of its content, in bytes.
            reused: its chunks are the previous snapshot's. Stock clients count the content in the
                goodbye table's size of newly encoded files only, and readers cope with both.
        """
        if not self._split or payload_offset < self._payload_end:
            raise FormatError(
                f"pxar encoder: payload reference {payload_offset}, not {self._payload_end} or more"
            )
        reference = _payload_ref(PXAR_PAYLOAD_REF, 32, payload_offset, size)
        item = b"".join(
            (_filename_header(PXAR_FILENAME, 17 + len(name)), name, b"\0", metadata, reference)
        )
        self._add(name, item, 0, 0 if reused else size)
        self._payload_end = payload_offset + HEADER_SIZE + size
        return item

    def file_refs(
        self,
        names: Sequence[bytes],
        items: bytearray,
        lengths: Sequence[int],
        payload_offsets: Sequence[int],
        sizes: Sequence[int],
    ) -> bytearray:
        """Regular files of a split archive, many at once, from the items another archive has.

        Args:
            names: in ascending order, as they are in the items: trusted.
            items: FILENAME, metadata, PAYLOAD_REF of each, one after the other: trusted, but for
                the payload offsets, which are overwritten.
            lengths: bytes of each file's items.
            payload_offsets, sizes: as for `file_ref`.
        """
        directory, children = self._directory, self._directory.children
        if not self._split or not self._open or names[0] <= directory.last_name:
            raise FormatError(f"pxar encoder: files from {names[0][:64]!r} on have no place here")
        position = 0
        for length, offset, size in zip(lengths, payload_offsets, sizes, strict=True):
            if offset < self._payload_end:
                raise FormatError(f"pxar encoder: payload reference {offset} goes back")
            position += length
            _put_u64(items, position - 16, offset)
            self._payload_end = offset + HEADER_SIZE + size
        starts = [*accumulate(lengths, initial=self.position)]
        children.hashes.extend(map(hash_name, names))
        children.starts.extend(starts[:-1])
        children.sizes.extend(map(add, lengths, sizes))
        directory.last_name = names[-1]
        self.last_offset, self.position = starts[-2:]
        return items

    def symlink(self, name: bytes, metadata: bytes, target: bytes) -> bytes:
        """A symbolic link; `target` is what readlink() gave."""
        _check_target(target)
        return self._add(
            name, b"".join((_filename(name), metadata, encode_item(PXAR_SYMLINK, target + b"\0")))
        )

    def device(self, name: bytes, metadata: bytes, major: int, minor: int) -> bytes:
        """A character or block device, as the mode says."""
        return self._add(
            name, b"".join((_filename(name), metadata, TWO_U64.pack(PXAR_DEVICE, 32, major, minor)))
        )

    def special(self, name: bytes, metadata: bytes) -> bytes:
        """A fifo or socket, as the mode says."""
        return self._add(name, _filename(name) + metadata)

    def hardlink(self, name: bytes, target_offset: int, target_path: bytes) -> bytes:
        """Another name of a regular file written before.

        Args:
            name: as everywhere.
            target_offset: `last_offset` after the file was written.
            target_path: its path from the archive root, without a leading slash.
        """
        _check_target(target_path)
        distance = self.position - target_offset
        if not 0 < distance <= self.position:
            raise FormatError(
                f"pxar encoder: hard link to {target_offset}, which is not before {self.position}"
            )
        content = b"%b%b\0" % (distance.to_bytes(8, "little"), target_path)
        return self._add(name, _filename(name) + encode_item(PXAR_HARDLINK, content))

    def _add(self, name: bytes, item: bytes, content: int = 0, counted: int = 0) -> bytes:
        """Note a child of the open directory.

        Args:
            name: checked here.
            item: its bytes, returned unchanged.
            content: bytes the caller appends after them.
            counted: bytes of content that the goodbye table's size includes.
        """
        self._check(name)
        offset = self.position
        directory = self._directory
        directory.children.starts.append(offset)
        directory.children.sizes.append(len(item) + counted)
        self.last_offset = offset
        self.position = offset + len(item) + content
        return item

    def _check(self, name: bytes) -> None:
        """Check a child's name and its place after the last one, and note both it and its hash."""
        directory = self._directory
        if not self._open:
            raise FormatError("pxar encoder: not begun, or finished")
        if not name_is_valid(name):
            raise InvalidName(f"{name[:64]!r} cannot be a name in a pxar archive")
        name_hash = hash_name(name)
        if name > directory.last_name:
            directory.last_name = name
        elif self._may_close_root(name) and name_hash not in directory.children.hashes:
            directory.last_name = _AFTER_ALL_NAMES
        else:
            raise InvalidName(
                f"{name[:64]!r} cannot follow {directory.last_name[:64]!r} in a pxar archive"
            )
        directory.children.hashes.append(name_hash)

    def _may_close_root(self, name: bytes) -> bool:
        """Whether this is the synthetic last file of a v1 archive, which ignores the order."""
        return name == EXCLUDE_CLI_NAME and not self._split and len(self._open) == 1


def _filename(name: bytes) -> bytes:
    return b"%b%b\0" % (HEADER.pack(PXAR_FILENAME, HEADER_SIZE + 1 + len(name)), name)


def _check_target(target: bytes) -> None:
    if len(target) > MAX_TARGET_LENGTH or b"\0" in target:
        raise InvalidName(f"{target[:64]!r} cannot be the target of a link in a pxar archive")
