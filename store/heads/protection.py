"""Encryption of a head's journal, or checksums where there is no key.

The head's own key is random and stands in `head.json`, sealed by the group's key. From it follow
the key of the rows, that of the name hashes, and one for each segment and its random salt.
"""

import hashlib
import os
from collections import deque
from struct import Struct
from zlib import crc32

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from store.errors import IntegrityError, WrongKey
from store.format.buffer import Buffer
from store.format.crypt import KEY_SIZE, CryptConfig

NONCE_SIZE, TAG_SIZE = 12, 16
HASH_SIZE = 16
SALT_SIZE = 16
_U32 = Struct("<I")
_U64 = Struct("<Q")
_WRAPPING = b"vaultway head key"
NONCES = 256
_nonces: deque[bytes] = deque()
# A child must not use its parent's.
os.register_at_fork(after_in_child=_nonces.clear)


def wrap_head_key(group_key: CryptConfig, head_key: bytes) -> bytes:
    """Seal a head's key with its group's: nonce 12 | ciphertext 32 | tag 16."""
    nonce = os.urandom(NONCE_SIZE)
    return nonce + AESGCM(_derive(group_key.key, _WRAPPING)).encrypt(nonce, head_key, _WRAPPING)


def unwrap_head_key(group_key: CryptConfig, wrapped: bytes) -> bytes:
    """The head's key. Raises WrongKey."""
    cipher = AESGCM(_derive(group_key.key, _WRAPPING))
    try:
        return cipher.decrypt(wrapped[:NONCE_SIZE], wrapped[NONCE_SIZE:], _WRAPPING)
    except InvalidTag as error:
        raise WrongKey(
            f"the head is encrypted with another key than {group_key.fingerprint}"
        ) from error


def _nonce() -> bytes:
    """Random bytes that nobody had before; asking the kernel for few at a time is slow."""
    try:
        return _nonces.pop()
    except IndexError:
        fresh = os.urandom(NONCE_SIZE * NONCES)
        _nonces.extend(fresh[at : at + NONCE_SIZE] for at in range(0, len(fresh), NONCE_SIZE))
        return os.urandom(NONCE_SIZE)


def _derive(key: bytes, purpose: bytes, salt: bytes = b"") -> bytes:
    return hashlib.blake2b(purpose + salt, key=key, digest_size=KEY_SIZE).digest()


class Protection:
    """What keeps rows and names secret, and shows when they are damaged. Thread-safe."""

    def __init__(self, head_key: bytes | None) -> None:
        """`head_key`: 32 bytes, or None to keep everything plain, with checksums."""
        self._key = head_key
        self._rows = AESGCM(_derive(head_key, b"rows")) if head_key else None
        self._names = hashlib.blake2b(
            key=_derive(head_key, b"names") if head_key else b"", digest_size=HASH_SIZE
        )

    @property
    def is_encrypted(self) -> bool:
        return self._key is not None

    def seal(self, context: int, plain: bytes) -> bytes:
        """A row's value. `context` is its key: a value that is moved elsewhere does not open."""
        if self._rows is None:
            return _U32.pack(crc32(plain, context & 0xFFFF_FFFF)) + plain
        nonce = _nonce()
        return nonce + self._rows.encrypt(nonce, plain, _U64.pack(context))

    def open(self, context: int, sealed: bytes) -> bytes:
        """The value again. Raises IntegrityError."""
        if self._rows is None:
            plain = sealed[4:]
            if sealed[:4] != _U32.pack(crc32(plain, context & 0xFFFF_FFFF)):
                raise IntegrityError("head's journal: a row's checksum is wrong")
            return plain
        try:
            return self._rows.decrypt(sealed[:NONCE_SIZE], sealed[NONCE_SIZE:], _U64.pack(context))
        except (InvalidTag, ValueError) as error:
            raise IntegrityError("head's journal: a row is damaged, or of another key") from error

    def hash_name(self, parent: int, name: bytes) -> bytes:
        """Where a name stands among those of its directory: 16 bytes that tell nothing of it."""
        state = self._names.copy()
        state.update(_U64.pack(parent))
        state.update(name)
        return state.digest()

    def segment_cipher(self, salt: bytes) -> AESGCM | None:
        """What seals the records of the segment with this salt; None where all is plain."""
        return AESGCM(_derive(self._key, b"segment", salt)) if self._key else None


def seal_record(cipher: AESGCM | None, header: bytes, payload: Buffer) -> tuple[bytes, Buffer]:
    """Nonce and tag (28 bytes), and what is written in the payload's place.

    `header` is covered, not hidden. Without a cipher the 28 bytes hold a CRC.
    """
    if cipher is None:
        return _U32.pack(crc32(payload, crc32(header))).ljust(NONCE_SIZE + TAG_SIZE, b"\0"), payload
    nonce = _nonce()
    sealed = memoryview(cipher.encrypt(nonce, memoryview(payload), header))
    return nonce + sealed[-TAG_SIZE:], sealed[:-TAG_SIZE]


def open_record(cipher: AESGCM | None, header: bytes, seal: bytes, body: bytes) -> bytes:
    """The payload again. Raises IntegrityError."""
    if cipher is None:
        if seal[:4] != _U32.pack(crc32(body, crc32(header))):
            raise IntegrityError("a record's checksum is wrong")
        return body
    try:
        return cipher.decrypt(seal[:NONCE_SIZE], body + seal[NONCE_SIZE:], header)
    except InvalidTag as error:
        raise IntegrityError("a record is damaged, or of another key") from error
