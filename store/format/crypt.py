"""What an encryption key does: it names and seals chunks, signs manifests, has a fingerprint."""

import hashlib
import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from store.errors import IntegrityError
from store.format.buffer import Buffer
from store.names import Digest, Fingerprint

KEY_SIZE = 32
IV_SIZE = 16
TAG_SIZE = 16
ID_KEY_SALT = b"_id_key"
ID_KEY_ITERATIONS = 10
FINGERPRINT_INPUT = hashlib.sha256(b"Proxmox Backup Encryption Key Fingerprint").digest()

# The cipher's update_into wants room for one more block than it fills, less a byte.
CIPHER_SLACK = 15


class CryptConfig:
    """A 32-byte encryption key and what follows from it. Immutable; threads may share one.

    The key encrypts; the `id_key`, derived from it, names chunks and signs manifests.

    Source: proxmox-backup pbs-tools/src/crypt_config.rs (spec section 3).
    """

    __slots__ = ("_algorithm", "fingerprint", "id_key", "key")

    def __init__(self, key: bytes) -> None:
        """Raises ValueError unless the key has 32 bytes; key files check that before."""
        if len(key) != KEY_SIZE:
            raise ValueError(f"an encryption key has {KEY_SIZE} bytes, not {len(key)}")
        self.key = key
        self.id_key = hashlib.pbkdf2_hmac("sha256", key, ID_KEY_SALT, ID_KEY_ITERATIONS, KEY_SIZE)
        self.fingerprint = Fingerprint(hashlib.sha256(FINGERPRINT_INPUT + self.id_key).digest())
        self._algorithm = algorithms.AES(key)

    def __repr__(self) -> str:
        return f"CryptConfig(fingerprint={self.fingerprint.short})"

    def digest(self, plain: Buffer) -> Digest:
        """Return an encrypted chunk's name: SHA-256 of its plaintext followed by the id key."""
        state = hashlib.sha256(plain)
        state.update(self.id_key)
        return Digest(state.digest())

    def sign(self, message: bytes) -> bytes:
        """Return the 32-byte HMAC-SHA256 of a message, as manifests carry it."""
        return hmac.digest(self.id_key, message, "sha256")

    def encrypt(self, iv: bytes, plain: Buffer) -> tuple[bytes, Buffer]:
        """Encrypt with AES-256-GCM, no associated data.

        Args:
            iv: 16 bytes, random, never used twice with this key.
            plain: any size.

        Returns:
            The 16-byte tag and the ciphertext, as long as the plaintext and the caller's to keep.
        """
        _check_iv(iv)
        sealer = Cipher(self._algorithm, modes.GCM(iv)).encryptor()
        room = bytearray(len(plain) + CIPHER_SLACK)
        size = sealer.update_into(memoryview(plain), room)
        sealer.finalize()
        return sealer.tag, memoryview(room)[:size]

    def decrypt(self, iv: bytes, tag: bytes, ciphertext: Buffer) -> bytes:
        """Return the plaintext of `encrypt`'s result.

        Raises:
            IntegrityError: the tag does not fit: damaged data, or written with another key.
        """
        room = bytearray(len(ciphertext) + CIPHER_SLACK)
        return bytes(self.decrypt_into(iv, tag, ciphertext, room))

    def decrypt_into(
        self, iv: bytes, tag: bytes, ciphertext: Buffer, room: bytearray | memoryview
    ) -> memoryview:
        """Decrypt into `room` and return the plaintext, a view of it.

        `room` is CIPHER_SLACK bytes longer than the ciphertext. Raises IntegrityError as `decrypt`
        does; `room` then holds bytes that nobody may use.
        """
        _check_iv(iv)
        opener = Cipher(self._algorithm, modes.GCM(iv, tag)).decryptor()
        size = opener.update_into(memoryview(ciphertext), room)
        try:
            opener.finalize()
        except InvalidTag as error:
            raise IntegrityError(
                "decryption failed: damaged, or encrypted with another key"
            ) from error
        return memoryview(room)[:size]


def chunk_digest(plain: Buffer, key: CryptConfig | None) -> Digest:
    """Return a chunk's name: SHA-256 of the plaintext, keyed if the chunk is (to be) encrypted."""
    return key.digest(plain) if key else Digest(hashlib.sha256(plain).digest())


def _check_iv(iv: bytes) -> None:
    if len(iv) != IV_SIZE:
        raise ValueError(f"an IV has {IV_SIZE} bytes, not {len(iv)}")
