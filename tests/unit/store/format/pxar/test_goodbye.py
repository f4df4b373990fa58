import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.errors import FormatError
from store.format.buffer import BytesReadAt
from store.format.pxar import accessor as accessor_module
from store.format.pxar import encoder as encoder_module
from store.format.pxar.encoder import Encoder
from store.format.pxar.entries import encode_stat
from store.format.pxar.goodbye import RECORD, GoodbyeBuilder, GoodbyeTable, tree_order
from tests.unit.store.format.pxar.archives import open_archive
from tests.unit.store.format.pxar.test_encoder import MINIMAL, sample, upstream_fixture

FILE = encode_stat(0o100644, 0, 0, 0, 0, 0)
DIRECTORY = encode_stat(0o40755, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    "order",
    [
        "1 0",
        "1 0 2",
        "2 1 3 0",
        "3 1 4 0 2",
        "3 1 5 0 2 4",
        "3 1 5 0 2 4 6",
        "4 2 6 1 3 5 7 0",
        "6 3 8 1 5 7 9 0 2 4",
    ],
)
def test_permutation_table(order: str) -> None:
    expected = [int(rank) for rank in order.split()]
    assert tree_order(range(len(expected))) == expected


def in_order(count: int) -> list[int]:
    """Slots in the order of their hashes, by walking the tree."""
    slots, stack, slot = [], [], 0
    while stack or slot < count:
        while slot < count:
            stack.append(slot)
            slot = 2 * slot + 1
        slot = stack.pop()
        slots.append(slot)
        slot = 2 * slot + 2
    return slots


@pytest.mark.parametrize("counts", [range(700), (2047, 2048, 5000)])
def test_permutation_is_a_search_tree(counts: range) -> None:
    for count in counts:
        tree = tree_order(list(range(count)))
        assert [tree[slot] for slot in in_order(count)] == list(range(count))


def root_table(archive: bytes) -> GoodbyeTable:
    root = open_archive(archive, None).root()
    return GoodbyeTable(BytesReadAt(archive), root.content_offset, root.end, 0)


def records(archive: bytes, start: int, count: int) -> list[tuple[int, int, int]]:
    table = archive[start + 16 : start + 16 + 24 * count]
    return list(RECORD.iter_unpack(table))


def test_tables_of_the_sample() -> None:
    archive = sample()
    table = root_table(archive)
    assert (table.start, table.count) == (690, 4)
    assert records(archive, 690, 5) == [
        (0x75E8A4E165451C68, 510, 58),
        (0x1D68161405AF1BD0, 350, 350),
        (0x967764F630C3DA14, 634, 124),
        (0x04FE0B2ECF0FC0EF, 452, 102),
        (0xEF5EED5B753E1555, 690, 136),
    ]


def test_an_empty_table() -> None:
    table = root_table(MINIMAL)
    assert (table.start, table.count) == (56, 0)
    assert list(table.find(0)) == []


@pytest.mark.parametrize(("reused", "size"), [(False, 111 + 1048576), (True, 111)])
def test_sizes_of_new_and_reused_files(reused: bool, size: int) -> None:
    archive = upstream_fixture(reused=reused)
    accessor = open_archive(archive, None)
    folder = accessor.resolve(b"folder_0")
    start = folder.end - 40 - 240
    assert {stored for _, _, stored in records(archive, start, 10)} == {size}
    files = [
        file for directory in accessor.list(accessor.root()) for file in accessor.list(directory)
    ]
    first = 32 if reused else 16
    assert [file.payload_offset for file in files] == [first + k * 1048592 for k in range(100)]
    assert accessor.prelude == (b"" if reused else None)


@given(st.sets(st.binary(min_size=1, max_size=4).map(bytes.hex).map(str.encode), max_size=60))
def test_every_name_is_found(names: set[bytes]) -> None:
    encoder = Encoder(split=False)
    out = [encoder.begin(DIRECTORY)] + [encoder.special(name, FIFO) for name in sorted(names)]
    accessor = open_archive(b"".join([*out, encoder.finish()]), None)
    for name in names:
        entry = accessor.lookup(accessor.root(), name)
        assert entry is not None
        assert entry.name == name
    assert accessor.lookup(accessor.root(), b"none of them") is None


FIFO = encode_stat(0o10644, 0, 0, 0, 0, 0)


def test_a_directory_larger_than_what_is_kept_of_its_table() -> None:
    encoder = Encoder(split=True)
    names = [b"%05d" % number for number in range(6000)]
    out = [encoder.begin(DIRECTORY)]
    for name in names:
        out += [encoder.enter_directory(name, DIRECTORY), encoder.leave_directory()]
    accessor = open_archive(b"".join([*out, encoder.finish()]), None)
    listed = accessor.list(accessor.root())
    assert [entry.name for entry in listed] == names
    for entry in listed[::500]:
        found = accessor.lookup(accessor.root(), entry.name)
        assert found is not None
        assert (found.offset, found.end) == (entry.offset, entry.end)


def colliding_archive(monkeypatch: pytest.MonkeyPatch, count: int) -> bytes:
    """An archive whose names all have the same hash."""
    for module in (encoder_module, accessor_module):
        monkeypatch.setattr(module, "hash_name", lambda _name: 7)
    encoder = Encoder(split=False)
    out = [encoder.begin(DIRECTORY)]
    for number in range(count):
        out += [encoder.enter_directory(b"%03d" % number, DIRECTORY), encoder.leave_directory()]
    return b"".join([*out, encoder.finish()])


def test_equal_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    accessor = open_archive(colliding_archive(monkeypatch, 60), None)
    for number in range(60):
        entry = accessor.lookup(accessor.root(), b"%03d" % number)
        assert entry is not None
        assert entry.name == b"%03d" % number
    assert accessor.lookup(accessor.root(), b"none") is None
    assert len(accessor.list(accessor.root())) == 60


def test_more_equal_hashes_than_chance_explains(monkeypatch: pytest.MonkeyPatch) -> None:
    accessor = open_archive(colliding_archive(monkeypatch, 500), None)
    with pytest.raises(FormatError, match="equal hashes"):
        accessor.lookup(accessor.root(), b"none")


def test_tables_of_open_directories_are_small() -> None:
    builder = GoodbyeBuilder()
    for number in range(1000):
        for column in (builder.hashes, builder.starts, builder.sizes):
            column.append(number)
    held = sum(
        len(column) * column.itemsize for column in (builder.hashes, builder.starts, builder.sizes)
    )
    assert held == 24000


def test_one_table_of_many_names() -> None:
    builder = GoodbyeBuilder()
    for number in range(1000):
        builder.hashes.append(int.from_bytes(hashlib.sha256(b"%d" % number).digest()[:8], "big"))
        builder.starts.append(56 + 100 * number)
        builder.sizes.append(100)
    item = builder.encode(100056, 0)
    assert len(item) == 16 + 24 * 1001
    hashes = [value for value, _, _ in RECORD.iter_unpack(item[16:-24])]
    assert [hashes[slot] for slot in in_order(1000)] == sorted(hashes)
