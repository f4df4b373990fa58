"""Bad input: one line that names the thing, the documented exit code, nothing lost and nothing
left behind."""

import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.datastore.snapshots import SyncLevel
from store.format.blob import decode_blob, encode_blob, encode_blob_parts
from store.format.chunker import ChunkStream
from store.format.crypt import chunk_digest
from store.format.dynamic_index import DynamicIndex
from store.format.manifest import CryptMode, FileInfo, Manifest
from store.format.pxar.encoder import Encoder
from store.format.pxar.entries import encode_stat
from store.names import Namespace, Snapshot
from store.repositories.repository import open_datastore
from tests.golden_snapshots import KEY_PASSWORD, KEYS
from tests.program import PROGRAM, error_line, mounted, run
from tests.trees import differences, expected_tree, list_tree

SNAPSHOT = "host/v1/2025-01-01T00:00:00Z"
INDEX = "root.pxar.didx"


@pytest.fixture
def damaged(golden: Path, tmp_path: Path) -> Path:
    """The golden datastore, for one test to damage."""
    copy = tmp_path / "damaged"
    shutil.copytree(golden / "datastore", copy)
    return copy


def chunk_paths(store: Path, snapshot: str, index: str) -> dict[str, Path]:
    digests = DynamicIndex((store / snapshot / index).read_bytes()).digests()
    return {str(digest): store / ".chunks" / str(digest)[:4] / str(digest) for digest in digests}


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def restore_fails(
    store: Path, target: Path, code: int, *options: object, snapshot: str = SNAPSHOT
) -> str:
    return error_line(
        "restore", snapshot, "root.pxar", target, "--repository", store, *options,
        env=KEY_PASSWORD, expect=code,
    )  # fmt: skip


def snapshot_names(store: Path, *options: object) -> str:
    return run(
        "snapshot", "list", "--repository", store, "--output-format", "json", *options
    ).stdout


def test_no_key(golden: Path, tmp_path: Path) -> None:
    line = restore_fails(golden / "datastore", tmp_path / "out", 13, snapshot="host/encrypted")
    assert "key" in line
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_wrong_key(golden: Path, tmp_path: Path) -> None:
    options = ("--keyfile", KEYS / "none.json")
    line = restore_fails(
        golden / "datastore", tmp_path / "out", 13, *options, snapshot="host/encrypted"
    )
    assert ":" in line.removeprefix("vaultway: "), "the line names no fingerprint"


def test_wrong_passphrase(golden: Path, tmp_path: Path) -> None:
    line = error_line(
        "restore", "host/encrypted", "root.pxar", tmp_path / "out",
        "--repository", golden / "datastore", "--keyfile", KEYS / "scrypt.json",
        env={"PBS_ENCRYPTION_PASSWORD": "no"}, expect=13,
    )  # fmt: skip
    assert "scrypt.json" in line or "pass" in line


@pytest.mark.parametrize("kept", [0, 100, 4095, 4096 + 40, 4096 + 45])
def test_truncated_index(damaged: Path, tmp_path: Path, kept: int) -> None:
    """Cut in the header, in an entry: bad format; between entries: not what the manifest says."""
    os.truncate(damaged / SNAPSHOT / INDEX, kept)
    line = restore_fails(damaged, tmp_path / "out", 15 if kept == 4096 + 40 else 14)
    assert INDEX in line


@pytest.mark.needs("root")
def test_flipped_byte_in_any_chunk(damaged: Path, tmp_path: Path) -> None:
    rng = random.Random(1)
    for number, (digest, path) in enumerate(chunk_paths(damaged, SNAPSHOT, INDEX).items()):
        whole = path.read_bytes()
        flip(path, rng.randrange(12, len(whole)))
        line = restore_fails(damaged, tmp_path / f"out{number}", 15)
        assert digest in line
        path.write_bytes(whole)
    run("restore", SNAPSHOT, "root.pxar", tmp_path / "whole", "--repository", damaged)
    assert not differences(list_tree(tmp_path / "whole"), expected_tree(1))


def test_flipped_byte_in_an_encrypted_chunk(damaged: Path, tmp_path: Path) -> None:
    snapshot = "host/encrypted/2025-01-01T00:00:00Z"
    digest, path = next(iter(chunk_paths(damaged, snapshot, "root.ppxar.didx").items()))
    flip(path, path.stat().st_size // 2)
    line = restore_fails(
        damaged, tmp_path / "out", 15, "--keyfile", KEYS / "scrypt.json", snapshot=snapshot
    )
    assert digest in line


def test_flipped_byte_in_a_chunks_header(damaged: Path, tmp_path: Path) -> None:
    """The magic is another: that is no blob at all."""
    digest, path = next(iter(chunk_paths(damaged, SNAPSHOT, INDEX).items()))
    flip(path, 3)
    assert digest in restore_fails(damaged, tmp_path / "out", 14)


def test_missing_chunk(damaged: Path, tmp_path: Path) -> None:
    digest, path = list(chunk_paths(damaged, SNAPSHOT, INDEX).items())[3]
    path.unlink()
    assert digest in restore_fails(damaged, tmp_path / "out", 15)


def test_manifest_with_a_wrong_signature(damaged: Path, tmp_path: Path) -> None:
    manifest = damaged / "host/signed/2025-01-01T00:00:00Z/index.json.blob"
    text = decode_blob(manifest.read_bytes())
    changed = text.replace(b'"sign-only"', b'"none"', 1)
    assert changed != text
    manifest.write_bytes(encode_blob(changed))
    options = ("--keyfile", KEYS / "scrypt.json")
    line = restore_fails(damaged, tmp_path / "out", 15, *options, snapshot="host/signed")
    assert "signature" in line


def test_manifest_that_is_not_json(damaged: Path, tmp_path: Path) -> None:
    (damaged / SNAPSHOT / "index.json.blob").write_bytes(encode_blob(b"{"))
    assert SNAPSHOT in restore_fails(damaged, tmp_path / "out", 14)


def test_missing_source(store: Path, tmp_path: Path) -> None:
    for source in ("root.pxar:/no/such/tree", "disk.img:/no/such/disk", "vm.conf:/no/such/file"):
        line = error_line("backup", source, "--repository", store, expect=17)
        assert "/no/such/" in line
    assert snapshot_names(store).strip() == "[]"
    assert not [path for path in store.rglob("*") if path.is_file() and path.name != ".lock"]


@pytest.mark.needs("fuse", "root")
def test_unreadable_source_files(damaged: Path, store: Path, tmp_path: Path) -> None:
    """Files whose blocks give I/O errors: each is named, the others are in the snapshot."""
    snapshot = "host/split/2025-01-01T00:00:00Z"  # contents in chunks of their own
    paths = chunk_paths(damaged, snapshot, "root.ppxar.didx").values()
    flip(max(paths, key=lambda path: path.stat().st_size), 1000)
    with mounted(damaged, tmp_path / "mnt") as mount:
        source = mount / snapshot / "root.pxar"
        done = run(
            "backup", f"root.pxar:{source}", "--backup-id", "x", "--repository", store, expect=3
        )
    lost = re.findall(r"^warning: .*/root.pxar/(\S+): left out: ", done.stderr, re.MULTILINE)
    assert "big/noise-1m.bin" in lost
    run("restore", "host/x", "root.pxar", tmp_path / "out", "--repository", store)
    kept = [line for line in list_tree(tmp_path / "out") if json.loads(line)["path"] not in lost]
    expected = [line for line in expected_tree(1) if json.loads(line)["path"] not in lost]
    assert not differences(kept, expected)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 60 MB with room for a datastore's directories."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60M", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.needs("root")
def test_full_disk(small_disk: Path, tmp_path: Path) -> None:
    """The backup that does not fit fails whole; the one before it stays whole, and the next that
    fits succeeds."""
    store, rng = small_disk / "store", random.Random(2)
    small, large = tmp_path / "small.raw", tmp_path / "large.raw"
    small.write_bytes(rng.randbytes(4 << 20))
    large.write_bytes(rng.randbytes(90 << 20))
    options = ("--backup-type", "vm", "--backup-id", "1", "--repository", store)
    times = [f"2025-01-0{day}T00:00:00Z" for day in (1, 2, 3)]
    run("datastore", "create", store)
    run("backup", f"disk.img:{small}", *options, "--backup-time", times[0])
    line = error_line("backup", f"disk.img:{large}", *options, "--backup-time", times[1], expect=16)
    assert "space" in line
    assert sorted(path.name for path in (store / "vm/1").iterdir() if path.is_dir()) == times[:1]
    assert not list(store.rglob("*.tmp*")), "temporary files were left behind"
    run("restore", f"vm/1/{times[0]}", "disk.img", tmp_path / "back.raw", "--repository", store)
    assert (tmp_path / "back.raw").read_bytes() == small.read_bytes()
    for chunk in list((store / ".chunks").glob("*/*"))[1:]:
        chunk.unlink()  # what garbage collection would do
    run("backup", f"disk.img:{small}", *options, "--backup-time", times[2])


@pytest.mark.parametrize(
    "arguments",
    [
        ("restore", "host/../x", "root.pxar", "out"),
        ("snapshot", "list", "--ns", "prod/.."),
        ("namespace", "create", "../x"),
        ("backup", "../x.pxar:/etc"),
        ("backup", "x.pxar:/etc", "--backup-id", ".."),
    ],
    ids=" ".join,
)
def test_names_with_dots(golden: Path, arguments: tuple[str, ...]) -> None:
    line = error_line(*arguments, "--repository", golden / "datastore", expect=2)
    assert ".." in line


def test_archive_name_with_dots(golden: Path, tmp_path: Path) -> None:
    """It is a path in an archive `..`, of which there is none: no way to another snapshot's."""
    archive = "../2025-01-02T00:00:00Z/root.pxar"
    arguments = ("restore", SNAPSHOT, archive, tmp_path / "out")
    line = error_line(*arguments, "--repository", golden / "datastore", expect=10)
    assert "..: no such archive" in line


def put_archive(store: Path, archive: bytes) -> None:
    """Store `archive` as host/evil's root.pxar, as a hostile client would."""
    snapshot = Snapshot.parse("host/evil/2025-01-01T00:00:00Z")
    chunks: list[bytes] = []
    stream = ChunkStream(chunks.append)
    stream.write(archive)
    stream.finish()
    datastore = open_datastore(str(store))
    with datastore.begin_snapshot(
        Namespace(), snapshot, owner=None, sync_level=SyncLevel.NONE
    ) as writer:
        index, end = writer.create_dynamic_index(INDEX), 0
        for chunk in chunks:
            header, body = encode_blob_parts(chunk)
            digest, end = chunk_digest(chunk, None), end + len(chunk)
            writer.insert_chunk(digest, header, body, len(chunk))
            index.add(end, digest)
        file = FileInfo(INDEX, CryptMode.NONE, end, index.close())
        writer.finish(Manifest(snapshot, (file,), None, {}))


def hostile_archive(name: bytes, *, symlink: bytes = b"") -> bytes:
    """A file `pwned` in a directory, both well formed; then `name` is put in the directory's
    place."""
    directory, regular, link = (
        encode_stat(mode, 0, 0, 0, 1_700_000_000, 0) for mode in (0o40755, 0o100644, 0o120777)
    )
    encoder, placeholder = Encoder(split=False), b"a" * len(name)
    out = bytearray(encoder.begin(directory))
    if symlink:
        out += encoder.symlink(b"0link", link, symlink)
    out += encoder.enter_directory(placeholder, directory)
    out += encoder.file(b"pwned", regular, 4) + b"evil"
    out += encoder.leave_directory() + encoder.finish()
    return bytes(out).replace(placeholder + b"\0", name + b"\0")


@pytest.mark.parametrize("name", [b"..", b".", b"a/b", b"/etc"])
def test_archive_that_leads_outside(store: Path, tmp_path: Path, name: bytes) -> None:
    put_archive(store, hostile_archive(name))
    target = tmp_path / "deep/er/out"
    target.parent.mkdir(parents=True)
    line = restore_fails(store, target, 14, snapshot="host/evil")
    assert "name" in line or repr(name.decode()) in line
    assert not list(tmp_path.rglob("pwned")), "a file was written"


def test_archive_whose_symlink_leads_outside(store: Path, tmp_path: Path) -> None:
    """A link and a directory of the same name: nothing is written through the link."""
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    put_archive(store, hostile_archive(b"0link", symlink=str(elsewhere).encode()))
    command = [PROGRAM, "restore", "host/evil", "root.pxar", target, "--repository", store]
    subprocess.run(command, capture_output=True, check=False)
    assert not list(elsewhere.iterdir()), "a file was written through a symlink"
