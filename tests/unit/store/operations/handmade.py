"""Archives made item by item, also such as no encoder would write, and snapshots of them."""

import hashlib
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from store.backends.memory import MemoryBackend
from store.datastore.archives import SnapshotReader
from store.datastore.workers import Workers
from store.errors import NotFound
from store.format.buffer import BytesReadAt
from store.format.pxar.accessor import Accessor
from store.format.pxar.encoder import Encoder
from store.format.pxar.entries import PAYLOAD_START, PAYLOAD_TAIL, payload_header
from store.format.pxar.items import (
    HEADER,
    PXAR_DEVICE,
    PXAR_ENTRY,
    PXAR_FILENAME,
    PXAR_GOODBYE,
    PXAR_GOODBYE_TAIL_MARKER,
    PXAR_HARDLINK,
    PXAR_PAYLOAD,
    PXAR_SYMLINK,
)
from store.format.pxar.metadata import Metadata, encode_metadata

TIME = 1_700_000_000
DIRECTORY, FILE, SYMLINK = 0o040755, 0o100644, 0o120777


def item(htype: int, content: bytes = b"") -> bytes:
    return HEADER.pack(htype, 16 + len(content)) + content


def entry(mode: int, *, uid: int = 0, gid: int = 0, flags: int = 0) -> bytes:
    return item(PXAR_ENTRY, struct.pack("<QQIIqII", mode, flags, uid, gid, TIME, 5, 0))


def name(text: bytes) -> bytes:
    return item(PXAR_FILENAME, text + b"\0")


def file(text: bytes, content: bytes = b"content", mode: int = FILE) -> bytes:
    return name(text) + entry(mode) + item(PXAR_PAYLOAD, content)


def symlink(text: bytes, target: bytes) -> bytes:
    return name(text) + entry(SYMLINK) + item(PXAR_SYMLINK, target + b"\0")


def device(text: bytes, mode: int, major: int, minor: int) -> bytes:
    return name(text) + entry(mode) + item(PXAR_DEVICE, struct.pack("<QQ", major, minor))


def hardlink(text: bytes, target: bytes, distance: int = 1) -> bytes:
    return name(text) + item(PXAR_HARDLINK, struct.pack("<Q", distance) + target + b"\0")


def directory(text: bytes, *children: bytes, mode: int = DIRECTORY) -> bytes:
    return name(text) + entry(mode) + b"".join(children) + goodbye()


def goodbye() -> bytes:
    """A table with nothing in it: a sequential reader does not look."""
    return item(PXAR_GOODBYE, struct.pack("<QQQ", PXAR_GOODBYE_TAIL_MARKER, 0, 40))


def archive(*children: bytes) -> bytes:
    return entry(DIRECTORY) + b"".join(children) + goodbye()


@dataclass
class Stream(BytesReadAt):
    """An IndexedStream over bytes, in chunks of `chunk` bytes. Zero chunks are known as such."""

    data: bytes
    chunk: int = 1 << 16
    broken_at: int | None = None
    reads: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.data)
        self.index = self

    def read(self, offset: int, size: int) -> bytes:
        self.reads.append(offset)
        self._fail(offset, offset + size)
        return super().read(offset, size)

    view = read

    def passed(self, offset: int) -> None:
        pass

    def workers(self) -> Workers:
        return Workers(MemoryBackend(), 2, "read-ahead")

    def chunks(
        self, start: int = 0, end: int | None = None, workers: Workers | None = None
    ) -> Iterator[memoryview]:
        end = len(self.data) if end is None else end
        while start < end:
            stop = min(end, (start // self.chunk + 1) * self.chunk)
            self._fail(start, stop)
            yield memoryview(self.data)[start:stop]
            start = stop

    def extents(self, offset: int, size: int) -> Iterator[tuple[int, int, bool]]:
        for start in range(offset, offset + size, self.chunk):
            stop = min(offset + size, start + self.chunk)
            yield start, stop - start, not any(self.data[start:stop])

    def position(self, offset: int) -> int:
        return offset // self.chunk

    def range(self, number: int) -> tuple[int, int]:
        return number * self.chunk, min(len(self.data), (number + 1) * self.chunk)

    def _fail(self, start: int, end: int) -> None:
        if self.broken_at is not None and start <= self.broken_at < end:
            from store.errors import IntegrityError

            raise IntegrityError("root.ppxar.didx: chunk 00: wrong digest")


@dataclass
class Snapshot:
    """A SnapshotReader over archives in memory."""

    trees: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.archives

    @property
    def archives(self) -> list[str]:
        return [*self.trees, *self.images, *self.blobs]

    def open_streams(self, archive_name: str) -> tuple[Any, Any]:
        return self.trees[archive_name]

    def open_tree(self, archive_name: str) -> Accessor:
        return Accessor(*self.trees[archive_name])

    def open_image(self, archive_name: str) -> Any:
        return self.images[archive_name]

    def read_blob(self, archive_name: str) -> bytes:
        if archive_name not in self.blobs:
            raise NotFound(archive_name)
        return self.blobs[archive_name]


def tree(metadata: bytes, payload: bytes | None = None) -> SnapshotReader:
    streams = (Stream(metadata), None if payload is None else Stream(payload))
    return Snapshot(trees={"root.pxar": streams})  # type: ignore[return-value]


class Builder:
    """A proper archive, v1 or split, with valid tables."""

    def __init__(self, *, split: bool) -> None:
        self.encoder = Encoder(split=split)
        self.split = split
        self.payload = PAYLOAD_START if split else b""
        self.offsets: dict[bytes, int] = {}
        self.out = io.BytesIO()
        self.out.write(self.encoder.begin(metadata(DIRECTORY)))

    def enter(self, text: bytes, raw: bytes | None = None) -> None:
        self.out.write(self.encoder.enter_directory(text, raw or metadata(DIRECTORY)))

    def leave(self) -> None:
        self.out.write(self.encoder.leave_directory())

    def file(self, text: bytes, content: bytes, raw: bytes | None = None) -> None:
        raw = raw or metadata(FILE)
        if self.split:
            self.out.write(self.encoder.file_ref(text, raw, len(self.payload), len(content)))
            self.payload += payload_header(len(content)) + content
        else:
            self.out.write(self.encoder.file(text, raw, len(content)))
            self.out.write(content)
        self.offsets[text] = self.encoder.last_offset

    def hardlink(self, text: bytes, target: bytes, path: bytes | None = None) -> None:
        self.out.write(self.encoder.hardlink(text, self.offsets[target], path or target))

    def symlink(self, text: bytes, target: bytes, raw: bytes | None = None) -> None:
        self.out.write(self.encoder.symlink(text, raw or metadata(SYMLINK), target))

    def snapshot(self) -> SnapshotReader:
        self.out.write(self.encoder.finish())
        return tree(self.out.getvalue(), self.payload + PAYLOAD_TAIL if self.split else None)


def metadata(mode: int, **facts: Any) -> bytes:
    return encode_metadata(Metadata(mode, **({"mtime_s": TIME, "mtime_ns": 7} | facts)))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
