"""The two forms of a tree archive, behind one interface: the walker does not know which it feeds.

LegacyArchive: one stream `NAME.pxar.didx` (pxar v1), and the snapshot's catalog.
SplitArchive: metadata `NAME.mpxar.didx` and payload `NAME.ppxar.didx` (pxar v2), the latter with
re-use of earlier chunks.
"""

import os
import stat
from collections.abc import Callable, Iterable
from typing import Protocol

from store.format.buffer import Buffer
from store.format.catalog import CatalogWriter
from store.format.chunker import ChunkStream, KnownChunks, PayloadStream
from store.format.pxar.encoder import Encoder
from store.format.pxar.entries import Entry
from store.format.pxar.items import HEADER, HEADER_SIZE, PAYLOAD_START, PAYLOAD_TAIL, PXAR_PAYLOAD
from store.operations.backup.content import Stream
from store.operations.backup.listing import KIND_SIZE
from store.operations.backup.previous import UnchangedFiles, is_unchanged
from store.operations.backup.reuse import PayloadReuse

CATALOG_KINDS = {
    stat.S_IFLNK: b"l",
    stat.S_IFBLK: b"b",
    stat.S_IFCHR: b"c",
    stat.S_IFIFO: b"p",
    stat.S_IFSOCK: b"s",
}
GATHERED_ITEMS = 256


class Facts(Protocol):
    """What an archive needs of an inode beside its metadata; os.stat_result has it."""

    @property
    def st_mode(self) -> int: ...
    @property
    def st_size(self) -> int: ...
    @property
    def st_mtime_ns(self) -> int: ...
    @property
    def st_rdev(self) -> int: ...


Copy = Callable[[Stream], None]
"""Appends a file's content, `st_size` bytes, to a stream. Raises SourceError."""


class TreeArchive(Protocol):
    """Receives a tree, directories in order, names ascending. Metadata comes encoded.

    After an error from any method the archive is of no more use.
    """

    reused_bytes: int

    def begin(self, metadata: bytes) -> None: ...
    def enter_directory(self, name: bytes, metadata: bytes) -> None: ...
    def leave_directory(self) -> None: ...
    def file(self, name: bytes, metadata: bytes, info: Facts, old: Entry | None, copy: Copy) -> int:
        """Append a regular file; returns where its FILENAME item is.

        old: the previous archive's entry of this name, if there is one.
        """

    def unchanged(self, names: list[bytes], run: UnchangedFiles) -> int:
        """Append a run of files of the previous archive, whose `names` are from `read_names`.

        Returns how many: fewer than there are where the next one is better read again.
        """

    def generated(self, name: bytes, metadata: bytes, content: bytes) -> None:
        """Append a regular file whose content is in memory, with time 0."""

    def hardlink(self, name: bytes, target: int, path: bytes) -> None: ...
    def symlink(self, name: bytes, metadata: bytes, target: bytes) -> None: ...
    def special(self, name: bytes, metadata: bytes, info: Facts) -> None: ...
    def finish(self) -> None: ...


class _Items:
    """Gathers items on their way into a stream: a call costs more than the few bytes of one."""

    def __init__(self, stream: ChunkStream) -> None:
        self._stream = stream
        self._parts: list[Buffer] = []

    def write(self, items: Buffer) -> None:
        self._parts.append(items)
        if len(self._parts) >= GATHERED_ITEMS:
            self.flush()

    def flush(self) -> None:
        """Put all of them into the stream: content follows."""
        if self._parts:
            self._stream.write(b"".join(self._parts))
            self._parts.clear()


class LegacyArchive:
    """pxar v1 and catalog. All archives of a snapshot share the catalog, so its stream is given."""

    def __init__(
        self,
        index_name: str,
        stream: ChunkStream,
        catalog: CatalogWriter,
        catalog_stream: ChunkStream,
    ) -> None:
        self.reused_bytes = 0
        self._encoder = Encoder(split=False)
        self._stream, self._items = stream, _Items(stream)
        self._catalog, self._catalog_stream = catalog, catalog_stream
        self._index_name = os.fsencode(index_name)

    def begin(self, metadata: bytes) -> None:
        self._catalog.begin_archive(self._index_name)
        self._items.write(self._encoder.begin(metadata))

    def enter_directory(self, name: bytes, metadata: bytes) -> None:
        self._catalog.enter_directory(name)
        self._items.write(self._encoder.enter_directory(name, metadata))

    def leave_directory(self) -> None:
        self._catalog_stream.write(self._catalog.leave_directory())
        self._items.write(self._encoder.leave_directory())

    def file(self, name: bytes, metadata: bytes, info: Facts, old: Entry | None, copy: Copy) -> int:
        size = info.st_size
        self._items.write(self._encoder.file(name, metadata, size))
        if size:
            self._items.flush()
            copy(self._stream)
        self._catalog.file(name, size, info.st_mtime_ns // 1_000_000_000)
        return self._encoder.last_offset

    def unchanged(self, names: list[bytes], run: UnchangedFiles) -> int:
        return 0

    def generated(self, name: bytes, metadata: bytes, content: bytes) -> None:
        self._items.write(self._encoder.file(name, metadata, len(content)))
        self._items.write(content)
        self._catalog.file(name, len(content), 0)

    def hardlink(self, name: bytes, target: int, path: bytes) -> None:
        self._items.write(self._encoder.hardlink(name, target, path))
        self._catalog.other(b"h", name)

    def symlink(self, name: bytes, metadata: bytes, target: bytes) -> None:
        self._items.write(self._encoder.symlink(name, metadata, target))
        self._catalog.other(b"l", name)

    def special(self, name: bytes, metadata: bytes, info: Facts) -> None:
        self._items.write(_encode_special(self._encoder, name, metadata, info))
        self._catalog.other(CATALOG_KINDS[stat.S_IFMT(info.st_mode)], name)

    def finish(self) -> None:
        self._items.write(self._encoder.finish())
        self._items.flush()
        self._stream.finish()
        self._catalog_stream.write(self._catalog.end_archive())


class SplitArchive:
    """pxar v2: metadata here, contents there; what did not change keeps its old payload chunks."""

    def __init__(
        self,
        stream: ChunkStream,
        payload: PayloadStream,
        prelude: bytes | None,
        reuse: PayloadReuse | None,
    ) -> None:
        self.reused_bytes = 0
        self._encoder = Encoder(split=True, prelude=prelude)
        self._stream, self._items = stream, _Items(stream)
        self._payload, self._reuse = payload, reuse

    @property
    def last_offset(self) -> int:
        """Of the FILENAME item of the entry written last, a directory entered too."""
        return self._encoder.last_offset

    def begin(self, metadata: bytes) -> None:
        self._items.write(self._encoder.begin(metadata))
        if self._reuse is None:
            self._payload.write(PAYLOAD_START)

    def enter_directory(self, name: bytes, metadata: bytes) -> None:
        self._items.write(self._encoder.enter_directory(name, metadata))

    def leave_directory(self) -> None:
        self._items.write(self._encoder.leave_directory())

    def file(self, name: bytes, metadata: bytes, info: Facts, old: Entry | None, copy: Copy) -> int:
        size = info.st_size
        offset = self._place(old, metadata, size) if old is not None else None
        if offset is None:
            offset = self._begin_payload(size)
            if size:
                copy(self._payload)
        self._items.write(self._encoder.file_ref(name, metadata, offset, size))
        return self._encoder.last_offset

    def kept(self, name: bytes, metadata: bytes, old: Entry, copy: Copy) -> int:
        """Append a regular file whose content, not its metadata, is known to be that of `old`.

        It is read only if it is better stored anew. Returns as `file`.
        """
        offset = self._place_content(old, old.size)
        if offset is None:
            offset = self._begin_payload(old.size)
            if old.size:
                copy(self._payload)
        self._items.write(self._encoder.file_ref(name, metadata, offset, old.size))
        return self._encoder.last_offset

    def patched(
        self, name: bytes, metadata: bytes, size: int, parts: Iterable[Copy | KnownChunks]
    ) -> int:
        """Append a regular file of parts: bytes to copy, and payload chunks there are already.

        Together they have `size` bytes. The chunks have been touched. Returns as `file`.
        """
        offset = self._begin_payload(size)
        for part in parts:
            if callable(part):
                part(self._payload)
            else:
                self._payload.inject(part)
                self.reused_bytes += sum(chunk_size for _, chunk_size in part)
        self._items.write(self._encoder.file_ref(name, metadata, offset, size))
        return self._encoder.last_offset

    def unchanged(self, names: list[bytes], run: UnchangedFiles) -> int:
        if self._reuse is None:
            return 0
        places = self._reuse.place_all(run.payloads, run.sizes)
        count = len(places)
        if count:
            lengths, sizes = run.lengths[:count], run.sizes[:count]
            items = bytearray(run.items[: sum(lengths)])
            plain = [name[:-KIND_SIZE] for name in names[: -count - 1 : -1]]
            self._items.write(self._encoder.file_refs(plain, items, lengths, places, sizes))
            self.reused_bytes += sum(sizes)
        return count

    def generated(self, name: bytes, metadata: bytes, content: bytes) -> None:
        offset = self._begin_payload(len(content))
        self._payload.write(content)
        self._items.write(self._encoder.file_ref(name, metadata, offset, len(content)))

    def hardlink(self, name: bytes, target: int, path: bytes) -> None:
        self._items.write(self._encoder.hardlink(name, target, path))

    def symlink(self, name: bytes, metadata: bytes, target: bytes) -> None:
        self._items.write(self._encoder.symlink(name, metadata, target))

    def special(self, name: bytes, metadata: bytes, info: Facts) -> None:
        self._items.write(_encode_special(self._encoder, name, metadata, info))

    def finish(self) -> None:
        self._items.write(self._encoder.finish())
        self._items.flush()
        self._stream.finish()
        if self._payload.position == 0:
            self._payload.write(PAYLOAD_START)
        if self._reuse is None or not self._reuse.ends_with_marker():
            self._payload.write(PAYLOAD_TAIL)
        self._payload.finish()

    def _place(self, old: Entry, metadata: bytes, size: int) -> int | None:
        """Where the payload of an unchanged file is in the new stream; None: read the file."""
        return self._place_content(old, size) if is_unchanged(old, metadata, size) else None

    def _place_content(self, old: Entry, size: int) -> int | None:
        if self._reuse is None:
            return None
        offset = self._reuse.place(old.payload_offset, HEADER_SIZE + size)
        if offset is not None:
            self.reused_bytes += size
        return offset

    def _begin_payload(self, size: int) -> int:
        if self._payload.position == 0:
            self._payload.write(PAYLOAD_START)
        if self._reuse is not None:
            self._reuse.count(HEADER_SIZE + size)
        self._payload.suggest()
        offset = self._payload.position
        self._payload.write(HEADER.pack(PXAR_PAYLOAD, HEADER_SIZE + size))
        return offset


def _encode_special(encoder: Encoder, name: bytes, metadata: bytes, info: Facts) -> bytes:
    if stat.S_ISBLK(info.st_mode) or stat.S_ISCHR(info.st_mode):
        return encoder.device(name, metadata, os.major(info.st_rdev), os.minor(info.st_rdev))
    return encoder.special(name, metadata)
