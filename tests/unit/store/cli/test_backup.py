"""`vaultway backup`: options become one request; the result is printed; real round trips."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import pytest

from store.errors import Locked
from store.format.manifest import CryptMode, FileInfo
from store.names import Namespace
from store.operations.backup import BackupRequest, BackupResult, ChangeDetectionMode
from tests.unit.store.cli.conftest import KEYS, Vaultway

T1 = 1735689600


class FakeBackup:
    """Takes requests instead of `run_backup`."""

    def __init__(self) -> None:
        self.requests: list[BackupRequest] = []
        self.unreadable = 0

    def __call__(self, request: BackupRequest, progress: Any, on_warning: Any) -> BackupResult:
        self.requests.append(request)
        progress.start(100, "B")
        progress.advance(100)
        on_warning("file vanished")
        progress.done()
        files = (FileInfo("root.pxar.didx", CryptMode.NONE, 3 << 20, bytes(32)),)
        return BackupResult(
            request.snapshot,
            duration_s=2.0,
            files=files,
            source_bytes=3 << 20,
            stored_bytes=1 << 20,
            new_chunks=1,
            known_chunks=2,
            reused_bytes=1 << 20,
            warnings=1,
            unreadable=self.unreadable,
        )

    @property
    def request(self) -> BackupRequest:
        [request] = self.requests
        return request


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeBackup:
    fake = FakeBackup()
    monkeypatch.setattr("store.operations.backup.run_backup", fake)
    monkeypatch.setattr("store.cli.backup.open_repository", lambda _: None)
    monkeypatch.setenv("PBS_REPOSITORY", "/srv/vault")
    return fake


def test_defaults(vaultway: Vaultway, fake: FakeBackup) -> None:
    done = vaultway("backup", "root.pxar:/srv")
    assert done.code == 0
    request = fake.request
    assert (request.group.type, request.group.id) == ("host", platform.node())
    assert [(source.archive, source.path) for source in request.sources] == [("root.pxar", "/srv")]
    assert (request.crypt_mode, request.key) == (CryptMode.NONE, None)
    assert request.change_detection_mode is ChangeDetectionMode.LEGACY
    assert (request.chunk_size, request.namespace) == (4 << 20, Namespace())
    assert (request.exclude, request.include_devices, request.owner) == ((), (), None)
    assert request.time > T1


def test_every_option(vaultway: Vaultway, fake: FakeBackup) -> None:
    done = vaultway(
        *("backup", "root.pxar:/srv:with:colons", "disk.img:/dev/sda", "a.conf:/etc/a"),
        *("--ns", "prod/web", "--backup-type", "vm", "--backup-id", "100"),
        *("--backup-time", "2025-01-01T01:00:00+01:00", "--owner", "me@pbs"),
        *("--change-detection-mode", "metadata", "--exclude", "*.tmp", "--exclude", "!a.tmp"),
        *("--include-dev", "/a", "--include-dev", "/b", "--skip-lost-and-found"),
        *("--chunk-size", "1024", "--sync-level", "none", "--payload-growth", "1.5"),
        *("--keyfile", KEYS / "none.json", "--master-pubkey-file", KEYS / "master-public.pem"),
    )
    assert done.code == 0
    request = fake.request
    assert str(request.snapshot) == "vm/100/2025-01-01T00:00:00Z"
    assert request.sources[0].path == "/srv:with:colons"
    assert str(request.namespace) == "prod/web"
    assert request.exclude == ("*.tmp", "!a.tmp")
    assert request.include_devices == ("/a", "/b")
    assert (request.skip_lost_and_found, request.all_file_systems) == (True, False)
    assert (request.chunk_size, request.payload_growth) == (1 << 20, 1.5)
    assert (request.sync_level, request.owner) == ("none", "me@pbs")
    assert request.crypt_mode is CryptMode.ENCRYPT
    assert request.key.fingerprint == request.key_file.fingerprint
    assert request.master_public_key == (KEYS / "master-public.pem").read_bytes()


def test_results(vaultway: Vaultway, fake: FakeBackup) -> None:
    command = ("backup", "root.pxar:/srv", "--backup-id", "web01", "--backup-time", str(T1))
    done = vaultway(*command)
    assert done.err == "warning: file vanished\n"
    assert "host/web01/2025-01-01T00:00:00Z: 3 MiB in 2.0 s, 1.5 MiB/s\n" in done.out
    assert "stored 1 MiB in 1 new chunk; 2 chunks known already\n" in done.out
    assert vaultway(*command, "--quiet").out == ""
    record = json.loads(vaultway(*command, "--output-format", "json").out)
    assert record == {
        "backup-type": "host",
        "backup-id": "web01",
        "backup-time": T1,
        "ns": "",
        "duration": 2.0,
        "files": [{"filename": "root.pxar.didx", "crypt-mode": "none", "size": 3 << 20}],
        "size": 3 << 20,
        "stored": 1 << 20,
        "reused": 1 << 20,
        "new-chunks": 1,
        "known-chunks": 2,
        "warnings": 1,
        "unreadable": 0,
    }


def test_a_backup_without_unreadable_files(vaultway: Vaultway, fake: FakeBackup) -> None:
    fake.unreadable = 2
    done = vaultway("backup", "root.pxar:/srv", "--backup-id", "web01", "--backup-time", str(T1))
    assert done.code == 3
    assert done.err.endswith(
        "2 files and directories could not be read: not in host/web01/2025-01-01T00:00:00Z\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("root.pxar",),
        ("root.zip:/srv",),
        ("bad name.pxar:/srv",),
        ("root.pxar:/srv", "root.pxar:/etc"),
        ("root.pxar:/srv", "--chunk-size", "1000"),
        ("root.pxar:/srv", "--chunk-size", "8192"),
        ("root.pxar:/srv", "--backup-id", "../x"),
        ("root.pxar:/srv", "--backup-type", "pc"),
        ("root.pxar:/srv", "--backup-time", "yesterday"),
        ("root.pxar:/srv", "--backup-time", "2025-01-01T00:00:00"),
        ("root.pxar:/srv", "--backup-time", "0"),
        ("root.pxar:/srv", "--ns", "a/../b"),
        ("root.pxar:/srv", "--all-file-systems", "--include-dev", "/a"),
        ("root.pxar:/srv", "--crypt-mode", "none", "--keyfile", KEYS / "none.json"),
        ("root.pxar:/srv", "--payload-growth", "0.5"),
    ],
)
def test_refusals(vaultway: Vaultway, fake: FakeBackup, arguments: tuple[object, ...]) -> None:
    done = vaultway("backup", *arguments)
    assert (done.code, done.out, fake.requests) == (2, "", [])
    assert "internal" not in done.err


def test_an_empty_id_is_not_this_machine(vaultway: Vaultway, fake: FakeBackup) -> None:
    """`--backup-id "$UNSET"` must not end in another group."""
    assert vaultway("backup", "root.pxar:/srv", "--backup-id", "").code == 2
    assert fake.requests == []


def test_dry_run(vaultway: Vaultway, fake: FakeBackup, tmp_path: Path) -> None:
    done = vaultway("backup", f"root.pxar:{tmp_path}", "--dry-run", "--backup-time", T1)
    assert done.code == 0
    assert f"would back up {tmp_path} as root.pxar" in done.out
    assert vaultway("backup", "root.pxar:/nonexistent", "--dry-run").code == 17
    done = vaultway("backup", f"root.pxar:{tmp_path}", "--dry-run", "--output-format", "json")
    assert json.loads(done.out)["dry-run"] is True
    assert fake.requests == []


@pytest.fixture
def repository(vaultway: Vaultway, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty datastore."""
    path = scratch / "datastore"
    assert vaultway("datastore", "create", path).code == 0
    monkeypatch.setenv("PBS_REPOSITORY", str(path))
    return path


def test_round_trip(
    vaultway: Vaultway, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encrypted and wrapped, through real parts, with every secret from the environment."""
    monkeypatch.setenv("PBS_ENCRYPTION_PASSWORD", "correct horse")
    monkeypatch.setenv("PBS_MASTER_PASSWORD", "master-password")
    assert vaultway("datastore", "create", repository).code == 10
    source, key = tmp_path / "source", tmp_path / "key.json"
    (source / "sub").mkdir(parents=True)
    (source / "sub/file").write_bytes(os.urandom(100_000))
    assert vaultway("key", "create", key).code == 0
    options = ("--backup-id", "web01", "--keyfile", key)
    master = ("--master-pubkey-file", KEYS / "master-public.pem")
    sources = (f"root.pxar:{source}", f"etc.conf:{key}")
    done = vaultway("backup", *sources, *options, *master, "--backup-time", T1)
    assert (done.code, done.err) == (0, "")
    done = vaultway(
        *("backup", *sources, *options, "--change-detection-mode", "metadata"),
        *("--backup-time", T1 + 60, "--output-format", "json"),
    )
    assert json.loads(done.out)["backup-time"] == T1 + 60
    for index, snapshot in enumerate(("2025-01-01T00:00:00Z", "2025-01-01T00:01:00Z")):
        target = tmp_path / f"restored-{index}"
        name = f"host/web01/{snapshot}"
        done = vaultway("restore", name, "root.pxar", target, "--keyfile", key)
        assert (done.code, done.err) == (0, "")
        assert (target / "sub/file").read_bytes() == (source / "sub/file").read_bytes()
    done = vaultway("restore", "host/web01", "etc.conf", "-", "--keyfile", key)
    assert done.out.encode() == key.read_bytes()
    assert vaultway("restore", "host/web01", "root.pxar", tmp_path / "x").code == 13

    # The key is lost; the master key brings it back.
    wrapped, found = tmp_path / "wrapped", tmp_path / "found.json"
    first = "host/web01/2025-01-01T00:00:00Z"
    assert vaultway("restore", first, "rsa-encrypted.key", wrapped).code == 0
    private = KEYS / "master-private.pem"
    assert vaultway("key", "import-with-master-key", private, wrapped, found).code == 0
    target = tmp_path / "again"
    assert vaultway("restore", first, "root.pxar", target, "--keyfile", found).code == 0


def test_a_locked_group(vaultway: Vaultway, fake: FakeBackup, monkeypatch: Any) -> None:
    def locked(*_: object) -> None:
        raise Locked("host/web01: a backup is running")

    monkeypatch.setattr("store.operations.backup.run_backup", locked)
    done = vaultway("backup", "root.pxar:/srv")
    assert (done.code, done.err) == (12, "vaultway: host/web01: a backup is running\n")
