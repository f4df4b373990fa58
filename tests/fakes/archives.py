"""Small snapshots made with the store's own pieces: an image, a blob, a tree in either format."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from store.datastore.datastore import Datastore
from store.datastore.snapshots import SnapshotWriter
from store.format.blob import encode_blob, encode_blob_parts
from store.format.crypt import CryptConfig, chunk_digest
from store.format.manifest import CryptMode, FileInfo, Manifest
from store.format.pxar.encoder import Encoder
from store.format.pxar.entries import encode_stat, payload_header
from store.format.pxar.items import PAYLOAD_START, PAYLOAD_TAIL
from store.names import Digest, Namespace, Snapshot

IMAGE_CHUNK = 4 << 20


@dataclass
class Builder:
    """Adds archives to one snapshot."""

    writer: SnapshotWriter
    snapshot: Snapshot
    key: CryptConfig | None = None
    files: list[FileInfo] = field(default_factory=list)

    @property
    def mode(self) -> CryptMode:
        return CryptMode.ENCRYPT if self.key else CryptMode.NONE

    def chunk(self, plain: bytes) -> Digest:
        digest = chunk_digest(plain, self.key)
        header, body = encode_blob_parts(plain, self.key, iv=bytes(16) if self.key else None)
        self.writer.insert_chunk(digest, header, body, len(plain))
        return digest

    def image(self, name: str, data: bytes) -> None:
        filename = f"{name}.fidx"
        index = self.writer.create_fixed_index(filename, len(data))
        for number, start in enumerate(range(0, len(data), IMAGE_CHUNK)):
            index.set(number, self.chunk(data[start : start + IMAGE_CHUNK]))
        self.add_index(filename, len(data), index.close())

    def stream(self, filename: str, data: bytes, chunk: int = 1 << 20) -> None:
        index = self.writer.create_dynamic_index(filename)
        for start in range(0, len(data), chunk):
            piece = data[start : start + chunk]
            index.add(start + len(piece), self.chunk(piece))
        self.add_index(filename, len(data), index.close())

    def add_index(self, filename: str, size: int, csum: bytes) -> None:
        """Name a finished index in the manifest."""
        self.files.append(FileInfo(filename, self.mode, size, csum))

    def blob(self, name: str, data: bytes) -> None:
        raw = encode_blob(data, self.key, iv=bytes(16) if self.key else None)
        self.writer.add_blob(f"{name}.blob", raw)
        csum = hashlib.sha256(raw).digest()
        self.files.append(FileInfo(f"{name}.blob", self.mode, len(raw), csum))

    def split_tree(self, stem: str, tree: "SplitTree", chunk: int = 1 << 20) -> None:
        metadata, payload = tree.finish()
        self.stream(f"{stem}.ppxar.didx", payload, chunk)
        self.stream(f"{stem}.mpxar.didx", metadata, chunk)


class SplitTree:
    """A v2 archive being written into memory."""

    def __init__(self) -> None:
        self.encoder = Encoder(split=True)
        self.metadata = io.BytesIO()
        self.payload = io.BytesIO()
        self.payload.write(PAYLOAD_START)
        self.add(self.encoder.begin(stat(0o40755)))

    def add(self, items: bytes) -> None:
        self.metadata.write(items)

    def file(self, name: bytes, content: bytes, metadata: bytes | None = None) -> int:
        """Returns where its content is in the payload stream."""
        offset = self.payload.tell()
        self.payload.write(payload_header(len(content)) + content)
        raw = stat(0o100644) if metadata is None else metadata
        self.add(self.encoder.file_ref(name, raw, offset, len(content)))
        return offset + 16

    def enter(self, name: bytes, metadata: bytes | None = None) -> None:
        raw = stat(0o40755) if metadata is None else metadata
        self.add(self.encoder.enter_directory(name, raw))

    def leave(self) -> None:
        self.add(self.encoder.leave_directory())

    def finish(self) -> tuple[bytes, bytes]:
        self.add(self.encoder.finish())
        return self.metadata.getvalue(), self.payload.getvalue() + PAYLOAD_TAIL


def stat(mode: int, uid: int = 0, gid: int = 0, mtime_s: int = 1_700_000_000) -> bytes:
    return encode_stat(mode, 0, uid, gid, mtime_s, 0)


@contextmanager
def snapshot(
    datastore: Datastore,
    name: str,
    key: CryptConfig | None = None,
    namespace: Namespace = Namespace(),  # noqa: B008 - frozen
) -> Iterator[Builder]:
    """Write the snapshot `name` (type/id/time); it is finished when the block is left."""
    ident = Snapshot.parse(name)
    with datastore.begin_snapshot(namespace, ident) as writer:
        builder = Builder(writer, ident, key)
        yield builder
        manifest = Manifest(ident, tuple(builder.files))
        writer.finish(manifest.signed(key) if key else manifest)
