"""`vaultway key doctor` on the golden datastore: which keys it takes, what it prints."""

import json
from pathlib import Path

import pytest

from store.repositories.repository import open_datastore
from store.repositories.settings import RepositorySettings
from tests.fakes.datastores import bare_backend, snapshot, write_snapshot
from tests.unit.store.cli.conftest import KEYS, Vaultway

SCRYPT, PBKDF2, NONE = (KEYS / f"{name}.json" for name in ("scrypt", "pbkdf2", "none"))
NEEDED = {"host/encrypted": SCRYPT, "vm/101": PBKDF2, "host/master": NONE}


@pytest.fixture(autouse=True)
def passphrases(monkeypatch: pytest.MonkeyPatch, golden: Path) -> None:
    monkeypatch.setenv("PBS_ENCRYPTION_PASSWORD", "key-password")
    monkeypatch.setenv("PBS_MASTER_PASSWORD", "master-password")
    monkeypatch.setenv("PBS_REPOSITORY", str(golden / "datastore"))


def options(*keys: Path) -> list[object]:
    return [part for key in keys for part in ("--keyfile", key)]


def test_all_keys(vaultway: Vaultway) -> None:
    done = vaultway("key", "doctor", *options(SCRYPT, PBKDF2, NONE))
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("16 snapshots, ")
    assert done.out.endswith("all can be opened\n")


def test_the_repositorys_key_counts_too(
    vaultway: Vaultway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULTWAY_KEYFILE", str(SCRYPT))
    assert "host/encrypted" not in vaultway("key", "doctor").out
    assert vaultway("key", "doctor", *options(PBKDF2, NONE)).code == 0


@pytest.mark.parametrize("missing", NEEDED)
def test_one_key_less(vaultway: Vaultway, missing: str) -> None:
    keys = [key for group, key in NEEDED.items() if group != missing]
    done = vaultway("key", "doctor", *options(*keys), "--output-format", "json")
    assert done.code == 13
    found = json.loads(done.out)
    assert found["snapshots"] == 16
    assert {one["snapshot"].rpartition("/")[0] for one in found["findings"]} == {missing}
    needed = json.loads(NEEDED[missing].read_bytes())["fingerprint"]
    assert {one["fingerprint"] for one in found["findings"]} == {needed}
    assert {one["rsa-encrypted-key"] for one in found["findings"]} == {missing == "host/master"}


def test_no_key_at_all(vaultway: Vaultway) -> None:
    done = vaultway("key", "doctor")
    assert done.code == 13
    assert done.out.count("needs the key") == 5
    assert "5 could not be restored" in done.out


def test_in_one_namespace(vaultway: Vaultway) -> None:
    done = vaultway("key", "doctor", "--ns", "prod")
    assert done.code == 0
    assert done.out.startswith("1 snapshots, ")
    assert vaultway("key", "doctor", "--ns", "none").code == 10


def test_a_master_key_opens_what_carries_its_key(vaultway: Vaultway) -> None:
    private = ("--master-keyfile", KEYS / "master-private.pem")
    assert vaultway("key", "doctor", *options(SCRYPT, PBKDF2), *private).code == 0


def test_a_wrong_master_passphrase(vaultway: Vaultway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PBS_MASTER_PASSWORD", "no such thing")
    private = ("--master-keyfile", KEYS / "master-private.pem")
    assert vaultway("key", "doctor", *private).code == 13


@pytest.mark.expect_warnings
def test_a_key_that_does_not_open_is_pointed_at(
    vaultway: Vaultway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PBS_ENCRYPTION_PASSWORD", "another one")
    done = vaultway("key", "doctor", *options(SCRYPT, NONE))
    assert done.code == 13
    assert f"its key file is {SCRYPT}, which was not opened: wrong passphrase" in done.out
    assert str(SCRYPT) in done.err


def test_the_default_key_is_used_and_others_beside_it_are_pointed_at(
    vaultway: Vaultway, tmp_path: Path
) -> None:
    folder = tmp_path / "config/proxmox-backup"
    folder.mkdir(parents=True)
    (folder / "encryption-key.json").write_bytes(SCRYPT.read_bytes())
    (folder / "old.json").write_bytes(PBKDF2.read_bytes())
    (folder / "other.json").write_text("{}")
    done = vaultway("key", "doctor")
    assert done.code == 13
    assert "host/encrypted" not in done.out
    assert f"its key file is {folder / 'old.json'} (give it with --keyfile)" in done.out


def test_a_key_file_that_is_none(vaultway: Vaultway, tmp_path: Path) -> None:
    assert vaultway("key", "doctor", "--keyfile", tmp_path / "no.json").code == 10
    (tmp_path / "bad.json").write_text("{}")
    assert vaultway("key", "doctor", "--keyfile", tmp_path / "bad.json").code == 14


def test_damage(vaultway: Vaultway, golden_copy: Path) -> None:
    (golden_copy / "vm/100/2025-01-02T00:00:00Z/drive-scsi0.img.fidx").unlink()
    done = vaultway("key", "doctor", "--repository", golden_copy)
    assert done.code == 15
    line = next(line for line in done.out.splitlines() if "vm/100" in line)
    assert line.startswith("vm/100/2025-01-02T00:00:00Z/drive-scsi0.img.fidx: ")


def test_chunks_that_only_the_cache_has_are_missing(vaultway: Vaultway, tmp_path: Path) -> None:
    place, cache = tmp_path / "vault", tmp_path / "kept"
    bare_backend(place).close()
    settings = RepositorySettings(str(place), cache=cache, cache_bytes=1 << 30)
    with open_datastore(settings) as datastore:
        write_snapshot(datastore, snapshot(1))
        for chunk in datastore.backend.walk(".chunks"):
            datastore.backend.read(f".chunks/{chunk.name}")
    arguments = ("--repository", place, "--cache", cache, "--cache-size", "1G")
    assert vaultway("key", "doctor", *arguments).code == 0
    for path in list((place / ".chunks").glob("*/*")):
        path.unlink()
    assert vaultway("key", "doctor", *arguments).code == 15
