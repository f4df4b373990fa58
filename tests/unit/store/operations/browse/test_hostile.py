"""Mutated archives and catalogs: every command ends soon, with a StoreError or with warnings."""

import random
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from store.errors import StoreError
from store.format.buffer import BytesReadAt
from store.format.catalog import Catalog
from store.format.pxar.accessor import Accessor
from store.operations.browse.cat import read_entry
from store.operations.browse.find import find_below
from store.operations.browse.tree_diff import TreeDiff
from store.trees.base import FileTree
from store.trees.catalog import CatalogTree
from store.trees.expand import expand
from store.trees.matching import Query, SizeTest
from store.trees.paths import find_path, root_of
from tests.fakes.trees import File, Hard, Link, Nodes, archive, archive_bytes
from tests.unit.store.operations.browse.test_contents import catalog

NODES: Nodes = {
    b"a": {b"b": {b"c": File(b"1" * 50), b"d": Link(b"../../e")}, b"f": Hard(b"a/b/c")},
    b"e": {b"x%d" % number: File(b"") for number in range(20)},
}
Mutate = Callable[[random.Random, bytes], bytes]


def flip(rng: random.Random, data: bytes) -> bytes:
    """Some bytes are others."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def swap(rng: random.Random, data: bytes) -> bytes:
    """A stretch of eight bytes is in another place, too: sizes, offsets, hashes."""
    out = bytearray(data)
    a, b = (rng.randrange(0, len(out) - 8, 8) for _ in range(2))
    out[a : a + 8] = out[b : b + 8]
    return bytes(out)


def small(rng: random.Random, data: bytes) -> bytes:
    """A number is a small or a huge one."""
    out = bytearray(data)
    at = rng.randrange(0, len(out) - 8)
    out[at : at + 8] = rng.choice((0, 1, 16, 1 << 40, (1 << 64) - 1)).to_bytes(8, "little")
    return bytes(out)


MUTATIONS = (flip, swap, small)


def use(tree: FileTree) -> None:
    """All that the commands do with a tree; its errors are StoreErrors."""

    def ignore(_path: bytes, _error: StoreError) -> None:
        pass

    query = Query(names=["*"], sizes=[SizeTest(0, 100)], newer=1)
    for prefix, entry in find_below(tree, root_of(tree), query, ignore):
        with suppress(StoreError):
            list(read_entry(tree, entry, prefix + entry.name))
        with suppress(StoreError):
            find_path(tree, prefix + entry.name)
    with suppress(StoreError):
        list(expand(tree, root_of(tree), b"**/*"))
    good = archive(NODES)
    for left, right in ((tree, good), (good, tree)):
        diff = TreeDiff(left, right, ignore, content=True)
        with suppress(StoreError):
            list(diff.entries(left.root(), right.root(), b""))


@pytest.mark.parametrize("mutate", MUTATIONS)
@pytest.mark.parametrize("split", [False, True])
def test_archives(mutate: Mutate, split: bool) -> None:
    metadata, payload = archive_bytes(NODES, split=split)
    rng, started = random.Random(f"{mutate.__name__} {split}"), time.monotonic()
    for _ in range(100):
        with suppress(StoreError):
            stream = None if payload is None else BytesReadAt(payload)
            use(Accessor(BytesReadAt(mutate(rng, metadata)), stream))
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_catalogs(mutate: Mutate) -> None:
    data, rng = catalog(), random.Random(mutate.__name__)
    for _ in range(100):
        with suppress(StoreError):
            found = Catalog(BytesReadAt(mutate(rng, data)))
            for root in found.archives():
                use(CatalogTree(found, root, lambda: archive(NODES)))
