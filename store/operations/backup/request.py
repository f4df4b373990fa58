"""What a backup is asked to do, and what it did."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from store.datastore.datastore import Datastore
from store.datastore.snapshots import SyncLevel
from store.errors import InvalidName
from store.format.crypt import CryptConfig
from store.format.keys import KeyFile
from store.format.manifest import CryptMode, FileInfo
from store.names import BackupGroup, Namespace, Snapshot, check_safe_id

DEFAULT_CHUNK_SIZE = 4 << 20
CHUNK_SIZES = tuple(1 << power for power in range(16, 23))
DEFAULT_PAYLOAD_GROWTH = 3.0
INDEX_SUFFIXES = {
    "pxar": ".pxar.didx",
    "img": ".img.fidx",
    "conf": ".conf.blob",
    "log": ".log.blob",
}


class ChangeDetectionMode(StrEnum):
    """How a tree is written: in one archive or a split one; then whether all files are read."""

    LEGACY = "legacy"
    DATA = "data"
    METADATA = "metadata"


@dataclass(frozen=True)
class BackupSource:
    """One archive to make, and where it comes from.

    `name` is without its ending, `type` one of pxar, img, conf, log.
    """

    name: str
    type: str
    path: str

    def __post_init__(self) -> None:
        check_safe_id(self.name, "archive name")
        if self.type not in INDEX_SUFFIXES:
            raise InvalidName(
                f"archive type .{self.type}: use .pxar (tree), .img (disk), .conf or .log (file)"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `root.pxar:/srv`. Raises InvalidName."""
        archive, colon, path = text.partition(":")
        name, dot, kind = archive.rpartition(".")
        if not (colon and dot and path):
            raise InvalidName(
                f"backup source {text!r}: write it as NAME.pxar:/directory or NAME.img:/disk"
            )
        return cls(name, kind, path)

    @property
    def archive(self) -> str:
        return f"{self.name}.{self.type}"

    @property
    def filename(self) -> str:
        """Its file in the snapshot; the split pair of a tree has names of its own."""
        return self.name + INDEX_SUFFIXES[self.type]


@dataclass(frozen=True)
class BackupRequest:
    """One new snapshot.

    chunk_size: the average of tree archives, in bytes.
    payload_growth: how many times larger than the files in it a re-used payload stream may become
        (metadata mode).
    """

    datastore: Datastore
    namespace: Namespace
    group: BackupGroup
    time: int
    sources: tuple[BackupSource, ...]
    key: CryptConfig | None = None
    crypt_mode: CryptMode = CryptMode.NONE
    master_public_key: bytes | None = None
    key_file: KeyFile | None = None
    change_detection_mode: ChangeDetectionMode = ChangeDetectionMode.LEGACY
    exclude: tuple[str, ...] = ()
    include_devices: tuple[str, ...] = ()
    all_file_systems: bool = False
    skip_lost_and_found: bool = False
    chunk_size: int = DEFAULT_CHUNK_SIZE
    owner: str | None = None
    sync_level: SyncLevel = SyncLevel.FILESYSTEM
    payload_growth: float = DEFAULT_PAYLOAD_GROWTH

    def __post_init__(self) -> None:
        if not self.sources:
            raise InvalidName(
                "nothing to back up: name at least one NAME.pxar:/directory or NAME.img:/disk"
            )
        names = [source.filename for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise InvalidName(f"archive {name}: named twice")
            if name in ("index.json.blob", "client.log.blob"):
                raise InvalidName(f"archive {name}: this name is reserved")
        if self.chunk_size not in CHUNK_SIZES:
            raise InvalidName(
                f"chunk size {self.chunk_size >> 10} KiB: use a power of two from 64 to 4096"
            )
        if self.payload_growth < 1:
            raise InvalidName(f"payload growth {self.payload_growth}: use 1.0 or more")
        if (self.key is None) != (self.crypt_mode == CryptMode.NONE):
            raise InvalidName(f"crypt mode {self.crypt_mode} and the key given do not go together")
        if self.master_public_key is not None and (
            self.crypt_mode != CryptMode.ENCRYPT or self.key_file is None
        ):
            raise InvalidName(
                "a master key protects the key of an encrypted backup: it needs --keyfile"
            )

    @property
    def snapshot(self) -> Snapshot:
        return Snapshot(self.group, self.time)

    @property
    def chunk_key(self) -> CryptConfig | None:
        """The key that chunks and blobs are encrypted with, if they are."""
        return self.key if self.crypt_mode == CryptMode.ENCRYPT else None


@dataclass
class BackupResult:
    """What a finished backup did; sizes in bytes.

    `source_bytes` were read or re-used; `reused_bytes` of them were not read. `stored_bytes` were
    written for `new_chunks`; `known_chunks` were in the datastore already. `unreadable` names could
    not be read and are not in the snapshot.
    """

    snapshot: Snapshot
    duration_s: float = 0.0
    files: tuple[FileInfo, ...] = ()
    source_bytes: int = 0
    reused_bytes: int = 0
    stored_bytes: int = 0
    new_chunks: int = 0
    known_chunks: int = 0
    warnings: int = 0
    unreadable: int = 0
    previous: Snapshot | None = field(default=None)
