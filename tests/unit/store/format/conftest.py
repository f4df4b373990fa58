"""The golden datastore and bucket for the tests of the format layer."""

from pathlib import Path

import pytest

from store.format.crypt import CryptConfig
from store.format.keys import KeyFile
from tests.unit.store.format.stored_snapshot import StoredSnapshot

KEY_PASSWORD = b"key-password"


@pytest.fixture(scope="session")
def golden_keys(golden: Path) -> tuple[CryptConfig, ...]:
    """The keys of none.json, scrypt.json and pbkdf2.json."""
    files = [golden / "keys" / f"{name}.json" for name in ("none", "scrypt", "pbkdf2")]
    return tuple(KeyFile.decode(file.read_bytes()).unlock(KEY_PASSWORD) for file in files)


@pytest.fixture(scope="session")
def golden_snapshots(
    golden: Path, golden_keys: tuple[CryptConfig, ...]
) -> tuple[StoredSnapshot, ...]:
    """All 16 snapshots of the datastore and 3 of the bucket."""
    found = tuple(
        StoredSnapshot(manifest.parent, store / ".chunks", golden_keys)
        for store in (golden / "datastore", golden / "bucket" / "golds3")
        for manifest in sorted(store.rglob("index.json.blob"))
    )
    assert len(found) == 19
    return found
