"""AES-CBC for many sectors at once, as BitLocker uses it: dissect.fve goes sector by sector.

    plaintext = D(key, ciphertext) ^ the block before, that of a sector's first is E(key, its place)

Source: libyal/libbde documentation/BitLocker Drive Encryption (BDE) format.asciidoc.
"""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

_BLOCK = 16


class Cbc:
    """Decrypts as dissect.fve's ciphers do.

    Args:
        key: of AES.
        sector_size: bytes that are encrypted as one, by whose number in bytes they start.
    """

    def __init__(self, key: bytes, sector_size: int) -> None:
        # ECB is what CBC is made of: no two blocks are alike after the XOR.
        self._cipher = Cipher(AES(key), ECB())  # noqa: S305
        self._sector = sector_size

    def decrypt(self, ciphertext: bytes | bytearray, sector: int = 0) -> bytes:
        """The plaintext of whole sectors, the first is number `sector`."""
        count = len(ciphertext) // self._sector
        raw = bytes(ciphertext[: count * self._sector])
        shape = (count, self._sector // _BLOCK, 2)
        before = np.empty(shape, dtype="<u8")
        before[:, 1:] = np.frombuffer(raw, dtype="<u8").reshape(shape)[:, :-1]
        before[:, 0] = self._starts(sector, count)
        plain = np.frombuffer(self._cipher.decryptor().update(raw), dtype="<u8").reshape(shape)
        return (plain ^ before).tobytes()

    def _starts(
        self, sector: int, count: int
    ) -> "np.ndarray[tuple[int, int], np.dtype[np.uint64]]":
        """What stands for the block before the first, by sector."""
        places = np.zeros((count, 2), dtype="<u8")
        places[:, 0] = (np.uint64(sector) + np.arange(count, dtype=np.uint64)) * np.uint64(
            self._sector
        )
        start = self._cipher.encryptor().update(places.tobytes())
        return np.frombuffer(start, dtype="<u8").reshape(count, 2)
