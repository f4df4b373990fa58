"""A datastore that a real PBS wrote: names, lists, sums, every byte of every stream."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from store.datastore.archives import ChunkCache, IndexedStream, SnapshotReader
from store.datastore.datastore import Datastore
from store.errors import KeyRequired
from store.format.crypt import CryptConfig, chunk_digest
from store.format.keys import KeyFile
from store.names import (
    CATALOG_NAME,
    BackupGroup,
    Fingerprint,
    Namespace,
    Snapshot,
    format_backup_time,
)
from store.repositories.repository import open_datastore
from tests.fakes.datastores import MIB, ROOT

NAMESPACES = [
    ROOT,
    Namespace.parse("prod"),
    Namespace.parse("prod/customer-x"),
    Namespace.parse("a/b/c/d/e/f/g"),
]
PASSWORDS = {"scrypt.json": b"key-password", "pbkdf2.json": b"key-password", "none.json": None}


@pytest.fixture(scope="module")
def store(golden: Path) -> Datastore:
    return open_datastore(str(golden / "datastore"))


@pytest.fixture(scope="module")
def keys(golden: Path) -> dict[Fingerprint | None, CryptConfig | None]:
    unlocked = [
        KeyFile.decode((golden / "keys" / name).read_bytes()).unlock(password)
        for name, password in PASSWORDS.items()
    ]
    return {None: None} | {key.fingerprint: key for key in unlocked}


def expected(golden: Path, kind: str, namespace: Namespace) -> list[dict[str, Any]]:
    name = str(namespace).replace("/", "_") or "root"
    found: list[dict[str, Any]] = json.loads((golden / f"expected/{kind}.{name}.json").read_text())
    return found


def test_namespaces(store: Datastore, golden: Path) -> None:
    listed = json.loads((golden / "expected/namespace-list.json").read_text())["data"]
    assert [str(namespace) for namespace in store.list_namespaces()] == [
        entry["ns"] for entry in listed
    ]


@pytest.mark.parametrize("namespace", NAMESPACES, ids=str)
def test_groups(store: Datastore, golden: Path, namespace: Namespace) -> None:
    listed = {
        BackupGroup(entry["backup-type"], entry["backup-id"]): entry
        for entry in expected(golden, "group-list", namespace)
    }
    assert store.list_groups(namespace) == sorted(listed)
    for group, entry in listed.items():
        snapshots = store.list_snapshots(namespace, group)
        assert len(snapshots) == entry["backup-count"]
        assert store.latest_snapshot(namespace, group) == snapshots[-1]
        assert snapshots[-1].time == entry["last-backup"]
        assert store.owner(namespace, group) == entry["owner"]
        assert store.list_files(namespace, snapshots[-1]) == sorted(entry["files"])


@pytest.mark.parametrize("namespace", NAMESPACES, ids=str)
def test_snapshots(store: Datastore, golden: Path, namespace: Namespace) -> None:
    listed = expected(golden, "snapshot-list", namespace)
    for entry in listed:
        group = BackupGroup(entry["backup-type"], entry["backup-id"])
        snapshot = Snapshot(group, entry["backup-time"])
        assert (
            store.resolve_snapshot(namespace, f"{group}/{format_backup_time(snapshot.time)}")
            == snapshot
        )
        assert store.is_protected(namespace, snapshot) == entry["protected"]
        manifest = store.read_manifest(namespace, snapshot)
        sizes = {info.filename: info.size for info in manifest.files}
        sizes["index.json.blob"] = len(store.read_file(namespace, snapshot, "index.json.blob"))
        assert sizes == {file["filename"]: file["size"] for file in entry["files"]}
        assert sum(sizes.values()) == entry["size"]
        assert (manifest.unprotected.get("notes") or "").partition("\n")[0] == entry.get(
            "comment", ""
        )
    total = sum(
        len(store.list_snapshots(namespace, group)) for group in store.list_groups(namespace)
    )
    assert total == len(listed)


def every_snapshot(store: Datastore) -> list[tuple[Namespace, Snapshot]]:
    return [
        (namespace, snapshot)
        for namespace in store.list_namespaces()
        for group in store.list_groups(namespace)
        for snapshot in store.list_snapshots(namespace, group)
    ]


def test_every_archive_reads_back(
    store: Datastore, golden: Path, keys: dict[Fingerprint | None, CryptConfig | None]
) -> None:
    cache = ChunkCache(32 * MIB)
    disks = {
        (golden / f"expected/disk.{revision}.sha256").read_text().strip() for revision in (1, 2)
    }
    seen = set()
    for namespace, snapshot in every_snapshot(store):
        reader = SnapshotReader(
            store,
            namespace,
            snapshot,
            keys[store.read_manifest(namespace, snapshot).key_fingerprint],
            cache,
        )
        for info in reader.manifest.files:
            if info.filename == CATALOG_NAME:
                assert reader.catalog() is not None
        for name in reader.archives:
            if name.endswith(".pxar"):
                for stream in reader.open_streams(name):
                    if stream is not None:
                        check_stream(stream)
                tree = reader.open_tree(name)
                assert tree.list(tree.root())
            elif name.endswith(".img"):
                opened = reader.open_image(name)
                seen.add(check_stream(opened))
                holes = [
                    (offset, size) for offset, size, zero in opened.extents(0, opened.size) if zero
                ]
                assert holes
                assert all(opened.read(*hole) == bytes(hole[1]) for hole in holes)
            else:
                assert reader.read_blob(name)
    assert seen == disks
    assert cache.used_bytes <= cache.budget_bytes
    cache.close()


def check_stream(stream: IndexedStream) -> str:
    whole, position = hashlib.sha256(), 0
    for chunk in stream.chunks():
        whole.update(chunk)
        assert chunk_digest(chunk, stream.reader.key) == stream.index.digest(
            stream.index.position(position)
        )
        position += len(chunk)
        middle = position - len(chunk) // 2
        assert stream.read(middle, position - middle) == chunk[len(chunk) - (position - middle) :]
    assert position == stream.size
    return whole.hexdigest()


def test_without_a_key_encrypted_snapshots_are_listed_and_not_read(store: Datastore) -> None:
    snapshot = store.resolve_snapshot(ROOT, "vm/101")
    reader = SnapshotReader(store, ROOT, snapshot, None, ChunkCache(0))
    assert reader.archives == ["drive-scsi0.img", "qemu-server.conf"]
    assert reader.manifest.file("drive-scsi0.img.fidx").size > 20 * MIB
    for ask in (
        lambda: reader.open_image("drive-scsi0.img"),
        lambda: reader.read_blob("qemu-server.conf"),
    ):
        with pytest.raises(KeyRequired, match=str(reader.manifest.key_fingerprint)):
            ask()


def test_all_chunks_are_found(store: Datastore) -> None:
    named = set()
    for namespace, snapshot in every_snapshot(store):
        for info in store.read_manifest(namespace, snapshot).files:
            if info.filename.endswith(".fidx"):
                named |= set(store.fixed_index(namespace, snapshot, info.filename).digests())
            elif info.filename.endswith(".didx"):
                named |= set(store.dynamic_index(namespace, snapshot, info.filename).digests())
    assert named <= set(store.chunks.iterate())
