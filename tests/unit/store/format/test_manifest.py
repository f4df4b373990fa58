"""Manifests: PBS's vector (spec section 7.4), golden ones byte for byte, laws, hostile text."""

import contextlib
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.errors import FormatError, IntegrityError, NotFound, WrongKey
from store.format.crypt import CryptConfig
from store.format.manifest import CryptMode, FileInfo, Manifest
from store.names import BackupGroup, Snapshot
from tests.unit.store.format.stored_snapshot import StoredSnapshot

KEY = CryptConfig(bytes(range(32)))
OTHER_KEY = CryptConfig(bytes(32))
ELSA = Manifest(
    Snapshot(BackupGroup("host", "elsa"), 1593179765),
    (
        FileInfo("test1.img.fidx", CryptMode.ENCRYPT, 200, b"\1" * 32),
        FileInfo("abc.blob", CryptMode.NONE, 200, b"\2" * 32),
    ),
)
ELSA_CANONICAL = (
    '{"backup-id":"elsa","backup-time":1593179765,"backup-type":"host","files":['
    f'{{"crypt-mode":"encrypt","csum":"{"01" * 32}","filename":"test1.img.fidx","size":200}},'
    f'{{"crypt-mode":"none","csum":"{"02" * 32}","filename":"abc.blob","size":200}}]}}'
)

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
file_infos = st.builds(
    FileInfo,
    st.from_regex(r"\A[a-z0-9_][a-z0-9._-]{0,9}\.(fidx|didx|blob)\Z"),
    st.sampled_from(CryptMode),
    st.integers(0, 2**64 - 1),
    st.binary(min_size=32, max_size=32),
)
manifests = st.builds(
    Manifest,
    st.builds(
        Snapshot,
        st.builds(
            BackupGroup,
            st.sampled_from(["ct", "host", "vm"]),
            st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9._-]{0,9}\Z"),
        ),
        st.integers(1, 253402300799),
    ),
    st.lists(file_infos, max_size=4).map(tuple),
    st.none() | st.binary(min_size=32, max_size=32),
    st.dictionaries(texts.filter(lambda key: key != "key-fingerprint"), json_values, max_size=3),
)


def elsa_fields() -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(ELSA.encode())
    return fields


def decode(fields: object) -> Manifest:
    return Manifest.decode(json.dumps(fields).encode())


def test_signature_vector() -> None:
    key = CryptConfig(hashlib.scrypt(b"test", salt=b"", n=65536, r=8, p=1, maxmem=2**27, dklen=32))
    assert key.key.hex() == "28cdb1a3bef39396c3860e00d448fe7a0efd8244486ab6feb30457681d31597e"
    assert ELSA.canonical() == ELSA_CANONICAL.encode()
    signature = ELSA.signed(key).signature
    assert signature is not None
    assert signature.hex() == "d7b446fb7db081662081d4b40fedd858a1d6307a5aff4ecff7d5bf4fd35679e9"


def test_text() -> None:
    manifest = Manifest(
        ELSA.snapshot, ELSA.files[1:], None, {"notes": 'für\n\x7f\x01"/\\', "a": {}}
    )
    assert manifest.encode().decode() == (
        '{\n  "backup-id": "elsa",\n  "backup-time": 1593179765,\n  "backup-type": "host",\n'
        '  "files": [\n    {\n      "crypt-mode": "none",\n'
        f'      "csum": "{"02" * 32}",\n      "filename": "abc.blob",\n      "size": 200\n    }}\n'
        '  ],\n  "signature": null,\n  "unprotected": {\n    "a": {},\n'
        '    "notes": "für\\n\x7f\\u0001\\"/\\\\"\n  }\n}'
    )


@given(manifests)
def test_round_trip(manifest: Manifest) -> None:
    text = manifest.encode()
    assert Manifest.decode(text) == manifest
    assert Manifest.decode(text).encode() == text


@given(manifests)
def test_signatures(manifest: Manifest) -> None:
    signed = manifest.signed(KEY)
    assert signed.key_fingerprint == KEY.fingerprint
    Manifest.decode(signed.encode()).verify(KEY)
    signed.with_unprotected(notes="changed").verify(KEY)
    with pytest.raises(WrongKey, match=KEY.fingerprint.hex(":")):
        signed.verify(OTHER_KEY)
    file = FileInfo("more.blob", CryptMode.NONE, 1, bytes(32))
    changed = Manifest(signed.snapshot, (*signed.files, file), signed.signature, signed.unprotected)
    with pytest.raises(IntegrityError, match="signature"):
        changed.verify(KEY)


def test_unsigned_manifests_verify() -> None:
    """As PBS has it; what then protects an encrypted archive is its chunks, which want the key."""
    ELSA.verify(KEY)


def test_a_signature_without_a_fingerprint_still_counts() -> None:
    signed = ELSA.signed(KEY).with_unprotected(**{"key-fingerprint": None})
    assert signed.key_fingerprint is None
    signed.verify(KEY)
    with pytest.raises(IntegrityError):
        signed.verify(OTHER_KEY)


def test_file() -> None:
    assert ELSA.file("abc.blob") is ELSA.files[1]
    with pytest.raises(NotFound, match=r"nope\.blob"):
        ELSA.file("nope.blob")


def test_with_unprotected() -> None:
    noted = ELSA.with_unprotected(notes="x", other=[None])
    assert noted.unprotected == {"notes": "x", "other": [None]}
    assert noted.with_unprotected(notes=None).unprotected == {"other": [None]}
    odd = Manifest(ELSA.snapshot, (), None, {"null": None})
    assert odd.with_unprotected(notes="x").unprotected == {"null": None, "notes": "x"}
    assert ELSA.unprotected == {}


def test_what_may_be_missing() -> None:
    fields = elsa_fields()
    del fields["signature"], fields["unprotected"], fields["files"][1]["crypt-mode"]
    assert decode(fields) == ELSA


def test_unknown_keys() -> None:
    fields = elsa_fields() | {"extra": 1, "unprotected": {"extra": {"kept": [1, None]}}}
    fields["files"][0]["extra"] = 2
    assert decode(fields) == ELSA.with_unprotected(extra={"kept": [1, None]})


BAD: dict[str, object] = {
    "backup-type": "tape",
    "backup-id": "../etc",
    "backup-time": 0,
    "files": {},
    "signature": "00",
    "unprotected": [1],
}


@pytest.mark.parametrize("key", sorted(BAD))
def test_bad_fields(key: str) -> None:
    for value in (BAD[key], 1.5, True, "\n"):
        with pytest.raises(FormatError, match="bad manifest"):
            decode(elsa_fields() | {key: value})
    if key not in {"signature", "unprotected"}:
        with pytest.raises(FormatError):
            decode({k: v for k, v in elsa_fields().items() if k != key})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("filename", "../../etc/passwd.blob"),
        ("filename", "a.txt"),
        ("filename", "index.json.blob"),
        ("filename", None),
        ("crypt-mode", "rot13"),
        ("crypt-mode", None),
        ("size", -1),
        ("size", 2**64),
        ("size", True),
        ("size", 1.0),
        ("csum", "00"),
        ("csum", " " * 64),
        ("csum", None),
    ],
)
def test_bad_file_fields(key: str, value: object) -> None:
    fields = elsa_fields()
    fields["files"][0][key] = value
    with pytest.raises(FormatError, match="bad manifest"):
        decode(fields)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        ELSA.encode()[:-1],
        ELSA.encode() + b"x",
        ELSA.encode().replace(b"{}", b'{"notes": "\\ud800"}'),
        ELSA.encode().replace(b"{}", b'{"x": NaN}'),
        ELSA.encode().replace(b"{}", b'{"x": 1e999}'),
        ELSA.encode().replace(b"{}", b'{"x": ' + b"9" * 5000 + b"}"),
        ELSA.encode().replace(b"{}", b'{"x": ' + b"[" * 200 + b"]" * 200 + b"}"),
        ELSA.encode().replace(b"{}", b'{"key-fingerprint": "aa:bb"}'),
        ELSA.encode().replace(b"{}", b'{"key-fingerprint": 5}'),
    ],
    ids=range(15),
)
def test_hostile_text(text: bytes) -> None:
    with pytest.raises(FormatError):
        Manifest.decode(text)


@given(data=st.data())
def test_mutated_text(data: st.DataObject) -> None:
    text = bytearray(ELSA.signed(KEY).encode())
    at = data.draw(st.integers(0, len(text) - 1))
    if data.draw(st.booleans()):
        text[at] = data.draw(st.integers(0, 255))
    else:
        del text[at : at + data.draw(st.integers(1, 20))]
    with contextlib.suppress(FormatError):
        changed = Manifest.decode(text)
        assert Manifest.decode(changed.encode()) == changed
        with contextlib.suppress(WrongKey, IntegrityError):
            changed.verify(KEY)


def test_golden_manifests(golden_snapshots: tuple[StoredSnapshot, ...]) -> None:
    """The real PBS's manifests: the same bytes again, blob sums and sizes, signatures."""
    signed = 0
    for snapshot in golden_snapshots:
        manifest = snapshot.manifest
        assert manifest.encode() == snapshot.manifest_text
        assert str(manifest.snapshot).endswith("/".join(snapshot.path.parts[-3:]))
        for info in manifest.files:
            if info.filename.endswith(".blob"):
                raw = (snapshot.path / info.filename).read_bytes()
                assert (info.size, info.csum) == (len(raw), hashlib.sha256(raw).digest())
        if snapshot.key is None:
            assert manifest.signature is None
            assert manifest.key_fingerprint is None
            continue
        manifest.verify(snapshot.key)
        assert manifest.signed(snapshot.key) == manifest
        with pytest.raises(WrongKey):
            manifest.verify(OTHER_KEY)
        signed += 1
    assert signed == 7
