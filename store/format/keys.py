"""Key files, and the RSA master key that wraps them.

A key file is JSON. Without a passphrase its `data` is the 32-byte key; with one it is

    iv 16 | tag 16 | ciphertext 32          AES-256-GCM, no additional data

under 32 bytes derived from the passphrase by scrypt or PBKDF2-HMAC-SHA256.

Source: proxmox-backup pbs-key-config/src/lib.rs; spec sections 8.1 to 8.4; tests/golden/keys/
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from store.errors import FormatError, IntegrityError, InvalidName, KeyRequired, WrongKey
from store.format.crypt import CryptConfig
from store.names import Fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable

MINIMUM_PASSPHRASE = 5  # bytes; PBS refuses shorter ones when it reads a key, too
SCRYPT_MEMORY = 1025 << 20  # bytes, PBS's own cap
PBKDF2_MAX_ITERATIONS = 10_000_000  # ours: a hostile file must not keep a CPU busy for days
MASTER_KEY_BITS = 4096


@dataclass(frozen=True, slots=True)
class Scrypt:
    """scrypt with PBS's parameters; `salt` is 32 random bytes."""

    salt: bytes
    n: int = 65536
    r: int = 8
    p: int = 1
    name = "scrypt"

    def derive(self, passphrase: bytes) -> bytes:
        """Return 32 bytes. Takes 64 MiB and some 0.2 s. Raises FormatError for bad parameters."""
        try:
            return hashlib.scrypt(
                passphrase,
                salt=self.salt,
                n=self.n,
                r=self.r,
                p=self.p,
                maxmem=SCRYPT_MEMORY,
                dklen=32,
            )
        except (ValueError, OverflowError) as error:
            raise FormatError(
                f"key file: scrypt n={self.n} r={self.r} p={self.p}: {error}"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """PBS's spelling of it."""
        return {"Scrypt": {"n": self.n, "r": self.r, "p": self.p, "salt": _b64(self.salt)}}


@dataclass(frozen=True, slots=True)
class Pbkdf2:
    """PBKDF2-HMAC-SHA256; PBS iterates 65535 times (not 65536)."""

    salt: bytes
    iter: int = 65535
    name = "pbkdf2"

    def derive(self, passphrase: bytes) -> bytes:
        """Return 32 bytes. Raises FormatError for an iteration count outside 1 to 10,000,000."""
        if not 1 <= self.iter <= PBKDF2_MAX_ITERATIONS:
            raise FormatError(
                f"key file: PBKDF2 iterations {self.iter}: not in 1 to {PBKDF2_MAX_ITERATIONS}"
            )
        return hashlib.pbkdf2_hmac("sha256", passphrase, self.salt, self.iter, 32)

    def to_json(self) -> dict[str, Any]:
        """PBS's spelling of it."""
        return {"PBKDF2": {"iter": self.iter, "salt": _b64(self.salt)}}


Kdf = Scrypt | Pbkdf2


@dataclass(frozen=True, slots=True)
class KeyFile:
    """One key file. The two times stay the text they were, so encoding gives the same bytes."""

    kdf: Kdf | None
    created: str
    modified: str
    data: bytes
    fingerprint: Fingerprint | None = None
    hint: str | None = None

    def __repr__(self) -> str:
        return f"KeyFile({self.kdf_name}, {self.fingerprint})"  # `data` may be the key itself

    @property
    def kdf_name(self) -> str:
        """`none`, `scrypt` or `pbkdf2`."""
        return self.kdf.name if self.kdf else "none"

    @property
    def created_time(self) -> int:
        """Seconds since the epoch."""
        return _epoch(self.created)

    @property
    def modified_time(self) -> int:
        """Seconds since the epoch."""
        return _epoch(self.modified)

    @classmethod
    def decode(cls, text: bytes | str) -> Self:
        """Read the JSON of a key file.

        Raises:
            FormatError: not JSON, a field missing or of another type, an unknown `kdf`.
        """
        try:
            fields = json.loads(text)
            fingerprint, hint = fields.get("fingerprint"), fields.get("hint")
            key_file = cls(
                kdf=_decode_kdf(fields["kdf"]),
                created=_check_time(fields["created"]),
                modified=_check_time(fields["modified"]),
                data=_from_b64(fields["data"]),
                fingerprint=None if fingerprint is None else Fingerprint.parse(fingerprint),
                hint=None if hint is None else _check_text(hint),
            )
        except KeyError as error:
            raise FormatError(f"key file: no field {error}") from error
        except (ValueError, TypeError, AttributeError, RecursionError, InvalidName) as error:
            raise FormatError(f"not a key file: {error}") from error
        expected = 64 if key_file.kdf else 32
        if len(key_file.data) != expected:
            raise FormatError(f"key file: data has {len(key_file.data)} bytes, expected {expected}")
        return key_file

    def to_json(self) -> dict[str, Any]:
        """The fields in PBS's order; a missing fingerprint or hint is left out."""
        fields: dict[str, Any] = {
            "kdf": self.kdf.to_json() if self.kdf else None,
            "created": self.created,
            "modified": self.modified,
            "data": _b64(self.data),
        }
        if self.fingerprint is not None:
            fields["fingerprint"] = str(self.fingerprint)
        if self.hint is not None:
            fields["hint"] = self.hint
        return fields

    def encode(self) -> bytes:
        """Return PBS's compact JSON, without a newline at the end."""
        return json.dumps(self.to_json(), separators=(",", ":"), ensure_ascii=False).encode()

    def unlock(self, passphrase: bytes | None = None) -> CryptConfig:
        """Return the key.

        Args:
            passphrase: needed unless the file has none; ignored then.

        Raises:
            KeyRequired: it needs a passphrase and got None.
            WrongKey: it is another one.
            IntegrityError: the key inside is not the one `fingerprint` names.
            FormatError: key derivation parameters out of range.
        """
        config = CryptConfig(self.data if self.kdf is None else self._decrypt(self.kdf, passphrase))
        if self.fingerprint is not None and config.fingerprint != self.fingerprint:
            raise IntegrityError(
                f"key file: holds key {config.fingerprint.short}, names {self.fingerprint.short}"
            )
        return config

    def _decrypt(self, kdf: Kdf, passphrase: bytes | None) -> bytes:
        name = self.fingerprint.short if self.fingerprint else "without a fingerprint"
        if passphrase is None:
            raise KeyRequired(f"key {name} needs its passphrase{self._hint_text()}")
        if len(passphrase) < MINIMUM_PASSPHRASE:
            raise WrongKey(f"key {name}: a passphrase has at least {MINIMUM_PASSPHRASE} bytes")
        iv, tag, ciphertext = self.data[:16], self.data[16:32], self.data[32:]
        try:
            return AESGCM(kdf.derive(passphrase)).decrypt(iv, ciphertext + tag, None)
        except InvalidTag as error:
            raise WrongKey(f"wrong passphrase for key {name}{self._hint_text()}") from error

    def _hint_text(self) -> str:
        return f" (hint: {self.hint})" if self.hint else ""


def create_key_file(
    key: bytes,
    passphrase: bytes | None,
    kdf: Kdf | None,
    iv: bytes,
    now: str,
    *,
    created: str | None = None,
    hint: str | None = None,
) -> KeyFile:
    """Return a key file around `key`.

    Args:
        key: 32 random bytes.
        passphrase: at least 5 bytes; unused with `kdf` None.
        kdf: how to derive the wrapping key, its salt 32 random bytes; None: leave it readable.
        iv: 16 random bytes, unused with `kdf` None.
        now: RFC 3339 local time with offset, `2026-01-02T03:04:05+01:00`.
        created: the same, when the key is older than this file.
        hint: a reminder of the passphrase, readable by anyone.

    Raises:
        InvalidName: a passphrase too short, a hint without a passphrase.
    """
    fingerprint = CryptConfig(key).fingerprint
    if kdf is None:
        if hint is not None:
            raise InvalidName("a hint needs a passphrase: it makes no sense with kdf none")
        return KeyFile(None, created or now, now, key, fingerprint)
    if passphrase is None or len(passphrase) < MINIMUM_PASSPHRASE:
        raise InvalidName(f"the passphrase is too short: use at least {MINIMUM_PASSPHRASE} bytes")
    sealed = AESGCM(kdf.derive(passphrase)).encrypt(iv, key, None)
    return KeyFile(kdf, created or now, now, iv + sealed[32:] + sealed[:32], fingerprint, hint)


def create_master_key(passphrase: bytes, bits: int = MASTER_KEY_BITS) -> tuple[bytes, bytes]:
    """Make an RSA pair: the private PEM (PKCS#8 under AES-256-CBC) and the public PEM.

    Takes seconds. The random numbers are OpenSSL's own.
    """
    if len(passphrase) < MINIMUM_PASSPHRASE:
        raise InvalidName(f"the passphrase is too short: use at least {MINIMUM_PASSPHRASE} bytes")
    private = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    private_pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase),
    )
    public_pem = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private_pem, public_pem


def load_master_public_key(public_pem: bytes) -> rsa.RSAPublicKey:
    """Read a PEM public key. Raises FormatError when it is not an RSA key."""
    try:
        public = serialization.load_pem_public_key(public_pem)
    except ValueError as error:
        raise FormatError("master public key: not a PEM public key") from error
    if not isinstance(public, rsa.RSAPublicKey):
        raise FormatError("master public key: not an RSA key")
    return public


def wrap_key(public_pem: bytes, key_file: bytes) -> bytes:
    """Seal the JSON of a key file without passphrase, for the master's private key alone to open.

    One block of RSAES-PKCS1-v1_5 as long as the modulus (512 bytes for 4096 bits): the content of
    `rsa-encrypted.key.blob`. The padding is OpenSSL's random.

    Raises:
        FormatError: not an RSA public key.
        InvalidName: the modulus is too small for the text.
    """
    public = load_master_public_key(public_pem)
    room = public.key_size // 8 - 11
    if len(key_file) > room:
        raise InvalidName(
            f"master public key of {public.key_size} bits: room for {room} bytes of {len(key_file)}"
        )
    return public.encrypt(key_file, padding.PKCS1v15())


def wrap_crypt_config(public_pem: bytes, key: CryptConfig, created: str, now: str) -> bytes:
    """`wrap_key` a passwordless key file around `key`; the times are `create_key_file`'s."""
    return wrap_key(
        public_pem, create_key_file(key.key, None, None, b"", now, created=created).encode()
    )


def unwrap_key(private_pem: bytes, passphrase: bytes | None, wrapped: bytes) -> KeyFile:
    """Return the key file inside `wrapped`.

    Raises:
        KeyRequired: the private key needs a passphrase and got None.
        WrongKey: wrong passphrase, or wrapped for another master key.
        FormatError: not an RSA private key.
    """
    private = load_master_private_key(private_pem, passphrase)
    try:
        # With a wrong key OpenSSL 3.2 returns noise instead of an error: both mean the same.
        return KeyFile.decode(private.decrypt(wrapped, padding.PKCS1v15()))
    except (ValueError, FormatError) as error:
        raise WrongKey("the wrapped key was not made for this master key") from error


def load_master_private_key(private_pem: bytes, passphrase: bytes | None) -> rsa.RSAPrivateKey:
    """Read a PEM private key. Raises KeyRequired, WrongKey, FormatError, as `unwrap_key`."""
    encrypted = b"ENCRYPTED" in private_pem
    if encrypted and passphrase is None:
        raise KeyRequired("the master private key needs its passphrase")
    try:
        private = serialization.load_pem_private_key(private_pem, passphrase if encrypted else None)
    except ValueError as error:
        if encrypted:
            raise WrongKey("master private key: wrong passphrase, or a damaged file") from error
        raise FormatError("master private key: not a PEM private key") from error
    if not isinstance(private, rsa.RSAPrivateKey):
        raise FormatError("master private key: not an RSA key")
    return private


def _decode_kdf(value: Any) -> Kdf | None:  # noqa: ANN401 - JSON
    if value is None:
        return None
    [(kind, fields)] = value.items()
    kinds: dict[str, Callable[[], Kdf]] = {
        "Scrypt": lambda: Scrypt(
            _from_b64(fields["salt"]),
            _check_int(fields["n"]),
            _check_int(fields["r"]),
            _check_int(fields["p"]),
        ),
        "PBKDF2": lambda: Pbkdf2(_from_b64(fields["salt"]), _check_int(fields["iter"])),
    }
    if kind not in kinds:
        raise ValueError(f"unknown key derivation function {kind!r}")
    return kinds[kind]()


def _check_int(value: Any) -> int:  # noqa: ANN401 - JSON
    if type(value) is not int or not 0 < value < 1 << 32:
        raise ValueError(f"not a positive number: {value!r}")
    return value


def _check_text(value: Any) -> str:  # noqa: ANN401 - JSON
    if not isinstance(value, str):
        raise TypeError(f"not a text: {value!r}")
    return value


def _check_time(value: Any) -> str:  # noqa: ANN401 - JSON
    _epoch(text := _check_text(value))
    if not 20 <= len(text) <= 25:
        raise ValueError(f"not an RFC 3339 time: {text!r}")
    return text


def _epoch(text: str) -> int:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"time without an offset: {text!r}")
    return int(time.timestamp())


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _from_b64(text: Any) -> bytes:  # noqa: ANN401 - JSON
    return base64.b64decode(_check_text(text), validate=True)
