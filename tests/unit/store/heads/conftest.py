"""A datastore, and heads of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from store.datastore.archives import ChunkCache, SnapshotReader
from store.datastore.datastore import Datastore
from store.datastore.snapshots import SyncLevel
from store.format.crypt import CryptConfig
from store.heads import Heads
from store.heads.head import OpenHead
from store.names import Snapshot
from tests.fakes.datastores import GROUP, ROOT, local_datastore
from tests.fakes.object_store import ObjectStore

KEY = CryptConfig(bytes(range(32)))


def reader(datastore: Datastore, snapshot: Snapshot, key: CryptConfig | None) -> SnapshotReader:
    return SnapshotReader(datastore, ROOT, snapshot, key, ChunkCache(32 << 20))


def chunks(datastore: Datastore) -> dict[str, int]:
    """The chunks there are, and how large."""
    found = {}
    for digest in datastore.chunks.iterate():
        stat = datastore.chunks.stat(digest)
        assert stat is not None
        found[digest.hex()] = stat.size
    return found


@pytest.fixture(params=["directory", "bucket"])
def datastore(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Datastore:
    if request.param == "directory":
        return local_datastore(tmp_path / "vault")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return ObjectStore().open()


@pytest.fixture
def heads(datastore: Datastore, tmp_path: Path) -> Heads:
    return Heads(datastore, tmp_path / "heads", sync_level=SyncLevel.NONE)


@pytest.fixture
def head(heads: Heads) -> Iterator[OpenHead]:
    with heads.open(ROOT, GROUP) as head:
        yield head
