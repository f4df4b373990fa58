"""One golden snapshot read through the format layer alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from store.format.blob import decode_blob, decode_chunk
from store.format.crypt import CryptConfig
from store.format.dynamic_index import DynamicIndex
from store.format.fixed_index import FixedIndex
from store.format.manifest import CryptMode, Manifest
from store.names import Digest


@dataclass(frozen=True)
class StoredSnapshot:
    """One snapshot directory that a real PBS wrote, and the chunk directory beside it."""

    path: Path
    chunks: Path
    keys: tuple[CryptConfig, ...]

    @property
    def manifest_text(self) -> bytes:
        return decode_blob((self.path / "index.json.blob").read_bytes())

    @property
    def manifest(self) -> Manifest:
        return Manifest.decode(self.manifest_text)

    @property
    def key(self) -> CryptConfig | None:
        fingerprint = self.manifest.key_fingerprint
        return next((key for key in self.keys if key.fingerprint == fingerprint), None)

    def index(self, filename: str) -> FixedIndex | DynamicIndex:
        kind = FixedIndex if filename.endswith(".fidx") else DynamicIndex
        return kind((self.path / filename).read_bytes())

    def chunk(self, digest: Digest) -> bytes:
        return (self.chunks / digest.hex()[:4] / digest.hex()).read_bytes()

    def stream(self, filename: str) -> Iterator[bytes]:
        """Every chunk of one archive, decoded and verified."""
        index = self.index(filename)
        encrypted = self.manifest.file(filename).crypt_mode is CryptMode.ENCRYPT
        for position, digest in enumerate(index.digests()):
            start, end = index.range(position)
            raw = self.chunk(digest)
            yield decode_chunk(raw, self.key, digest, end - start, encrypted=encrypted)
