"""A bucket that a real PBS filled opens, lists and restores as it is; one that we fill looks the
same."""

import hashlib
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.backends.s3.backend import S3Backend, create_s3, open_s3
from store.backends.s3.config import S3Config
from store.backends.wrappers.read_only import ReadOnly
from store.datastore.archives import SnapshotReader
from store.datastore.chunk_cache import ChunkCache
from store.datastore.datastore import Datastore
from store.errors import AlreadyExists, PermissionDenied
from store.format.crypt import CryptConfig
from store.format.keys import KeyFile
from store.format.manifest import CryptMode
from store.names import BackupGroup, Namespace
from store.operations.backup import (
    BackupRequest,
    BackupSource,
    ChangeDetectionMode,
    run_backup,
)
from store.operations.restore import restore_archive
from tests.golden_snapshots import KEY_PASSWORD
from tests.program import mounted
from tests.s3_server import S3Server
from tests.trees import differences, expected_tree, list_tree

pytestmark = pytest.mark.needs("s3")

ROOT = Namespace()
CUSTOMER = Namespace(("prod", "customer-x"))
FIRST_DAY = 1735689600
TEST_CHUNK = ".chunks/bb9f/bb9f8df61474d25e71fa00722318cd387396ca1736605e1248821cc0de3d3af8"


@pytest.fixture(scope="module")
def golden_config(s3_server: S3Server, golden: Path) -> S3Config:
    """The golden bucket, uploaded as it is. READ ONLY."""
    bucket, client = s3_server.new_bucket(), s3_server.boto3()
    folder = golden / "bucket"
    for path in folder.rglob("*"):
        if path.is_file():
            client.put_object(
                Bucket=bucket, Key=str(path.relative_to(folder)), Body=path.read_bytes()
            )
    return s3_server.config(bucket, "golds3")


@pytest.fixture
def golden_bucket(golden_config: S3Config) -> Iterator[Datastore]:
    with Datastore("golds3", open_s3(golden_config)) as datastore:
        yield datastore


@pytest.fixture
def key(golden: Path) -> CryptConfig:
    return KeyFile.decode((golden / "keys/scrypt.json").read_text()).unlock(b"key-password")


def restore(
    datastore: Datastore,
    group: str,
    archive: str,
    target: Path,
    *,
    namespace: Namespace = ROOT,
    key: CryptConfig | None = None,
) -> Path:
    snapshot = datastore.resolve_snapshot(namespace, group)
    with datastore.lock_snapshot_shared(namespace, snapshot):
        reader = SnapshotReader(datastore, namespace, snapshot, key, ChunkCache(64 << 20))
        restore_archive(reader, archive, target)
    return target


def test_it_opens_and_lists(golden_bucket: Datastore) -> None:
    assert [str(found) for found in golden_bucket.list_namespaces()] == [
        "", "prod", "prod/customer-x",
    ]  # fmt: skip
    assert [str(group) for group in golden_bucket.list_groups()] == ["host/encrypted", "host/split"]
    assert golden_bucket.list_groups(Namespace(("prod",))) == []
    group = BackupGroup("vm", "100")
    assert golden_bucket.list_groups(CUSTOMER) == [group]
    assert golden_bucket.owner(CUSTOMER, group) == "tester@pbs"
    [snapshot] = golden_bucket.list_snapshots(CUSTOMER, group)
    assert str(snapshot) == "vm/100/2025-01-01T00:00:00Z"
    assert golden_bucket.list_files(CUSTOMER, snapshot) == [
        "drive-scsi0.img.fidx", "index.json.blob", "qemu-server.conf.blob",
    ]  # fmt: skip
    assert not golden_bucket.is_protected(CUSTOMER, snapshot)
    split = golden_bucket.resolve_snapshot(ROOT, "host/split")
    assert golden_bucket.is_protected(ROOT, split)
    assert len(list(golden_bucket.chunks.iterate())) > 20


@pytest.mark.needs("fuse", "root")
def test_it_mounts(
    golden_config: S3Config, s3_server: S3Server, golden: Path, tmp_path: Path
) -> None:
    """By the program, with the key of the encrypted snapshot."""
    where = {"VAULTWAY_ENDPOINT": s3_server.endpoint, "VAULTWAY_PATH_STYLE": "true"}
    key = ["--keyfile", golden / "keys/scrypt.json"]
    url = f"s3://{golden_config.bucket}/golds3"
    environment = s3_server.environment | where | KEY_PASSWORD
    with mounted(url, tmp_path / "mount", *key, env=environment) as mount:
        split = mount / "host/split/latest/root.pxar"
        assert not differences(list_tree(split), expected_tree(3))
        many = mount / "host/encrypted/latest/many.pxar"
        assert not differences(list_tree(many), expected_tree(3, "many"))
        disk = mount / "ns/prod/ns/customer-x/vm/100/latest/drive-scsi0.img"
        with disk.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        assert found == (golden / "expected/disk.2.sha256").read_text().strip()


def test_opening_costs_one_request(golden_config: S3Config) -> None:
    backend = open_s3(golden_config)
    assert isinstance(backend, ReadOnly)
    assert isinstance(backend.inner, S3Backend)
    with Datastore("golds3", backend):
        assert backend.inner.client.counters.requests == {"GET": 1}


@pytest.mark.needs("root")
def test_trees(golden_bucket: Datastore, tmp_path: Path, key: CryptConfig) -> None:
    whole = restore(golden_bucket, "host/split", "root.pxar", tmp_path / "tree")
    assert not differences(list_tree(whole), expected_tree(3))
    many = restore(golden_bucket, "host/encrypted", "many.pxar", tmp_path / "many", key=key)
    assert not differences(list_tree(many), expected_tree(3, "many"))


def test_image_and_blob(golden_bucket: Datastore, golden: Path, tmp_path: Path) -> None:
    disk = restore(
        golden_bucket, "vm/100", "drive-scsi0.img", tmp_path / "disk", namespace=CUSTOMER
    )
    expected = (golden / "expected/disk.2.sha256").read_text().strip()
    assert hashlib.sha256(disk.read_bytes()).hexdigest() == expected
    blob = restore(
        golden_bucket, "vm/100", "qemu-server.conf", tmp_path / "conf", namespace=CUSTOMER
    )
    assert blob.read_bytes() == (golden / "expected/qemu-server.conf").read_bytes()


def test_a_bucket_that_a_pbs_holds_is_only_read(
    golden_config: S3Config, golden_bucket: Datastore, s3_server: S3Server
) -> None:
    with pytest.raises(PermissionDenied, match="read-only: held by the PBS on 'vm'"):
        golden_bucket.create_namespace(Namespace(("new",)))
    with pytest.raises(PermissionDenied):
        golden_bucket.forget_group(CUSTOMER, BackupGroup("vm", "100"))
    taken = open_s3(s3_server.config(golden_config.bucket, "golds3", take_over=True))
    assert isinstance(taken, S3Backend)
    taken.close()


def test_no_datastore_is_made_where_objects_are(golden_config: S3Config) -> None:
    with pytest.raises(AlreadyExists, match="golds3"):
        create_s3(golden_config)


def test_a_bucket_of_ours_looks_the_same(
    s3_server: S3Server, golden: Path, tmp_path: Path, key: CryptConfig
) -> None:
    config = s3_server.config(s3_server.new_bucket(), "golds3")
    create_s3(config)
    with Datastore("golds3", open_s3(config)) as datastore:
        write_like_golden(datastore, tmp_path, key)
    ours = objects(s3_server, config.bucket)
    theirs = {
        str(path.relative_to(golden / "bucket")): path.read_bytes()
        for path in (golden / "bucket").rglob("*")
        if path.is_file()
    }
    assert {shape(name) for name in ours} == {shape(name) for name in theirs}
    for name, body in theirs.items():
        if name.endswith(("/owner", "/.namespace", "/.protected", TEST_CHUNK)):
            assert ours[name] == body, name
    assert ours["golds3/.in-use"] == theirs["golds3/.in-use"].replace(
        b'"vm"', json.dumps(f"vaultway@{socket.gethostname()}").encode()
    )


def write_like_golden(datastore: Datastore, scratch: Path, key: CryptConfig) -> None:
    """What is in the golden bucket, by name; the contents are smaller."""
    (scratch / "tree").mkdir()
    (scratch / "tree/file").write_bytes(b"content\n" * 1000)
    (scratch / "disk").write_bytes(bytes(range(256)) * 20_000)
    datastore.create_namespace(CUSTOMER.parent)
    datastore.create_namespace(CUSTOMER)

    def back_up(group: str, *sources: str, **options: object) -> None:
        run_backup(
            BackupRequest(
                datastore,
                options.pop("namespace", ROOT),  # type: ignore[arg-type]
                BackupGroup.parse(group),
                FIRST_DAY,
                tuple(BackupSource.parse(f"{name}:{scratch}/{path}")
                      for name, path in (source.split("=") for source in sources)),
                owner="tester@pbs",
                **options,  # type: ignore[arg-type]
            )
        )  # fmt: skip

    back_up("host/split", "root.pxar=tree", change_detection_mode=ChangeDetectionMode.DATA)
    back_up("host/encrypted", "many.pxar=tree", key=key, crypt_mode=CryptMode.ENCRYPT)
    back_up("vm/100", "drive-scsi0.img=disk", "qemu-server.conf=tree/file", namespace=CUSTOMER)
    split = datastore.latest_snapshot(ROOT, BackupGroup("host", "split"))
    datastore.set_protected(ROOT, split, True)


def objects(server: S3Server, bucket: str) -> dict[str, bytes]:
    """All keys of a bucket with their bodies, as boto3 sees them."""
    client = server.boto3()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    keys = [found["Key"] for page in pages for found in page.get("Contents", ())]
    return {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def shape(name: str) -> str:
    """A key with its digest, if it is a chunk's in its right place, taken out."""
    return re.sub(r"/([0-9a-f]{4})/\1[0-9a-f]{60}$", "/PPPP/DIGEST", name)
