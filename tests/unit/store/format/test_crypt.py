"""Keys: PBS's vectors (spec section 3), and the laws of sealing."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.errors import IntegrityError
from store.format.crypt import CryptConfig, chunk_digest
from store.format.keys import KeyFile

KEY = CryptConfig(bytes(range(32)))
IV = bytes(range(16, 32))
ZEROS = bytes(4 * 1024 * 1024)


def test_id_key_and_fingerprint() -> None:
    assert KEY.id_key.hex() == "7c2c013efd07f3b25717a485263343cd4d292a4b65c200bb3b18ea227abe225c"
    assert KEY.fingerprint.hex() == (
        "0eabd4460b6eb9ca345023dee2b778c790e54a1683b9659c0a57ae199090159b"
    )


@pytest.mark.parametrize(
    ("plain", "key", "digest"),
    [
        (b"abc", KEY, "ae52f0812a2f1ac3f368d9295cf6419bdff5fe1fe197e48052dd2f7e6d00a6fd"),
        (ZEROS, KEY, "348571e12bbbedb529def1f1394316e338a01945d871df9ef792617ceb13d636"),
        (ZEROS, None, "bb9f8df61474d25e71fa00722318cd387396ca1736605e1248821cc0de3d3af8"),
    ],
)
def test_chunk_digest(plain: bytes, key: CryptConfig | None, digest: str) -> None:
    assert chunk_digest(plain, key).hex() == digest


def test_repr_hides_the_key() -> None:
    shown = repr(KEY)
    assert KEY.key.hex() not in shown
    assert KEY.id_key.hex() not in shown
    assert KEY.fingerprint.short in shown


@pytest.mark.parametrize("size", [0, 31, 33])
def test_key_size(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        CryptConfig(bytes(size))


@pytest.mark.parametrize("iv", [b"", bytes(12), bytes(17)])
def test_iv_size(iv: bytes) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        KEY.encrypt(iv, b"")
    with pytest.raises(ValueError, match="16 bytes"):
        KEY.decrypt(iv, bytes(16), b"")


@given(plain=st.binary(max_size=5000), key=st.binary(min_size=32, max_size=32))
def test_round_trip(plain: bytes, key: bytes) -> None:
    config = CryptConfig(key)
    tag, sealed = config.encrypt(IV, memoryview(plain))
    assert len(tag) == 16
    assert len(sealed) == len(plain)
    assert config.decrypt(IV, tag, sealed) == plain
    assert config.digest(plain) == hashlib.sha256(plain + config.id_key).digest()


@given(plain=st.binary(min_size=1, max_size=300), data=st.data())
def test_any_flipped_bit_is_found(plain: bytes, data: st.DataObject) -> None:
    tag, sealed = KEY.encrypt(IV, plain)
    raw = bytearray(IV + tag + sealed)
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(IntegrityError):
        KEY.decrypt(bytes(raw[:16]), bytes(raw[16:32]), raw[32:])


def test_another_key_does_not_open() -> None:
    tag, sealed = KEY.encrypt(IV, b"secret")
    with pytest.raises(IntegrityError, match="another key"):
        CryptConfig(bytes(32)).decrypt(IV, tag, sealed)


def test_golden_fingerprints(golden: Path, golden_keys: tuple[CryptConfig, ...]) -> None:
    for name, key in zip(("none", "scrypt", "pbkdf2"), golden_keys, strict=True):
        assert KeyFile.decode((golden / f"keys/{name}.json").read_bytes()).fingerprint == (
            key.fingerprint
        )
