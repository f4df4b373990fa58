"""Which key a command takes: PBS's table of --keyfile, --crypt-mode and the default keys."""

import argparse
import os
from pathlib import Path

import pytest

from store.cli.encryption import load_backup_keys, load_key
from store.cli.options import add_key_options
from store.errors import FormatError, InvalidName, KeyRequired, NotFound, WrongKey
from store.format.keys import KeyFile
from store.format.manifest import CryptMode
from tests.unit.store.cli.conftest import KEYS

NONE, SCRYPT = KEYS / "none.json", KEYS / "scrypt.json"
MASTER = KEYS / "master-public.pem"
FINGERPRINTS = {path: KeyFile.decode(path.read_bytes()).fingerprint for path in (NONE, SCRYPT)}


def parse(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_key_options(parser, master=True)
    return parser.parse_args([str(argument) for argument in arguments])


def set_default(tmp_path: Path, source: Path, name: str = "encryption-key.json") -> None:
    place = tmp_path / "config/proxmox-backup" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(source.read_bytes())


def test_no_key() -> None:
    assert load_key(parse()) is None
    keys = load_backup_keys(parse())
    assert (keys.mode, keys.key, keys.key_file, keys.master_public_key) == (
        CryptMode.NONE,
        *[None] * 3,
    )


def test_keyfile_means_encrypt() -> None:
    assert load_key(parse("--keyfile", NONE)).fingerprint == FINGERPRINTS[NONE]
    keys = load_backup_keys(parse("--keyfile", NONE))
    assert keys.mode is CryptMode.ENCRYPT
    assert keys.key.fingerprint == keys.key_file.fingerprint == FINGERPRINTS[NONE]
    assert keys.master_public_key is None


def test_sign_only() -> None:
    keys = load_backup_keys(parse("--keyfile", NONE, "--crypt-mode", "sign-only"))
    assert keys.mode is CryptMode.SIGN_ONLY
    assert keys.key is not None


def test_descriptor() -> None:
    descriptor = os.open(NONE, os.O_RDONLY)
    assert load_key(parse("--keyfd", descriptor)).fingerprint == FINGERPRINTS[NONE]


def test_default_key(tmp_path: Path) -> None:
    set_default(tmp_path, NONE)
    assert load_key(parse()).fingerprint == FINGERPRINTS[NONE]
    assert load_backup_keys(parse()).mode is CryptMode.ENCRYPT
    assert load_key(parse("--crypt-mode", "none")) is None
    assert load_backup_keys(parse("--crypt-mode", "none")).key is None


def test_system_wide_default_key(tmp_path: Path) -> None:
    place = tmp_path / "xdg/proxmox-backup/encryption-key.json"
    place.parent.mkdir(parents=True)
    place.write_bytes(NONE.read_bytes())
    assert load_key(parse()).fingerprint == FINGERPRINTS[NONE]


def test_keyfile_beats_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_default(tmp_path, NONE)
    monkeypatch.setenv("PBS_ENCRYPTION_PASSWORD", "key-password")
    assert load_key(parse("--keyfile", SCRYPT)).fingerprint == FINGERPRINTS[SCRYPT]


def test_master_key(tmp_path: Path) -> None:
    keys = load_backup_keys(parse("--keyfile", NONE, "--master-pubkey-file", MASTER))
    assert keys.master_public_key == MASTER.read_bytes()
    set_default(tmp_path, MASTER, "master-public.pem")
    assert load_backup_keys(parse("--keyfile", NONE)).master_public_key == MASTER.read_bytes()
    signed = load_backup_keys(parse("--keyfile", NONE, "--crypt-mode", "sign-only"))
    assert signed.master_public_key is None
    assert load_backup_keys(parse()).master_public_key is None


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--keyfile", NONE, "--crypt-mode", "none"], InvalidName),
        (["--keyfd", 3, "--crypt-mode", "none"], InvalidName),
        (["--keyfile", NONE, "--keyfd", 3], InvalidName),
        (["--keyfd", 999], InvalidName),
        (["--master-pubkey-file", MASTER, "--crypt-mode", "none"], InvalidName),
        (["--crypt-mode", "encrypt"], KeyRequired),
        (["--crypt-mode", "sign-only"], KeyRequired),
        (["--master-pubkey-file", MASTER], KeyRequired),
        (["--keyfile", "/nonexistent"], NotFound),
        (["--keyfile", MASTER], FormatError),
        (["--keyfile", SCRYPT], KeyRequired),
        (["--keyfd", "999"], InvalidName),
        (["--keyfd", "-1"], InvalidName),
        (["--keyfd", "9" * 30], InvalidName),
    ],
)
def test_refusals(arguments: list[object], error: type[Exception]) -> None:
    with pytest.raises(error):
        load_backup_keys(parse(*arguments))


def test_wrong_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PBS_ENCRYPTION_PASSWORD", "not this one")
    with pytest.raises(WrongKey):
        load_key(parse("--keyfile", SCRYPT))


@pytest.mark.parametrize("passphrase", ["not this one", "no", None])
def test_the_key_file_that_does_not_open_is_named(
    monkeypatch: pytest.MonkeyPatch, passphrase: str | None
) -> None:
    if passphrase is not None:
        monkeypatch.setenv("PBS_ENCRYPTION_PASSWORD", passphrase)
    with pytest.raises(KeyRequired, match=f"^{SCRYPT}: "):
        load_backup_keys(parse("--keyfile", SCRYPT))


def test_what_is_no_master_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "master.pem"
    path.write_text("no PEM")
    with pytest.raises(FormatError, match=f"^{path}: "):
        load_backup_keys(parse("--keyfile", NONE, "--master-pubkey-file", path))


@pytest.mark.expect_warnings
def test_reading_without_the_default_keys_passphrase(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A default key must not stand in the way of reading what is not encrypted."""
    set_default(tmp_path, SCRYPT)
    assert load_key(parse()) is None
    assert "without the default key" in caplog.text
    with pytest.raises(KeyRequired):
        load_backup_keys(parse())
    with pytest.raises(KeyRequired):
        load_key(parse("--keyfile", SCRYPT))


@pytest.mark.parametrize("text", ["", "[]", '{"kdf": null', '{"kdf": null, "data": "AAAA"}'])
def test_what_is_no_key_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "vault.json"
    path.write_text(text)
    for load in (load_key, load_backup_keys):
        with pytest.raises(FormatError, match=f"^{path}: "):
            load(parse("--keyfile", path))
