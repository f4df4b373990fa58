"""The storage fails at the Nth call of a seal, for every N: it is said, and the next one works."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from store.datastore.archives import ChunkCache, SnapshotReader
from store.datastore.datastore import Datastore
from store.datastore.snapshots import SyncLevel
from store.errors import StoreError
from store.heads import Heads
from store.heads.head import OpenHead
from tests.fakes.datastores import GROUP, ROOT, bare_backend
from tests.fakes.faults import FaultyBackend

SIZE = 5 << 20


class Faulty(FaultyBackend):
    """A lock whose answer is lost is free again, as the kernel closes what nobody got."""

    def _make(self, number: int, name: str, call: Callable[[], Any]) -> Any:
        if number == self.fail_at and self._after and name in {"lock", "lock_store"}:
            call().release()
            self._break(name)
        return super()._make(number, name, call)


def changed(head: OpenHead, number: int) -> dict[bytes, bytes]:
    """Change something; what is in the tree then."""
    tree = head.tree("root.pxar")
    for entry in tree.iterate(tree.root):
        if entry.name != b"same":
            tree.unlink(tree.root, entry.name)
    for name in (b"same", b"%d" % number):
        try:
            tree.lookup(tree.root, name)
        except FileNotFoundError:
            file = tree.create(tree.root, name, 0o644, 0, 0).number
            tree.write(file, 0, name * 1000)
    head.image("disk.img").write(number * 4096, name * 100)
    return {
        entry.name: tree.read(entry.attributes.number, 0, 10_000)
        for entry in tree.iterate(tree.root)
    }


def check(datastore: Datastore, head: OpenHead, expected: dict[bytes, bytes]) -> None:
    base = head.base
    assert base is not None
    assert datastore.latest_snapshot(ROOT, GROUP) == base
    reader = SnapshotReader(datastore, ROOT, base, None, ChunkCache(32 << 20))
    accessor = reader.open_tree("root.pxar")
    assert {
        entry.name: accessor.read(entry, 0, 10_000) for entry in accessor.list(accessor.root())
    } == expected
    assert reader.open_image("disk.img").read(0, SIZE) == head.image("disk.img").read(0, SIZE)


@pytest.mark.expect_warnings
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_seal_that_fails_at_any_call(tmp_path: Path, after: bool) -> None:
    backend = Faulty(bare_backend(tmp_path / "vault"), after=after)
    datastore = Datastore("vault", backend)
    heads = Heads(datastore, tmp_path / "heads", sync_level=SyncLevel.NONE)
    head = heads.open(ROOT, GROUP)
    head.create_tree("root.pxar")
    head.create_image("disk.img", SIZE)
    changed(head, 0)
    head.seal()
    number = 0
    while True:
        number += 1
        expected = changed(head, number)
        backend.calls, backend.fail_at = 0, number - 1
        with suppress(StoreError):
            head.seal()
        if backend.calls < number:
            break
        backend.fail_at = -1
        if head.journal.has_failed:
            head.abandon()
            head = heads.open(ROOT, GROUP)
        head.seal()
        check(datastore, head, expected)
        for snapshot in datastore.list_snapshots(ROOT, GROUP)[:-1]:
            datastore.forget_snapshot(ROOT, snapshot)
    assert number > 20
    head.close()
