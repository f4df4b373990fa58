from random import Random

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC, ECB
from hypothesis import given
from hypothesis import strategies as st

from store.disks.parsers.cbc import Cbc


def encrypted(key: bytes, plain: bytes, first: int, sector: int) -> bytes:
    """By OpenSSL, one sector after the other."""
    parts = []
    for at in range(0, len(plain), sector):
        place = (first * sector + at).to_bytes(16, "little")
        start = Cipher(AES(key), ECB()).encryptor().update(place)
        parts.append(Cipher(AES(key), CBC(start)).encryptor().update(plain[at : at + sector]))
    return b"".join(parts)


@given(
    st.binary(min_size=16, max_size=16) | st.binary(min_size=32, max_size=32),
    st.sampled_from([512, 4096]),
    st.integers(0, 2**40),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_as_openssl(key: bytes, sector: int, first: int, count: int, rng: Random) -> None:
    plain = rng.randbytes(count * sector)
    assert Cbc(key, sector).decrypt(encrypted(key, plain, first, sector), first) == plain
