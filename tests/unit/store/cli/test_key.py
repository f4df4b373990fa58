"""`vaultway key`: files made, shown, re-locked, printed, wrapped and unwrapped."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from store.format.crypt import CryptConfig
from store.format.keys import KeyFile, wrap_crypt_config
from store.format.keys import create_master_key as make_master_key
from store.format.paperkey import paper_key_png
from tests.program import PROGRAM, environment
from tests.unit.store.cli.conftest import KEYS, Vaultway


@pytest.mark.parametrize("kdf", ["scrypt", "pbkdf2"])
def test_create(
    vaultway: Vaultway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kdf: str
) -> None:
    monkeypatch.setenv("PBS_ENCRYPTION_PASSWORD", "correct horse")
    path = tmp_path / "key.json"
    done = vaultway("key", "create", path, "--kdf", kdf, "--hint", "ünïcödé")
    assert (done.code, done.err) == (0, "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key_file = KeyFile.decode(path.read_bytes())
    assert (key_file.kdf_name, key_file.hint) == (kdf, "ünïcödé")
    assert str(key_file.fingerprint) in done.out
    assert key_file.unlock(b"correct horse").fingerprint == key_file.fingerprint


def test_create_without_passphrase(vaultway: Vaultway, tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    assert vaultway("key", "create", path, "--kdf", "none").code == 0
    golden = json.loads((KEYS / "none.json").read_bytes())
    made = json.loads(path.read_bytes())
    assert list(made) == list(golden)
    assert made["kdf"] is None
    KeyFile.decode(path.read_bytes()).unlock()


def test_create_in_the_default_place(vaultway: Vaultway, tmp_path: Path) -> None:
    assert vaultway("key", "create", "--kdf", "none").code == 0
    path = tmp_path / "config/proxmox-backup/encryption-key.json"
    assert str(path) in vaultway("key", "show").out
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_create_never_overwrites(vaultway: Vaultway, tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    path.write_text("precious")
    done = vaultway("key", "create", path, "--kdf", "none")
    assert (done.code, done.out) == (10, "")
    assert done.err == f"vaultway: {path}: there already; keys are never overwritten\n"
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "password", "code", "words"),
    [
        ((), None, 13, "set PBS_ENCRYPTION_PASSWORD, PBS_ENCRYPTION_PASSWORD_FILE"),
        ((), "1234", 2, "too short"),
        (("--kdf", "none", "--hint", "x"), None, 2, "--hint"),
        (("--kdf", "md5"), None, 2, "invalid choice"),
    ],
)
def test_create_refusals(
    vaultway: Vaultway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    password: str | None,
    code: int,
    words: str,
) -> None:
    if password is not None:
        monkeypatch.setenv("PBS_ENCRYPTION_PASSWORD", password)
    done = vaultway("key", "create", tmp_path / "key.json", *arguments)
    assert done.code == code
    assert words in done.err
    assert list(tmp_path.iterdir()) == []


def test_create_in_a_missing_directory(vaultway: Vaultway, tmp_path: Path) -> None:
    done = vaultway("key", "create", tmp_path / "no/key.json", "--kdf", "none")
    assert done.code == 10
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("name", ["scrypt", "pbkdf2", "none"])
def test_show(vaultway: Vaultway, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(KEYS)
    shown = vaultway("key", "show", f"{name}.json", "--output-format", "json")
    assert json.loads(shown.out) == json.loads((KEYS / f"{name}.show.json").read_bytes())
    assert shown.out.count("\n") == 1
    fingerprint = json.loads(shown.out)["fingerprint"]
    assert fingerprint in vaultway("key", "show", f"{name}.json").out


@pytest.mark.parametrize("command", ["show", "paperkey", "change-passphrase"])
def test_damaged_key_file(vaultway: Vaultway, tmp_path: Path, command: str) -> None:
    path = tmp_path / "key.json"
    path.write_bytes(b"\xff{}")
    done = vaultway("key", command, path)
    assert done.code == 14
    assert str(path) in done.err or command == "paperkey"
    assert vaultway("key", command, tmp_path / "none").code == 10
    assert vaultway("key", command).code == 10


def test_change_passphrase(
    vaultway: Vaultway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key.json"
    path.write_bytes((KEYS / "scrypt.json").read_bytes())
    old = KeyFile.decode(path.read_bytes())
    monkeypatch.setenv("PBS_ENCRYPTION_PASSWORD", "key-password")
    assert vaultway("key", "change-passphrase", path).code == 13
    assert path.read_bytes() == old.encode()
    monkeypatch.setenv("PBS_NEW_ENCRYPTION_PASSWORD", "battery staple")
    done = vaultway("key", "change-passphrase", path, "--kdf", "pbkdf2", "--hint", "new")
    assert (done.code, done.err) == (0, "")
    new = KeyFile.decode(path.read_bytes())
    assert (new.created, new.kdf_name, new.hint) == (old.created, "pbkdf2", "new")
    assert new.unlock(b"battery staple").key == old.unlock(b"key-password").key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_paperkey(vaultway: Vaultway) -> None:
    done = vaultway("key", "paperkey", KEYS / "scrypt.json", "--output-format", "text")
    assert done.out == (KEYS / "paperkey.txt").read_text()
    assert vaultway("key", "paperkey", KEYS / "scrypt.json").out.startswith("<!DOCTYPE html>")


def test_paperkey_as_a_picture(vaultway: Vaultway) -> None:
    svg = vaultway("key", "paperkey", KEYS / "scrypt.json", "--output-format", "svg")
    assert (svg.code, svg.out[:5], svg.out[-7:]) == (0, "<svg ", "</svg>\n")
    refused = vaultway(
        "key", "paperkey", KEYS / "scrypt.json", "--output-format", "svg", "--subject", "x"
    )
    assert refused.code == 2


def test_paperkey_as_png() -> None:
    """Bytes, as they are: through the program itself."""
    command = [PROGRAM, "key", "paperkey", KEYS / "scrypt.json", "--output-format", "png"]
    done = subprocess.run(command, capture_output=True, check=True, env=environment())
    assert done.stdout == paper_key_png((KEYS / "scrypt.json").read_text())
    assert done.stderr == b""


def test_show_master_pubkey(vaultway: Vaultway, monkeypatch: pytest.MonkeyPatch) -> None:
    path = KEYS / "master-public.pem"
    done = vaultway("key", "show-master-pubkey", path, "--output-format", "json")
    shown = json.loads(done.out)
    assert shown.pop("path") == str(path)
    assert (shown.pop("length"), shown.pop("exponent")) == (4096, "65537")
    command = ["openssl", "rsa", "-pubin", "-in", path, "-noout", "-modulus"]
    openssl = subprocess.run(command, capture_output=True, text=True, check=True)
    assert openssl.stdout == f"Modulus={shown.pop('modulus')}\n"
    assert shown == {}
    lines = vaultway("key", "show-master-pubkey", path).out.splitlines()
    assert max(map(len, lines)) < 200, "its modulus is shortened"
    done = vaultway("key", "show-master-pubkey")
    assert (done.code, "no default master key" in done.err) == (10, True)
    assert vaultway("key", "import-master-pubkey", path).code == 0
    assert "master-public.pem" in vaultway("key", "show-master-pubkey").out
    done = vaultway("key", "show-master-pubkey", KEYS / "none.json")
    assert (done.code, "none.json" in done.err) == (14, True)


FORMS = ("environment", "file", "command", "descriptor", "terminal")


@pytest.fixture(params=FORMS)
def give(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str, str], None]:
    """`give(variable, secret)`: the passphrase in one of the five forms.

    On the terminal the prompts tell which one is asked for.
    """
    answers: dict[str, str] = {}
    prompts = {
        "PBS_ENCRYPTION_PASSWORD": ("Encryption key passphrase", "Passphrase of"),
        "PBS_NEW_ENCRYPTION_PASSWORD": ("New passphrase",),
        "PBS_MASTER_PASSWORD": ("Master key passphrase",),
    }

    def ask(prompt: str) -> str:
        prompt = prompt.removeprefix("Verify ")
        return next(secret for start, secret in answers.items() if prompt.startswith(start))

    def give(variable: str, secret: str) -> None:
        path = tmp_path / f"{variable} secret"
        path.write_text(secret + "\n")
        match request.param:
            case "environment":
                monkeypatch.setenv(variable, secret)
            case "file":
                monkeypatch.setenv(f"{variable}_FILE", str(path))
            case "command":
                monkeypatch.setenv(f"{variable}_CMD", f"cat '{path}'")
            case "descriptor":
                monkeypatch.setenv(f"{variable}_FD", str(os.open(path, os.O_RDONLY)))
            case _:
                answers.update(dict.fromkeys(prompts[variable], secret))
                monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
                monkeypatch.setattr("getpass.getpass", ask)

    return give


def test_every_command_takes_its_passphrases_in_every_form(
    vaultway: Vaultway,
    golden: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    give: Callable[[str, str], None],
) -> None:
    """create, change-passphrase, create-master-key, import-with-master-key and doctor.

    The other commands open no key. A descriptor can be read once, so each is given anew.
    """
    monkeypatch.chdir(tmp_path)
    path, pbkdf2 = tmp_path / "key.json", ("--kdf", "pbkdf2")
    give("PBS_ENCRYPTION_PASSWORD", "first one")
    assert vaultway("key", "create", path, *pbkdf2).code == 0
    give("PBS_ENCRYPTION_PASSWORD", "first one")
    give("PBS_NEW_ENCRYPTION_PASSWORD", "second one")
    assert vaultway("key", "change-passphrase", path, *pbkdf2).code == 0
    KeyFile.decode(path.read_bytes()).unlock(b"second one")
    give("PBS_ENCRYPTION_PASSWORD", "second one")
    doctor = ("key", "doctor", "--repository", golden / "datastore", "--quiet", "--keyfile", path)
    done = vaultway(*doctor, "--ns", "prod")
    assert (done.code, done.err) == (0, "")

    small = lambda passphrase: make_master_key(passphrase, 3072)  # noqa: E731 - 4096 take seconds
    monkeypatch.setattr("store.format.keys.create_master_key", small)
    give("PBS_MASTER_PASSWORD", "third one")
    assert vaultway("key", "create-master-key").code == 0
    original = KeyFile.decode((KEYS / "none.json").read_bytes())
    public = Path("master-public.pem").read_bytes()
    Path("wrapped").write_bytes(
        wrap_crypt_config(public, original.unlock(), *[original.created] * 2)
    )
    give("PBS_MASTER_PASSWORD", "third one")
    give("PBS_ENCRYPTION_PASSWORD", "fourth one")
    give("PBS_NEW_ENCRYPTION_PASSWORD", "fourth one")  # what the terminal is asked for
    back = ("key", "import-with-master-key", "master-private.pem", "wrapped", "back.json")
    assert vaultway(*back, *pbkdf2).code == 0
    back_file = KeyFile.decode(Path("back.json").read_bytes())
    assert back_file.unlock(b"fourth one").key == original.data


def test_master_key_round_trip(
    vaultway: Vaultway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lose the key, find the wrapped one in a backup, and get the key back."""
    created, key = "2026-01-02T03:04:05+01:00", CryptConfig(bytes(range(32)))
    public = (KEYS / "master-public.pem").read_bytes()
    wrapped = tmp_path / "rsa-encrypted.key"
    wrapped.write_bytes(wrap_crypt_config(public, key, created, created))
    path = tmp_path / "back.json"
    command = ("key", "import-with-master-key", KEYS / "master-private.pem", wrapped, path)
    assert vaultway(*command, "--kdf", "none").code == 13
    monkeypatch.setenv("PBS_MASTER_PASSWORD", "master-password")
    assert vaultway(*command, "--kdf", "none").code == 0
    back = KeyFile.decode(path.read_bytes())
    assert (back.unlock().key, back.created) == (key.key, created)


def test_import_with_master_key_from_a_stored_blob(
    vaultway: Vaultway, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PBS_MASTER_PASSWORD", "master-password")
    monkeypatch.setenv("PBS_ENCRYPTION_PASSWORD", "a new one")
    blob = golden / "datastore/host/master/2025-01-01T00:00:00Z/rsa-encrypted.key.blob"
    path = tmp_path / "back.json"
    private = KEYS / "master-private.pem"
    assert vaultway("key", "import-with-master-key", private, blob, path).code == 0
    original = KeyFile.decode((KEYS / "none.json").read_bytes())
    assert KeyFile.decode(path.read_bytes()).unlock(b"a new one").key == original.data


def test_create_and_import_master_key(
    vaultway: Vaultway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PBS_MASTER_PASSWORD", "master")
    monkeypatch.setattr(
        "store.format.keys.create_master_key", lambda _: (b"private", b"public")
    )  # making 4096 bits takes seconds
    assert vaultway("key", "create-master-key").code == 0
    assert Path("master-private.pem").read_bytes() == b"private"
    assert stat.S_IMODE(Path("master-private.pem").stat().st_mode) == 0o600
    assert vaultway("key", "create-master-key").code == 10
    assert vaultway("key", "import-master-pubkey", "master-public.pem").code == 14
    assert vaultway("key", "import-master-pubkey", KEYS / "master-public.pem").code == 0
    place = tmp_path / "config/proxmox-backup/master-public.pem"
    assert place.read_bytes() == (KEYS / "master-public.pem").read_bytes()
