"""Manifests (`index.json.blob`): which files a snapshot has, their sums, and who vouches for them.

    {"backup-id": …, "backup-time": seconds, "backup-type": …,
     "files": [{"crypt-mode": …, "csum": 64 hex, "filename": …, "size": bytes}, …],
     "signature": 64 hex or null, "unprotected": {…}}

The signature covers everything but itself and `unprotected`.

Source: proxmox-backup pbs-datastore/src/manifest.rs (spec section 7).
"""

import hmac
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NoReturn, Self, TypeAlias, TypeVar

from store.errors import FormatError, IntegrityError, InvalidName, NotFound, WrongKey
from store.format.buffer import Buffer
from store.format.crypt import CryptConfig
from store.names import MANIFEST_BLOB_NAME, BackupGroup, Fingerprint, Snapshot, check_file_name

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
T = TypeVar("T", bound=JSON)

KEY_FINGERPRINT = "key-fingerprint"
HEX_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
MAX_SIZE = 2**64 - 1
# Also serde_json's limit.
MAX_DEPTH = 128


class CryptMode(StrEnum):
    """How a snapshot is protected. With `SIGN_ONLY` all is plain, and the manifest is signed."""

    NONE = "none"
    SIGN_ONLY = "sign-only"
    ENCRYPT = "encrypt"


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file of a snapshot.

    Attributes:
        filename: as it is in the snapshot's directory, for example `root.pxar.didx`.
        crypt_mode: that of the whole backup.
        size: bytes of the image or stream behind an index; of the encoded file for a blob.
        csum: an index's own csum; SHA-256 of the encoded file for a blob. 32 bytes.
    """

    filename: str
    crypt_mode: CryptMode
    size: int
    csum: bytes

    def to_json(self) -> dict[str, JSON]:
        """Return the object that stands in the manifest."""
        return {
            "crypt-mode": self.crypt_mode.value,
            "csum": self.csum.hex(),
            "filename": self.filename,
            "size": self.size,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, JSON]) -> Self:
        """Read that object. Raises FormatError, InvalidName, ValueError: the caller wraps them."""
        size = _get(fields, "size", int)
        if not 0 <= size <= MAX_SIZE:
            raise FormatError(f"size {size} is out of range")
        filename = check_file_name(_get(fields, "filename", str))
        if filename == MANIFEST_BLOB_NAME:
            raise FormatError("it lists itself")
        named_mode = "crypt-mode" in fields
        mode = CryptMode(_get(fields, "crypt-mode", str)) if named_mode else CryptMode.NONE
        return cls(filename, mode, size, _sha256(_get(fields, "csum", str)))


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a snapshot consists of. A value: the methods that change something return another one.

    `unprotected` holds what may change later without a new signature (notes, verify state,
    statistics, and the key's fingerprint); keys that we do not know are kept. Treat it as frozen.
    """

    snapshot: Snapshot
    files: tuple[FileInfo, ...]
    signature: bytes | None = None
    unprotected: dict[str, JSON] = field(default_factory=dict)

    def file(self, filename: str) -> FileInfo:
        """Return what the manifest says of one file. Raises NotFound."""
        for info in self.files:
            if info.filename == filename:
                return info
        raise NotFound(f"snapshot {self.snapshot} has no file {filename!r}")

    @property
    def key_fingerprint(self) -> Fingerprint | None:
        """Which key the backup was made with, to encrypt or to sign; None if with none."""
        text = self.unprotected.get(KEY_FINGERPRINT)
        return Fingerprint.parse(text) if isinstance(text, str) else None

    def with_unprotected(self, **changes: JSON) -> Self:
        """Return a copy with other `unprotected` values; None removes one. Its signature holds."""
        unprotected = {**self.unprotected, **changes}
        for key in (key for key, value in changes.items() if value is None):
            del unprotected[key]
        return replace(self, unprotected=unprotected)

    def signed(self, key: CryptConfig) -> Self:
        """Return a copy that is signed with the key and names it."""
        named = self.with_unprotected(**{KEY_FINGERPRINT: str(key.fingerprint)})
        return replace(named, signature=key.sign(self.canonical()))

    def verify(self, key: CryptConfig) -> None:
        """Check that the key's holder wrote this manifest. Like PBS, accepts one nobody signed.

        Raises:
            WrongKey: the manifest names another key.
            IntegrityError: the signature is not that of this content.
        """
        named = self.key_fingerprint
        if named is not None and named != key.fingerprint:
            raise WrongKey(
                f"snapshot {self.snapshot} needs the key {named}, given was {key.fingerprint}"
            )
        if self.signature is None:
            return
        if not hmac.compare_digest(self.signature, key.sign(self.canonical())):
            raise IntegrityError(f"snapshot {self.snapshot}: the manifest's signature is wrong")

    def canonical(self) -> bytes:
        """Return the bytes that are signed: known fields only, keys sorted, no white space."""
        return json.dumps(
            self._protected(), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()

    def encode(self) -> bytes:
        """Return the text as PBS writes it: two spaces, keys sorted, no newline at the end."""
        signature = self.signature.hex() if self.signature is not None else None
        text = {**self._protected(), "signature": signature, "unprotected": self.unprotected}
        return json.dumps(text, sort_keys=True, indent=2, ensure_ascii=False).encode()

    def _protected(self) -> dict[str, JSON]:
        return {
            "backup-type": self.snapshot.group.type,
            "backup-id": self.snapshot.group.id,
            "backup-time": self.snapshot.time,
            "files": [info.to_json() for info in self.files],
        }

    @classmethod
    def decode(cls, text: Buffer) -> Self:
        """Read a manifest; its signature is for `verify` to check.

        `crypt-mode`, `signature` and `unprotected` may be missing; unknown keys are dropped.
        Raises FormatError for anything else that is not what the module's head shows.
        """
        try:
            return cls._from_json(_parse_json(bytes(text)))
        except (ValueError, InvalidName, FormatError) as error:
            raise FormatError(f"bad manifest: {error}") from error

    @classmethod
    def _from_json(cls, fields: Mapping[str, JSON]) -> Self:
        group = BackupGroup(_get(fields, "backup-type", str), _get(fields, "backup-id", str))
        files = [FileInfo.from_json(_object(entry)) for entry in _get(fields, "files", list)]
        signature = fields.get("signature")
        manifest = cls(
            Snapshot(group, _get(fields, "backup-time", int)),
            tuple(files),
            None if signature is None else _sha256(_get(fields, "signature", str)),
            dict(_object(fields.get("unprotected") or {})),
        )
        if manifest.unprotected.get(KEY_FINGERPRINT) is not None:
            Fingerprint.parse(_get(manifest.unprotected, KEY_FINGERPRINT, str))
        return manifest


def _parse_json(raw: bytes) -> Mapping[str, JSON]:
    """Read a JSON object that can be written again. Raises FormatError, ValueError."""
    try:
        fields = json.loads(raw.decode(), parse_float=_finite, parse_constant=_refuse)
        # A lone surrogate survives reading, and no writing.
        json.dumps(fields, ensure_ascii=False).encode()
    except RecursionError as error:
        raise FormatError("nested too deep") from error
    _check_depth(fields, MAX_DEPTH)
    return _object(fields)


def _check_depth(value: JSON, room: int) -> None:
    if not room:
        raise FormatError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            _check_depth(part, room - 1)


def _get(fields: Mapping[str, JSON], key: str, kind: type[T]) -> T:
    """Return one field of a JSON object. Raises FormatError if it is missing or of another kind."""
    value = fields.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise FormatError(f"{key!r} is not a {kind.__name__}")
    return value


def _object(value: JSON) -> dict[str, JSON]:
    if not isinstance(value, dict):
        raise FormatError(f"expected an object, found {str(value)[:40]!r}")
    return value


def _sha256(text: str) -> bytes:
    if not HEX_SHA256.fullmatch(text):
        raise FormatError(f"not a SHA-256 in hex: {text[:80]!r}")
    return bytes.fromhex(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _refuse(text)
    return number


def _refuse(text: str) -> NoReturn:
    raise FormatError(f"{text} is not a number")
