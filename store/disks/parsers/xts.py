"""AES-XTS for many sectors at once: dissect.fve goes block by block, at less than 1 MB/s.

    plaintext = D(key1, ciphertext ^ T) ^ T,  T = E(key2, sector) * a^block in GF(2^128)

Source: IEEE 1619-2018.
"""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

_BLOCK = 16
_REDUCTION = np.uint64(0x87)
_ONE, _TOP = np.uint64(1), np.uint64(63)


class Xts:
    """Decrypts as dissect.fve's ciphers do.

    Args:
        key: both keys, one behind the other.
        sector_size: bytes that are encrypted as one.
        numbered: bytes by which sectors are counted: 512, or `sector_size`.
        bits: of the sector's number that count (plain: 32, plain64: 64).
    """

    def __init__(self, key: bytes, sector_size: int, numbered: int, bits: int = 64) -> None:
        half = len(key) // 2
        # ECB is what XTS is made of: the tweaks see to it that no two blocks are alike.
        self._data = Cipher(AES(key[:half]), ECB())  # noqa: S305
        self._tweak = Cipher(AES(key[half:]), ECB())  # noqa: S305
        self._sector, self._step = sector_size, sector_size // numbered
        self._mask = np.uint64((1 << bits) - 1)

    def decrypt(
        self, ciphertext: bytes | bytearray, sector: int = 0, output: bytearray | None = None
    ) -> bytes | None:
        """The plaintext of whole sectors, the first is number `sector`; into `output` if any."""
        count = len(ciphertext) // self._sector
        tweaks = self._tweaks(sector, count)
        size = count * self._sector
        data = np.frombuffer(bytes(ciphertext[:size]), dtype="<u8").reshape(tweaks.shape) ^ tweaks
        plain = np.frombuffer(self._data.decryptor().update(data.tobytes()), dtype="<u8")
        result = (plain.reshape(tweaks.shape) ^ tweaks).tobytes()
        if output is None:
            return result
        output[:size] = result
        return None

    def _tweaks(
        self, sector: int, count: int
    ) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint64]]":
        """One for each block, as two halves, the low one first: (sectors, blocks, 2)."""
        numbers = np.zeros((count, 2), dtype="<u8")
        first = np.uint64(sector)
        numbers[:, 0] = (
            first + np.arange(count, dtype=np.uint64) * np.uint64(self._step)
        ) & self._mask
        start = self._tweak.encryptor().update(numbers.tobytes())
        tweaks = np.empty((self._sector // _BLOCK, count, 2), dtype="<u8")
        tweaks[0] = np.frombuffer(start, dtype="<u8").reshape(count, 2)
        for index in range(1, len(tweaks)):
            low, high = tweaks[index - 1, :, 0], tweaks[index - 1, :, 1]
            tweaks[index, :, 0] = (low << _ONE) ^ ((high >> _TOP) * _REDUCTION)
            tweaks[index, :, 1] = (high << _ONE) | (low >> _TOP)
        return np.ascontiguousarray(tweaks.transpose(1, 0, 2))
