"""Unchanged files keep their chunks; everything else is read; all generations stay whole."""

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from store.datastore.manifests import file_path
from store.format.blob import encode_blob
from store.format.crypt import CryptConfig
from store.format.dynamic_index import DynamicIndex
from store.format.manifest import CryptMode, Manifest
from store.names import MANIFEST_BLOB_NAME, Digest, Snapshot
from store.operations.backup import BackupResult
from tests.fakes.datastores import ROOT
from tests.unit.store.operations.backup.conftest import (
    DATA,
    KEY,
    LEGACY,
    METADATA,
    MIB,
    Hook,
    Vault,
    contents,
    noise,
)

OnCall = Callable[[str, Hook], None]
OTHER_KEY = CryptConfig(bytes(32))


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def encrypted(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def filled(source: Path) -> Path:
    """200 small files in directories, a few large ones, links and empty files."""
    for number in range(200):
        path = source / f"d{number % 7}/file-{number:03d}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(noise(number, number * 37 % 9000))
    (source / "large").mkdir()
    for number in range(3):
        (source / f"large/{number}").write_bytes(noise(number, MIB + number))
    (source / "link").hardlink_to(source / "d1/file-001")
    (source / "symlink").symlink_to("link")
    return source


def back_up(vault: Vault, source: Path, **options: Any) -> BackupResult:
    options = {"change_detection_mode": METADATA} | options
    return vault.backup(f"root.pxar:{source}", **options)


def index_of(vault: Vault, snapshot: Snapshot, kind: str) -> DynamicIndex:
    return vault.datastore.dynamic_index(ROOT, snapshot, f"root.{kind}pxar.didx")


def damage(vault: Vault, digest: Digest) -> None:
    path = Path(vault.datastore.backend.location) / vault.datastore.chunks.name(digest)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def remove(vault: Vault, digest: Digest) -> None:
    vault.datastore.backend.delete(vault.datastore.chunks.name(digest))


def rewrite_manifest(vault: Vault, change: Callable[[Manifest], Manifest]) -> None:
    snapshot = vault.snapshots[-1]
    manifest = change(vault.datastore.read_manifest(ROOT, snapshot))
    path = file_path(ROOT, snapshot, MANIFEST_BLOB_NAME)
    vault.datastore.backend.write(path, (encode_blob(manifest.encode()),))


def test_an_unchanged_tree(vault: Vault, filled: Path, encrypted: bool, on_call: OnCall) -> None:
    """No file is read, nothing is stored, and the indexes name the same chunks."""
    first = back_up(vault, filled, encrypted=encrypted)
    assert (first.reused_bytes, vault.warnings) == (0, [])

    def readv(*_: object) -> None:
        pytest.fail("a file was read")

    on_call("readv", readv)
    for _ in range(2):
        result = back_up(vault, filled, encrypted=encrypted)
        assert (result.new_chunks, result.stored_bytes) == (0, 0)
        assert result.reused_bytes == result.source_bytes == first.source_bytes
        for kind in ("m", "p"):
            old, new = (index_of(vault, run.snapshot, kind) for run in (first, result))
            assert list(old.digests()) == list(new.digests())
        assert vault.open(result.snapshot).contents == contents(filled)


def test_changes(vault: Vault, filled: Path, encrypted: bool) -> None:
    """Changed, new, removed, renamed, moved, and of another kind: all read back right."""
    back_up(vault, filled, encrypted=encrypted)
    (filled / "d0/file-007").write_bytes(b"changed")
    (filled / "d0/new").write_bytes(b"new")
    (filled / "d1/file-008").unlink()
    (filled / "d2/file-009").rename(filled / "d2/0-renamed")
    (filled / "d3/file-010").rename(filled / "d4/file-010")
    (filled / "d5").rename(filled / "moved")
    shutil.rmtree(filled / "d6")
    (filled / "d6").write_bytes(b"was a directory")
    (filled / "large/1").chmod(0o600)
    os.utime(filled / "large/2", ns=(1, 1))
    result = back_up(vault, filled, encrypted=encrypted)
    tree = vault.open(result.snapshot)
    assert tree.contents == contents(filled)
    assert tree["large/1"].metadata.mode == 0o100600
    assert 0 < result.reused_bytes < result.source_bytes
    assert vault.warnings == []


@pytest.mark.parametrize("what", ["mode", "time", "size", "xattr", "xattr-value", "owner", "link"])
def test_every_change_of_metadata_is_seen(
    vault: Vault, source: Path, what: str, on_call: OnCall
) -> None:
    if os.geteuid() != 0 and what == "owner":
        pytest.skip("only root gives files away")
    path = source / "file"
    path.write_bytes(b"content")
    os.setxattr(path, "user.kept", b"1")
    back_up(vault, source)
    time = path.stat().st_mtime_ns
    change: dict[str, Callable[[], object]] = {
        "mode": lambda: path.chmod(0o600),
        "time": lambda: os.utime(path, ns=(0, time + 1)),
        "size": lambda: path.write_bytes(b"longer content"),
        "xattr": lambda: os.setxattr(path, "user.new", b""),
        "xattr-value": lambda: os.setxattr(path, "user.kept", b"2"),
        "owner": lambda: os.chown(path, 1, 1),
        "link": lambda: path.rename(source / "other"),
    }
    change[what]()
    if what != "time":
        os.utime(source / "other" if what == "link" else path, ns=(0, time))
    result = back_up(vault, source)
    assert result.reused_bytes == 0
    assert vault.open(result.snapshot).contents == contents(source)


def test_a_small_change_stores_little(vault: Vault, filled: Path) -> None:
    back_up(vault, filled)
    (filled / "d3/file-101").write_bytes(noise(1, 3000))
    result = back_up(vault, filled)
    assert result.stored_bytes < 30_000  # the file, and the metadata's chunk
    assert vault.open(result.snapshot).contents == contents(filled)


def test_a_previous_archive_of_one_stream(vault: Vault, filled: Path) -> None:
    back_up(vault, filled, change_detection_mode=LEGACY)
    result = back_up(vault, filled)
    assert (result.reused_bytes, vault.warnings) == (0, [])
    assert back_up(vault, filled).reused_bytes == result.source_bytes


def test_data_mode_reads_everything_and_stores_nothing(vault: Vault, filled: Path) -> None:
    back_up(vault, filled)
    result = back_up(vault, filled, change_detection_mode=DATA)
    assert (result.reused_bytes, result.new_chunks) == (0, 0)


def test_a_new_archive_in_an_old_group(vault: Vault, filled: Path) -> None:
    back_up(vault, filled)
    result = vault.backup(f"other.pxar:{filled}", change_detection_mode=METADATA)
    assert (result.reused_bytes, vault.warnings) == (0, [])


@pytest.mark.parametrize(
    "case", ["another key", "plain before", "encrypted before", "signed before"]
)
def test_a_previous_snapshot_that_is_not_ours(vault: Vault, filled: Path, case: str) -> None:
    """Named in a warning, and not used."""
    plain: dict[str, Any] = {}
    encrypted = {"key": KEY, "crypt_mode": CryptMode.ENCRYPT}
    before, now = {
        "another key": (encrypted | {"key": OTHER_KEY}, encrypted),
        "plain before": (plain, encrypted),
        "encrypted before": (encrypted, plain),
        "signed before": (encrypted | {"crypt_mode": CryptMode.SIGN_ONLY}, encrypted),
    }[case]
    back_up(vault, filled, **before)
    result = back_up(vault, filled, **now)
    assert result.reused_bytes == 0
    [warning] = vault.warnings
    assert warning.startswith("root.pxar: every file is read, host/web01/1970-01-02T00:00:00Z")
    assert vault.open(result.snapshot).contents == contents(filled)


def test_a_signature_that_is_wrong_or_gone(vault: Vault, filled: Path) -> None:
    """What is not read must be vouched for by the key: a datastore may lie."""
    for change in (
        lambda manifest: replace(manifest, signature=bytes(32)),
        lambda manifest: replace(manifest, signature=None),
        lambda manifest: replace(manifest, signature=None, unprotected={}),
    ):
        back_up(vault, filled, encrypted=True)
        rewrite_manifest(vault, change)
        result = back_up(vault, filled, encrypted=True)
        assert result.reused_bytes == 0
        assert len(vault.warnings) == 1


@pytest.mark.expect_warnings
def test_a_manifest_of_another_snapshot(vault: Vault, filled: Path) -> None:
    back_up(vault, filled, encrypted=True)
    old = vault.datastore.read_manifest(ROOT, vault.snapshots[-1])
    back_up(vault, filled, encrypted=True)
    rewrite_manifest(vault, lambda _: old)
    assert back_up(vault, filled, encrypted=True).reused_bytes == 0
    assert "does not serve: " in vault.warnings[0]


def test_a_failed_verification(vault: Vault, filled: Path) -> None:
    back_up(vault, filled)
    failed = {"verify_state": {"state": "failed", "upid": "x"}}
    rewrite_manifest(vault, lambda manifest: manifest.with_unprotected(**failed))
    result = back_up(vault, filled)
    assert result.reused_bytes == 0
    assert "its verification failed" in vault.warnings[0]


@pytest.mark.expect_warnings
def test_a_damaged_manifest(vault: Vault, filled: Path) -> None:
    back_up(vault, filled)
    path = file_path(ROOT, vault.snapshots[-1], MANIFEST_BLOB_NAME)
    vault.datastore.backend.write(path, (b"rubbish",))
    result = back_up(vault, filled)
    assert result.reused_bytes == 0
    assert "can't be read" in vault.warnings[0]


@pytest.mark.parametrize("kind", ["m", "p"])
def test_a_damaged_index(vault: Vault, filled: Path, kind: str) -> None:
    snapshot = back_up(vault, filled).snapshot
    path = file_path(ROOT, snapshot, f"root.{kind}pxar.didx")
    data = bytearray(vault.datastore.backend.read(path))
    data[-1] ^= 1
    vault.datastore.backend.write(path, (data,))
    result = back_up(vault, filled)
    assert result.reused_bytes == 0
    assert "not the index that the manifest describes" in vault.warnings[0]
    assert vault.open(result.snapshot).contents == contents(filled)


@pytest.mark.parametrize("break_it", [damage, remove])
def test_damaged_metadata(
    vault: Vault, filled: Path, break_it: Callable[[Vault, Digest], None]
) -> None:
    """It costs reading files again, and is named; the new snapshot is whole."""
    for number in range(2000):
        (filled / f"d3/{number:04d}-{'n' * 99}").write_bytes(b"%d" % number)
    index = index_of(vault, back_up(vault, filled).snapshot, "m")
    assert len(index) > 4
    break_it(vault, index.digest(len(index) // 2))
    (filled / "d0/new").write_bytes(b"new")
    result = back_up(vault, filled)
    assert 0 < result.reused_bytes < result.source_bytes
    assert any(warning.startswith("previous snapshot: ") for warning in vault.warnings)
    assert vault.open(result.snapshot).contents == contents(filled)


@pytest.mark.parametrize("break_it", [damage, remove])
def test_damaged_metadata_of_an_unchanged_tree(
    vault: Vault, filled: Path, encrypted: bool, break_it: Callable[[Vault, Digest], None]
) -> None:
    """The new metadata is the same, and so are its chunks: they are stored anew."""
    first = back_up(vault, filled, encrypted=encrypted)
    index = index_of(vault, first.snapshot, "m")
    for digest in index.digests():
        break_it(vault, digest)
    result = back_up(vault, filled, encrypted=encrypted)
    assert result.new_chunks == len(index)
    assert list(index_of(vault, result.snapshot, "m").digests()) == list(index.digests())
    for snapshot in (first.snapshot, result.snapshot):
        assert vault.open(snapshot).contents == contents(filled)


def test_a_payload_chunk_is_gone(vault: Vault, filled: Path, encrypted: bool) -> None:
    """Its files are read again, and then it is there again."""
    first = back_up(vault, filled, encrypted=encrypted)
    index = index_of(vault, first.snapshot, "p")
    remove(vault, index.digest(len(index) // 2))
    result = back_up(vault, filled, encrypted=encrypted)
    assert 0 < result.reused_bytes < result.source_bytes
    assert vault.open(result.snapshot).contents == contents(filled)


def test_a_payload_chunk_vanishes_meanwhile(
    vault: Vault, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between one file's look at it and the next one's."""
    back_up(vault, filled)
    touch, seen = vault.datastore.chunks.touch, set()

    def vanishing(digest: Digest) -> int | None:
        if digest in seen or len(seen) % 3 == 2:
            return None
        seen.add(digest)
        return touch(digest)

    monkeypatch.setattr(vault.datastore.chunks, "touch", vanishing)
    result = back_up(vault, filled)
    monkeypatch.undo()
    assert vault.open(result.snapshot).contents == contents(filled)


def mutate(tree: Path, rng: random.Random) -> None:
    """Change about a tenth of the files, in every way a tree changes."""
    files = [tree / name for name in contents(tree)]
    for path in rng.sample(files, max(1, len(files) // 10)):
        size = rng.choice((0, 1, 100, 5000, 100_000))
        match rng.randrange(6):
            case 0:
                path.write_bytes(rng.randbytes(size))
            case 1:
                path.unlink()
            case 2:
                path.rename(path.parent / f"renamed-{rng.randrange(10**6)}")
            case 3:
                path.rename(rng.choice(files).parent / f"moved-{rng.randrange(10**6)}")
            case 4:
                (path.parent / f"new-{rng.randrange(10**6)}").write_bytes(rng.randbytes(size))
            case 5:
                path.chmod(rng.choice((0o600, 0o640)))


@pytest.mark.parametrize("seed", range(4))
def test_generations(vault: Vault, filled: Path, tmp_path: Path, seed: int) -> None:
    """Whatever changes between them, every generation reads back as it was."""
    rng = random.Random(seed)
    vault.defaults |= {"payload_growth": rng.choice((1.0, 1.2, 3.0))}
    kept = []
    for _ in range(4):
        result = back_up(vault, filled, encrypted=seed % 2 == 1)
        assert vault.warnings == []
        kept.append((result.snapshot, contents(filled)))
        mutate(filled, rng)
    assert result.reused_bytes > 0
    for number, (snapshot, wanted) in enumerate(kept):
        assert vault.open(snapshot).contents == wanted
        assert contents(vault.restore(snapshot, tmp_path / str(number))) == wanted
