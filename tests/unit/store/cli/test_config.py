"""`vaultway config`, and commands that take a repository by its name."""

import json
from pathlib import Path

import pytest

from store.backends.base import Space
from store.backends.memory import MemoryBackend
from store.names import Namespace
from store.repositories.option_kinds import BOOLEAN
from store.repositories.options import OPTIONS
from tests.fakes.datastores import (
    bare_backend,
    local_datastore,
    open_on,
    snapshot,
    write_snapshot,
)
from tests.unit.store.cli.conftest import KEYS, Vaultway

NAMESPACE = Namespace.parse("prod")
CONFIG = """\
[defaults]
burst = "8M"

[repository.prod]
url = "s3://backups/vault"
endpoint = "https://s3.example.com"
access-key = "AK"
secret-key = "canary"
mirrors = ["copy"]
connect-timeout = 5

[repository.copy]
url = "{store}"
keyfile = "{key}"
ns = "prod"
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def file(tmp_path: Path, store: Path) -> Path:
    file = tmp_path / "config/vaultway/config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(CONFIG.format(store=store, key=KEYS / "none.json"))
    file.chmod(0o600)
    return file


def test_show(vaultway: Vaultway, file: Path) -> None:
    done = vaultway("config", "show", "prod", "--region", "nl", "--output-format", "json")
    assert (done.code, done.err) == (0, "")
    rows = {row["option"]: (row["value"], row["from"]) for row in json.loads(done.out)}
    assert rows == {
        "url": ("s3://backups/vault", f"{file} line 5"),
        "endpoint": ("https://s3.example.com", f"{file} line 6"),
        "region": ("nl", "--region"),
        "access-key": ("AK", f"{file} line 7"),
        "secret-key": ("(hidden)", f"{file} line 8"),
        "conditional-put": (True, "default"),
        "take-over": (False, "default"),
        "connections": (16, "default"),
        "connect-timeout": (5.0, f"{file} line 10"),
        "read-timeout": (60.0, "default"),
        "retry-for": (300.0, "default"),
        "burst": (8 << 20, f"{file} line 2"),
        "cache-size": (0, "default"),
        "mirrors": (["copy"], f"{file} line 9"),
        "memory": (256 << 20, "default"),
    }


def test_show_what_every_flag_says(vaultway: Vaultway, file: Path, tmp_path: Path) -> None:
    flags = ("--keyfile", "/k", "--ns", "prod/web", "--cache", tmp_path)
    done = vaultway("config", "show", "copy", *flags, "--output-format", "json")
    rows = {row["option"]: (row["value"], row["from"]) for row in json.loads(done.out)}
    assert rows["keyfile"] == ("/k", "--keyfile")
    assert rows["ns"] == ("prod/web", "--ns")
    assert rows["cache-size"] == (10 << 30, "default")
    assert rows["retry-for"] == (0.0, "default"), "a directory"
    text = vaultway("config", "show", "--help").out
    assert [option.name for option in OPTIONS if f"--{option.name} " not in text] == [
        option.name for option in OPTIONS if option.kind is BOOLEAN
    ]


def test_show_all_as_text(vaultway: Vaultway, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULTWAY_MEMORY", "1G")
    out = vaultway("config", "show").out
    assert "canary" not in out
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    assert ["copy", "memory", "1G", "$VAULTWAY_MEMORY"] in cells
    assert ["prod", "connect-timeout", "5s", f"{file} line 10"] in cells
    assert not any(cell[:2] == ["copy", "connections"] for cell in cells), "not for directories"


def test_show_without_a_configuration(vaultway: Vaultway, tmp_path: Path) -> None:
    done = vaultway("config", "show")
    assert done.code == 0
    assert f"{tmp_path}/config/vaultway/config.toml" in done.out
    assert vaultway("config", "show", "--output-format", "json").out == "[]\n"
    assert vaultway("config", "show", "prod").code == 10
    assert vaultway("config", "show", "/srv/x", "--endpoint", "https://x").code == 2


def test_check(vaultway: Vaultway, file: Path, store: Path) -> None:
    done = vaultway("config", "check", "--output-format", "json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == [
        {"repository": "copy", "url": str(store), "state": "ok"},
        {"repository": "prod", "url": "s3://backups/vault", "state": "ok"},
    ]


def test_check_says_all_that_is_wrong(vaultway: Vaultway, file: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('[repository.a]\nurl = "/a"\nendpiont = "x"\nmemory = "lots"\n')
    done = vaultway("config", "check", wrong)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines() == [
        f"error: {wrong} line 3: unknown key 'endpiont' in repository 'a';"
        " did you mean 'endpoint'?",
        f"error: {wrong} line 4: memory 'lots': write it as 256M or 2G",
    ]
    assert vaultway("config", "check", "/nonexistent").code == 10


def test_check_looks_for_files(vaultway: Vaultway, file: Path, tmp_path: Path) -> None:
    file.write_text('[repository.a]\nurl = "/a"\nkeyfile = "/nonexistent/key"\n')
    done = vaultway("config", "check")
    assert done.code == 10
    assert f"{file} line 3: keyfile /nonexistent/key: No such file or directory" in done.out


def test_check_looks_into_files(vaultway: Vaultway, file: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("no certificate")
    wrong.chmod(0o644)
    url = '[repository.a]\nurl = "s3://bucket/a"\n'
    file.write_text(f'{url}ca-file = "{wrong}"\n')
    done = vaultway("config", "check")
    assert done.code == 2
    assert f"{file} line 3: ca-file {wrong}: has no certificates in PEM" in done.out
    file.write_text(f'{url}access-key = "AK"\nsecret-key-file = "{wrong}"\n')
    done = vaultway("config", "check")
    assert done.code == 11
    assert f"{file} line 4: secret-key-file {wrong}: others can read it" in done.out


def test_a_flag_is_named_once(vaultway: Vaultway) -> None:
    done = vaultway("snapshot", "list", "--repository", "s3://bucket/a", "--ca-file", "/nope")
    assert (done.code, done.err) == (10, "vaultway: --ca-file /nope: No such file or directory\n")


def test_check_without_a_configuration(
    vaultway: Vaultway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Says where it looked, and which variables nobody reads."""
    monkeypatch.setenv("VAULTWAY_MEMRY", "1G")
    monkeypatch.setenv("VAULTWAY_DEBUG", "")
    done = vaultway("config", "check")
    assert done.code == 0
    assert f"{tmp_path}/config/vaultway/config.toml" in done.out
    assert done.err == "warning: $VAULTWAY_MEMRY means nothing; did you mean 'memory'?\n"
    assert vaultway("config", "check", "--output-format", "json").out == "[]\n"


def test_check_by_opening(vaultway: Vaultway, file: Path, store: Path, tmp_path: Path) -> None:
    bare_backend(store).close()
    file.write_text(f'[repository.a]\nurl = "{store}"\n[repository.b]\nurl = "{tmp_path}/none"\n')
    done = vaultway("config", "check", "--connect", "--output-format", "json")
    assert done.code == 10
    states = {row["repository"]: row["state"] for row in json.loads(done.out)}
    assert states == {"a": "opened", "b": f"{tmp_path}/none does not exist"}


def test_a_repository_by_its_name(
    vaultway: Vaultway, file: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its namespace, too; the environment and the flags come before."""
    with local_datastore(store) as datastore:
        datastore.create_namespace(NAMESPACE)
        write_snapshot(datastore, snapshot(1))
        write_snapshot(datastore, snapshot(2), NAMESPACE)
    by_name = ("snapshot", "list", "--repository", "copy")
    assert "1970-01-03" in vaultway(*by_name).out
    assert "1970-01-02" in vaultway(*by_name, "--ns", "").out
    monkeypatch.setenv("PBS_REPOSITORY", "copy")
    assert "1970-01-03" in vaultway("snapshot", "list").out
    monkeypatch.setenv("PBS_NAMESPACE", "")
    assert "1970-01-02" in vaultway("snapshot", "list").out
    done = vaultway("snapshot", "list", "--repository", "cpoy")
    assert done.code == 10
    assert done.err == "vaultway: repository 'cpoy' is not configured; configured: copy, prod\n"


def test_the_repositorys_key(vaultway: Vaultway, file: Path, store: Path, tmp_path: Path) -> None:
    """A backup is encrypted with it; --crypt-mode none does without; --keyfile comes before."""
    bare_backend(store).close()
    file.write_text(file.read_text().replace('ns = "prod"\n', ""))
    (tmp_path / "a.conf").write_text("x")
    backup = ("backup", f"a.conf:{tmp_path}/a.conf", "--backup-id", "a", "--repository", "copy")
    assert vaultway(*backup, "--backup-time", 86400).code == 0
    assert vaultway(*backup, "--backup-time", 172800, "--crypt-mode", "none").code == 0
    files = ("snapshot", "files", "--repository", "copy", "--output-format", "json")
    [first, *_] = json.loads(vaultway(*files, "host/a/1970-01-02T00:00:00Z").out)
    [second, *_] = json.loads(vaultway(*files, "host/a/1970-01-03T00:00:00Z").out)
    assert (first["crypt-mode"], second["crypt-mode"]) == ("encrypt", "none")
    restore = ("restore", "host/a/1970-01-02T00:00:00Z", "a.conf", "-", "--repository", "copy")
    assert vaultway(*restore).out == "x"
    assert vaultway(*restore, "--keyfile", KEYS / "nowhere.json").code == 10
    file.write_text(file.read_text().replace("none.json", "gone.json"))
    done = vaultway(*restore)
    assert done.code == 10
    assert f"{file} line 14: keyfile {KEYS}/gone.json: No such file" in done.err


def test_the_flag_config(vaultway: Vaultway, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(f'[repository.other]\nurl = "{tmp_path}/other"\n')
    done = vaultway("snapshot", "list", "--repository", "other", "--config", other)
    assert (done.code, done.err) == (10, f"vaultway: {tmp_path}/other does not exist\n")


def test_wrong_flags(vaultway: Vaultway, store: Path) -> None:
    done = vaultway("snapshot", "list", "--repository", store, "--cache-size", "lots")
    assert (done.code, done.err.partition(" (see")[0]) == (
        2,
        "vaultway: --cache-size 'lots': write it as 256M or 2G",
    )
    done = vaultway("snapshot", "list", "--repository", store, "--endpoint", "https://x")
    assert (done.code, done.err) == (
        2,
        f"vaultway: --endpoint is for s3://… only, and {store} is a directory\n",
    )


@pytest.mark.parametrize(
    ("sizes", "record", "text"),
    [
        ((0, 0, 0), (None, None, None), ["unknown"] * 3),
        ((0, 2048, 0), (None, 2048, None), ["unknown", "2 KiB", "unknown"]),
        ((4096, 4096, 0), (4096, 4096, 0), ["4 KiB", "4 KiB (100.00 %)", "0 B (0.00 %)"]),
    ],
)
def test_the_status_of_a_bucket(
    vaultway: Vaultway,
    monkeypatch: pytest.MonkeyPatch,
    sizes: tuple[int, int, int],
    record: tuple[int | None, ...],
    text: list[str],
) -> None:
    """A bucket has no size: nothing is made up."""
    backend = MemoryBackend()
    backend.create()
    monkeypatch.setattr(MemoryBackend, "is_object_store", True)
    monkeypatch.setattr(backend, "status", lambda: Space(*sizes))
    monkeypatch.setattr("store.cli.datastore.open_repository", lambda _: open_on(backend))
    found = json.loads(vaultway("datastore", "status", "--output-format", "json").out)
    assert found == {
        **dict(zip(("total", "used", "avail"), record, strict=True)),
        "backend-type": "s3",
    }
    lines = vaultway("datastore", "status").out.splitlines()[3::2]
    assert [line.split("│")[2].strip() for line in lines] == [*text, "s3"]
