"""The ids of a datastore's things: frozen, ordered, validated on construction.

Rules and limits: PBS's API types (spec section 6.1). Paths are relative to the datastore, without
a leading slash.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from store.errors import InvalidName

SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._\-]*")
BACKUP_TYPES = ("ct", "host", "vm")
MAX_NAMESPACE_DEPTH = 7
MAX_NAMESPACE_LENGTH = 256
BACKUP_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z", re.ASCII)
INDEX_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._\-]*\.(fidx|didx|blob)")
MANIFEST_BLOB_NAME = "index.json.blob"
CLIENT_LOG_BLOB_NAME = "client.log.blob"
CATALOG_NAME = "catalog.pcat1.didx"
ENCRYPTED_KEY_BLOB_NAME = "rsa-encrypted.key.blob"


class Digest(bytes):
    """The SHA-256 name of a chunk: 32 bytes. Keyed when the chunk is encrypted."""

    __slots__ = ()

    def __new__(cls, raw: bytes) -> Self:
        if len(raw) != 32:
            raise InvalidName(f"a digest has 32 bytes, not {len(raw)}")
        return super().__new__(cls, raw)

    def __str__(self) -> str:
        return self.hex()


class Fingerprint(Digest):
    """The public name of an encryption key. `str()` is the full colon form, `short` its start."""

    __slots__ = ()

    def __str__(self) -> str:
        return self.hex(":")

    @property
    def short(self) -> str:
        return self[:8].hex(":")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `aa:bb:…` (32 bytes). Raises InvalidName."""
        try:
            return cls(bytes.fromhex(text.replace(":", "")))
        except ValueError as error:
            raise InvalidName(f"not a key fingerprint: {text!r}") from error


def check_safe_id(text: str, what: str) -> str:
    """Return `text` if it is a safe id (letters, digits, `_`, later `.`, `-`), or InvalidName."""
    if not SAFE_ID.fullmatch(text):
        raise InvalidName(
            f"{what} {text!r}: use letters, digits, '_', '.' and '-', not starting with '.' or '-'"
        )
    return text


@dataclass(frozen=True, order=True, slots=True)
class Namespace:
    """A namespace as its components; () is the root. At most 7 deep, 256 characters joined."""

    components: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for component in self.components:
            check_safe_id(component, "namespace")
        if len(self.components) > MAX_NAMESPACE_DEPTH:
            raise InvalidName(f"namespace {self}: deeper than {MAX_NAMESPACE_DEPTH}")
        if len(str(self)) > MAX_NAMESPACE_LENGTH:
            raise InvalidName(f"namespace {self}: longer than {MAX_NAMESPACE_LENGTH} characters")

    def __str__(self) -> str:
        return "/".join(self.components)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `a/b/c`; the empty text is the root. Raises InvalidName."""
        return cls(tuple(text.split("/"))) if text else cls()

    @property
    def path(self) -> str:
        """`ns/a/ns/b`, or the empty text for the root."""
        return "/".join(f"ns/{component}" for component in self.components)

    @property
    def parent(self) -> "Namespace":
        """One level up; the root is its own parent."""
        return Namespace(self.components[:-1])

    def child(self, component: str) -> "Namespace":
        return Namespace((*self.components, component))


@dataclass(frozen=True, order=True, slots=True)
class BackupGroup:
    """All snapshots of one machine or host: `vm/100`."""

    type: str
    id: str

    def __post_init__(self) -> None:
        if self.type not in BACKUP_TYPES:
            raise InvalidName(f"backup type {self.type!r}: use one of {', '.join(BACKUP_TYPES)}")
        check_safe_id(self.id, "backup id")

    def __str__(self) -> str:
        return f"{self.type}/{self.id}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `type/id`. Raises InvalidName."""
        parts = text.split("/")
        if len(parts) != 2:
            raise InvalidName(f"backup group {text!r}: write it as type/id, for example host/web01")
        return cls(*parts)

    def path(self, namespace: Namespace) -> str:
        """Its directory, relative to the datastore."""
        return f"{namespace.path}/{self}" if namespace.components else str(self)


def parse_backup_time(text: str) -> int:
    """Read `2026-01-02T03:04:05Z` into seconds since the epoch, at least 1. Raises InvalidName."""
    try:
        if not BACKUP_TIME.fullmatch(text):
            raise ValueError(text)
        seconds = int(datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp())
    except ValueError as error:
        raise InvalidName(
            f"backup time {text!r}: write it as 2026-01-02T03:04:05Z (UTC)"
        ) from error
    if seconds < 1:
        raise InvalidName(f"backup time {text!r}: not after the start of 1970")
    return seconds


def format_backup_time(seconds: int) -> str:
    """`2026-01-02T03:04:05Z` of seconds since the epoch; InvalidName outside 1970 to 9999."""
    if not 1 <= seconds <= 253402300799:
        raise InvalidName(f"backup time {seconds}: outside 1970 to 9999")
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, order=True, slots=True)
class Snapshot:
    """One backup of a group; `time` is in whole seconds since the epoch."""

    group: BackupGroup
    time: int

    def __post_init__(self) -> None:
        format_backup_time(self.time)

    def __str__(self) -> str:
        return f"{self.group}/{format_backup_time(self.time)}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `type/id/time`. Raises InvalidName."""
        group, _, time = text.rpartition("/")
        return cls(BackupGroup.parse(group), parse_backup_time(time))

    def path(self, namespace: Namespace) -> str:
        """Its directory, relative to the datastore."""
        return f"{self.group.path(namespace)}/{format_backup_time(self.time)}"


def check_file_name(name: str) -> str:
    """Return `name` if it may stand in a snapshot directory, or raise InvalidName."""
    if not INDEX_FILE.fullmatch(name):
        raise InvalidName(f"backup file {name!r}: not a name ending in .blob, .fidx or .didx")
    return name
