"""Key files and the master key, against the specification's vectors and a real PBS's files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.errors import (
    FormatError,
    IntegrityError,
    InvalidName,
    KeyRequired,
    StoreError,
    WrongKey,
)
from store.format.blob import decode_blob
from store.format.crypt import CryptConfig
from store.format.keys import (
    KeyFile,
    Pbkdf2,
    Scrypt,
    create_key_file,
    create_master_key,
    unwrap_key,
    wrap_crypt_config,
    wrap_key,
)
from store.names import Fingerprint

KEYS = Path(__file__).parents[3] / "golden/keys"
KEY, PASSPHRASE = bytes(range(32)), b"test123"
SALT, IV = bytes(range(0x40, 0x60)), bytes(range(0x80, 0x90))
NOW = "2026-01-02T03:04:05+01:00"
FAST = Scrypt(SALT, n=2)
VECTORS = {
    "scrypt": (
        Scrypt(SALT),
        "d7a5505fb223b7557e318435de6e5607c607fc5e018003d6117a15e3f7f5c028",
        "gIGCg4SFhoeIiYqLjI2Oj1+ku17PF8Jaa/OUoFXQBObX3tGdOxHcwj88l40Q82SRKuJyqApEvPcb/yC6FCMd6Q==",
    ),
    "pbkdf2": (
        Pbkdf2(SALT),
        "228c8dec7a8a9ade64390aeb818802d2b01b2bbc0fa5e09a80de60d3b4c3f21e",
        "gIGCg4SFhoeIiYqLjI2Oj0GhqiqCKmtST1pqutNfgjBjBJgoBHVRoHapP7m6NaDSXKI6IZ5GTJ5k4mVGZwWNWg==",
    ),
}
GOLDEN_KEYS = ("scrypt", "pbkdf2", "none")


@pytest.fixture(scope="module")
def master() -> tuple[bytes, bytes]:
    return create_master_key(b"master", bits=3072)


@pytest.mark.parametrize("name", VECTORS)
def test_vectors(name: str) -> None:
    kdf, derived, data = VECTORS[name]
    assert kdf.derive(PASSPHRASE).hex() == derived
    key_file = create_key_file(KEY, PASSPHRASE, kdf, IV, NOW)
    assert key_file.to_json()["data"] == data
    assert key_file.unlock(PASSPHRASE).key == KEY


def test_vector_without_passphrase() -> None:
    key_file = create_key_file(KEY, None, None, b"", NOW)
    assert key_file.to_json() == {
        "kdf": None,
        "created": NOW,
        "modified": NOW,
        "data": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        "fingerprint": str(CryptConfig(KEY).fingerprint),
    }


@pytest.mark.parametrize("name", GOLDEN_KEYS)
def test_golden_file_opens_and_encodes_to_the_same_bytes(name: str) -> None:
    raw = (KEYS / f"{name}.json").read_bytes()
    key_file = KeyFile.decode(raw)
    assert key_file.encode() == raw
    assert key_file.kdf_name == name
    assert key_file.unlock(b"key-password").fingerprint == key_file.fingerprint
    shown = json.loads((KEYS / f"{name}.show.json").read_bytes())
    assert (key_file.created_time, key_file.modified_time) == (shown["created"], shown["modified"])
    assert key_file.hint == shown.get("hint")


def test_wrapped_key_of_a_golden_snapshot(golden: Path) -> None:
    blob = golden / "datastore/host/master/2025-01-01T00:00:00Z/rsa-encrypted.key.blob"
    wrapped = decode_blob(blob.read_bytes())
    private = (KEYS / "master-private.pem").read_bytes()
    original = KeyFile.decode((KEYS / "none.json").read_bytes())
    key_file = unwrap_key(private, b"master-password", wrapped)
    assert (key_file.data, key_file.kdf, key_file.hint) == (original.data, None, None)
    assert key_file.created == original.created
    assert key_file.unlock().fingerprint == original.fingerprint


def test_wrap_for_the_golden_master_key() -> None:
    """Same shape as PBS's: one 512-byte block around a compact, passwordless key file."""
    key = CryptConfig(KEY)
    wrapped = wrap_crypt_config((KEYS / "master-public.pem").read_bytes(), key, NOW, NOW)
    assert len(wrapped) == 512
    private = (KEYS / "master-private.pem").read_bytes()
    key_file = unwrap_key(private, b"master-password", wrapped)
    assert key_file == create_key_file(KEY, None, None, b"", NOW)


@pytest.mark.parametrize("passphrase", [b"wrong", b"test1234", b"abc", b""])
def test_wrong_passphrase(passphrase: bytes) -> None:
    key_file = create_key_file(KEY, PASSPHRASE, FAST, IV, NOW, hint="a name")
    with pytest.raises(WrongKey):
        key_file.unlock(passphrase)


def test_no_passphrase_names_key_and_hint() -> None:
    key_file = create_key_file(KEY, PASSPHRASE, FAST, IV, NOW, hint="a name")
    with pytest.raises(KeyRequired, match=f"{key_file.fingerprint.short}.*hint: a name"):
        key_file.unlock()


def test_fingerprint_of_another_key() -> None:
    key_file = create_key_file(KEY, None, None, b"", NOW)
    with pytest.raises(IntegrityError):
        replace(key_file, fingerprint=Fingerprint(bytes(32))).unlock()


def test_fingerprint_and_hint_are_optional() -> None:
    fields = json.loads(create_key_file(KEY, None, None, b"", NOW).encode())
    del fields["fingerprint"]
    key_file = KeyFile.decode(json.dumps(fields))
    assert key_file.fingerprint is None
    assert key_file.unlock().key == KEY
    assert json.loads(key_file.encode()) == fields


def test_utc_times_are_read() -> None:
    fields = json.loads(create_key_file(KEY, None, None, b"", NOW).encode())
    fields["created"] = "2020-06-26T13:56:05Z"
    assert KeyFile.decode(json.dumps(fields)).created_time == 1593179765


@pytest.mark.parametrize("passphrase", [None, b"", b"1234"])
def test_short_passphrase_is_refused(passphrase: bytes | None) -> None:
    with pytest.raises(InvalidName):
        create_key_file(KEY, passphrase, FAST, IV, NOW)


def test_hint_without_passphrase_is_refused() -> None:
    with pytest.raises(InvalidName):
        create_key_file(KEY, None, None, b"", NOW, hint="none needed")


def test_repr_has_no_secret() -> None:
    key_file = create_key_file(KEY, None, None, b"", NOW)
    assert str(KEY) not in repr(key_file)
    assert KEY.hex() not in repr(key_file)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"kdf":null}',
        b'{"kdf":{"MD5":{}},"created":"","modified":"","data":""}',
    ],
)
def test_not_a_key_file(text: bytes) -> None:
    with pytest.raises(FormatError):
        KeyFile.decode(text)


BAD_FIELDS = [
    ("created", "yesterday"),
    ("created", "2026-01-02T03:04:05"),
    ("created", "2026-01-02T03:04Z"),
    ("modified", 5),
    ("data", "AAEC"),
    ("data", "!" * 44),
    ("data", None),
    ("fingerprint", "aa:bb"),
    ("fingerprint", 7),
    ("hint", []),
    ("kdf", "scrypt"),
    ("kdf", {}),
    ("kdf", {"Scrypt": None}),
    ("kdf", {"Scrypt": {"n": "x", "r": 8, "p": 1, "salt": ""}}),
    ("kdf", {"PBKDF2": {"iter": True, "salt": ""}}),
]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS)
def test_bad_field(field: str, value: object) -> None:
    fields = json.loads(create_key_file(KEY, None, None, b"", NOW).encode())
    with pytest.raises(FormatError):
        KeyFile.decode(json.dumps(fields | {field: value}))


@pytest.mark.parametrize(
    "kdf",
    [Scrypt(SALT, n=1 << 30), Scrypt(SALT, n=3), Scrypt(SALT, r=1 << 30), Pbkdf2(SALT, 1 << 31)],
)
def test_hostile_parameters_end_at_once(kdf: Scrypt | Pbkdf2) -> None:
    with pytest.raises(FormatError):
        KeyFile(kdf, NOW, NOW, bytes(64)).unlock(PASSPHRASE)


@settings(max_examples=100)
@given(st.data())
def test_mutations_never_crash(data: st.DataObject) -> None:
    raw = bytearray(create_key_file(KEY, PASSPHRASE, FAST, IV, NOW, hint="h").encode())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        # Not every mutant of the parameters is worth deriving with: only decode the slow ones.
        key_file = KeyFile.decode(bytes(raw))
        if key_file.kdf == FAST:
            assert key_file.unlock(PASSPHRASE).key == KEY
    except StoreError:
        pass


@given(
    key=st.binary(min_size=32, max_size=32),
    passphrase=st.binary(min_size=5, max_size=80),
    hint=st.none() | st.text(max_size=64).filter(str.isprintable),
)
def test_round_trip(key: bytes, passphrase: bytes, hint: str | None) -> None:
    key_file = create_key_file(key, passphrase, FAST, IV, NOW, hint=hint)
    again = KeyFile.decode(key_file.encode())
    assert again == key_file
    assert again.unlock(passphrase).key == key


def test_master_key_round_trip(master: tuple[bytes, bytes]) -> None:
    private, public = master
    assert private.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    wrapped = wrap_crypt_config(public, CryptConfig(KEY), NOW, NOW)
    assert unwrap_key(private, b"master", wrapped).unlock().key == KEY


def test_master_key_refusals(master: tuple[bytes, bytes]) -> None:
    private, public = master
    wrapped = wrap_crypt_config(public, CryptConfig(KEY), NOW, NOW)
    with pytest.raises(KeyRequired):
        unwrap_key(private, None, wrapped)
    with pytest.raises(WrongKey):
        unwrap_key(private, b"mister", wrapped)
    with pytest.raises(WrongKey):
        unwrap_key((KEYS / "master-private.pem").read_bytes(), b"master-password", wrapped)
    with pytest.raises(WrongKey):
        unwrap_key(private, b"master", wrapped[:-1] + bytes([wrapped[-1] ^ 1]))
    with pytest.raises(FormatError):
        wrap_key(b"-----BEGIN PUBLIC KEY-----\n", b"{}")
    with pytest.raises(FormatError):
        unwrap_key(public, None, wrapped)
    with pytest.raises(InvalidName):
        wrap_key(public, bytes(374))
    with pytest.raises(InvalidName):
        create_master_key(b"1234")
