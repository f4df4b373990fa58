from random import Random

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS
from hypothesis import given
from hypothesis import strategies as st

from store.disks.parsers.xts import Xts


def encrypted(key: bytes, plain: bytes, first: int, sector: int, step: int, bits: int) -> bytes:
    """By OpenSSL, one sector after the other."""
    parts = []
    for index in range(len(plain) // sector):
        number = (first + index * step) & (1 << bits) - 1
        encryptor = Cipher(AES(key), XTS(number.to_bytes(16, "little"))).encryptor()
        parts.append(encryptor.update(plain[index * sector : (index + 1) * sector]))
    return b"".join(parts)


@given(
    st.binary(min_size=64, max_size=64) | st.binary(min_size=32, max_size=32),
    st.sampled_from([(512, 512), (4096, 512), (4096, 4096)]),
    st.integers(0, 2**40) | st.just(2**32 - 2),
    st.integers(0, 5),
    st.sampled_from([32, 64]),
    st.randoms(use_true_random=False),
)
def test_as_openssl(
    key: bytes, sizes: tuple[int, int], first: int, count: int, bits: int, rng: Random
) -> None:
    half = len(key) // 2
    if key[:half] == key[half:]:
        return  # OpenSSL refuses those
    sector, numbered = sizes
    plain = rng.randbytes(count * sector)
    cipher = encrypted(key, plain, first, sector, sector // numbered, bits)
    assert Xts(key, sector, numbered, bits).decrypt(cipher, first) == plain
    buffer = bytearray(cipher)
    assert Xts(key, sector, numbered, bits).decrypt(buffer, first, buffer) is None
    assert buffer == plain
