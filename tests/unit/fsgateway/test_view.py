"""What is remembered of the datastore, and what a snapshot without its key still tells."""

import time
from pathlib import Path

import pytest

from fsgateway.tree import Node
from fsgateway.view import Recent, SnapshotId, View
from store.datastore.datastore import Datastore
from store.errors import BackendError, KeyRequired, WrongKey
from store.format.crypt import CryptConfig
from store.names import BackupGroup, Namespace, Snapshot
from tests.fakes.archives import SplitTree, snapshot
from tests.fakes.datastores import bare_backend, local_datastore
from tests.fakes.faults import FaultyBackend

KEY = CryptConfig(bytes(32))
OTHER = CryptConfig(bytes(range(32)))
NAME = "vm/1/2025-01-01T00:00:00Z"
IDENT = SnapshotId(Namespace(), Snapshot.parse(NAME))


def test_recent_keeps_the_values_used_last() -> None:
    recent: Recent[int, str] = Recent(2)
    made: list[int] = []

    def get(key: int) -> str:
        return recent.get(key, lambda: made.append(key) or str(key))  # type: ignore[func-returns-value]

    assert [get(key) for key in (1, 2, 1, 3, 1, 2)] == ["1", "2", "1", "3", "1", "2"]
    assert made == [1, 2, 3, 2]
    assert len(recent) == 2


def test_recent_values_age() -> None:
    now = 0.0
    recent: Recent[str, float] = Recent(2, lambda: now)
    assert recent.peek("a") is None
    assert recent.get("a", lambda: now, 1.0) == 0.0
    now = 0.9
    assert recent.get("a", lambda: now, 1.0) == 0.0
    assert recent.peek("a", 1.0) == 0.0
    now = 1.0
    assert recent.peek("a", 1.0) is None
    assert recent.get("a", lambda: now, 1.0) == 1.0


def test_recent_remembers_no_failure() -> None:
    recent: Recent[str, int] = Recent(2)
    with pytest.raises(ZeroDivisionError):
        recent.get("a", lambda: 1 // 0)
    assert recent.get("a", lambda: 5) == 5


def test_a_locked_snapshot(tmp_path: Path) -> None:
    """Sizes are known; what is asked for says which key it needs, and which one it got."""
    datastore = local_datastore(tmp_path / "store")
    tree = SplitTree()
    tree.file(b"f", b"x" * 1000)
    with snapshot(datastore, NAME, KEY) as builder:
        builder.split_tree("root", tree)
        builder.image("disk.img", b"x" * 5000)
        builder.blob("a.conf", b"hello")
    for key, error in ((None, KeyRequired), (OTHER, WrongKey)):
        view = View(datastore, key, 32 << 20)
        found = view.open(IDENT)
        assert found.size_of("disk.img") == 5000
        assert found.size_of("root.pxar") > 1000
        assert view.blob_size(IDENT, "a.conf") > 5
        for ask in (found.tree, found.image, found.blob):
            with pytest.raises(error, match=str(KEY.fingerprint)) as caught:
                ask({"tree": "root.pxar", "image": "disk.img", "blob": "a.conf"}[ask.__name__])
            assert key is None or str(key.fingerprint) in str(caught.value)
    found = View(datastore, KEY, 32 << 20).open(IDENT)
    assert found.blob("a.conf") == b"hello"
    assert found.image("disk.img").used == 5000


def test_a_plain_snapshot_with_any_key(tmp_path: Path) -> None:
    datastore = local_datastore(tmp_path / "store")
    with snapshot(datastore, NAME) as builder:
        builder.image("disk.img", bytes(9 << 20) + b"x")
    image = View(datastore, OTHER, 32 << 20).open(IDENT).image("disk.img")
    assert (image.stream.size, image.used) == ((9 << 20) + 1, (1 << 20) + 1)


class Writable:
    """A mount with heads, as a view sees it."""

    def groups(self, namespace: Namespace) -> list[BackupGroup]:
        return []

    def current(self, group: object) -> Node:
        raise NotImplementedError


@pytest.mark.expect_warnings
@pytest.mark.parametrize("has_heads", [True, False])
def test_what_was_listed_before_a_storage_went_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_heads: bool
) -> None:
    """The way to a head stays, and the storage is not asked at each step; else it is an error."""
    backend = FaultyBackend(bare_backend(tmp_path / "store"))
    view = View(Datastore("store", backend), None, 32 << 20)
    view.writable = Writable() if has_heads else None
    assert view.groups(Namespace()) == []
    later = time.monotonic() + 2
    monkeypatch.setattr(view._groups, "_clock", lambda: later)
    backend.fail_at = backend.calls
    if not has_heads:
        with pytest.raises(BackendError):
            view.groups(Namespace())
        return
    assert view.groups(Namespace()) == []
    asked = backend.calls
    assert view.groups(Namespace()) == []
    assert backend.calls == asked
    backend.fail_at = backend.calls
    with pytest.raises(BackendError):  # never listed
        view.snapshots(Namespace(), IDENT.snapshot.group)
