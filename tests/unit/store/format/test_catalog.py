"""Catalogs: PBS's vectors (spec section 10), golden ones byte for byte, laws, hostile bytes."""

import contextlib
import itertools
import re
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.errors import FormatError
from store.format.buffer import BytesReadAt
from store.format.catalog import (
    DIRECTORY,
    FILE,
    MAX_NAME_LENGTH,
    OTHER_KINDS,
    Catalog,
    CatalogEntry,
    CatalogWriter,
    decode_signed,
    decode_unsigned,
    encode_signed,
    encode_unsigned,
)
from tests.unit.store.format.stored_snapshot import StoredSnapshot

SAMPLE = bytes.fromhex(
    "91fd60f9c46758d5 0100 17 03 66 05 612e747874 05 80e2cfaa06 6c 01 6c 64 03 737562 02"
    "12 01 64 0e 726f6f742e707861722e64696478 18 2200000000000000"
)

names = st.binary(min_size=1, max_size=20).filter(
    lambda name: name not in {b".", b".."} and not set(name) & {0, 0x2F}
)
# (kind, name, size, mtime_s) for files, (DIRECTORY, name, tree), (kind, name) for others.
Tree = list[Any]
trees = st.recursive(
    st.just([]),
    lambda inner: st.lists(
        st.one_of(
            st.tuples(
                st.just(FILE), names, st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1)
            ),
            st.tuples(st.sampled_from(sorted(OTHER_KINDS)), names),
            st.tuples(st.just(DIRECTORY), names, inner),
        ),
        max_size=4,
    ),
    max_leaves=8,
)


def write(archives: list[tuple[bytes, Tree]]) -> bytes:
    writer = CatalogWriter()

    def fill(tree: Tree) -> Iterator[bytes]:
        for kind, name, *rest in tree:
            if kind == DIRECTORY:
                writer.enter_directory(name)
                yield from fill(rest[0])
                yield writer.leave_directory()
            elif kind == FILE:
                writer.file(name, *rest)
            else:
                writer.other(kind, name)

    def parts() -> Iterator[bytes]:
        yield writer.start()
        for name, tree in archives:
            writer.begin_archive(name)
            yield from fill(tree)
            yield writer.end_archive()
        yield writer.finish()

    return b"".join(parts())


def read(catalog: Catalog, entries: list[CatalogEntry]) -> Tree:
    return [
        (e.kind, e.name, read(catalog, catalog.list(e)))
        if e.kind == DIRECTORY
        else (e.kind, e.name, e.size, e.mtime_s)
        if e.kind == FILE
        else (e.kind, e.name)
        for e in entries
    ]


def read_all(raw: bytes) -> list[tuple[bytes, Tree]]:
    catalog = Catalog(BytesReadAt(raw))
    return [(name, tree) for _, name, tree in read(catalog, catalog.archives())]


@pytest.mark.parametrize(
    ("value", "hexadecimal"),
    [
        (0, "00"),
        (127, "7f"),
        (128, "8001"),
        (300, "ac02"),
        (2**64 - 1, "ffffffffffffffffff01"),
    ],
)
def test_unsigned_vectors(value: int, hexadecimal: str) -> None:
    raw = bytes.fromhex(hexadecimal)
    assert encode_unsigned(value) == raw
    assert decode_unsigned(b"?" + raw + b"?", 1) == (value, 1 + len(raw))


@pytest.mark.parametrize(
    ("value", "hexadecimal"),
    [
        (0, "00"),
        (-1, "8100"),
        (-126, "fe00"),
        (-128, "808100"),
        (1715091951, "eff3e8b106"),
        (-305112600, "98ccbe918100"),
        (-(2**63), "8080808080808080808100"),
        (2**63 - 1, "ffffffffffffffff7f"),
    ],
)
def test_signed_vectors(value: int, hexadecimal: str) -> None:
    raw = bytes.fromhex(hexadecimal)
    assert encode_signed(value) == raw
    assert decode_signed(b"?" + raw + b"?", 1) == (value, 1 + len(raw))


@given(st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1))
def test_numbers_round_trip(unsigned: int, signed: int) -> None:
    assert decode_unsigned(encode_unsigned(unsigned))[0] == unsigned
    assert decode_signed(encode_signed(signed))[0] == signed


@pytest.mark.parametrize("value", [-1, 2**64])
def test_unsigned_range(value: int) -> None:
    with pytest.raises(FormatError):
        encode_unsigned(value)


@pytest.mark.parametrize("value", [-(2**63) - 1, 2**63])
def test_signed_range(value: int) -> None:
    with pytest.raises(FormatError):
        encode_signed(value)


@pytest.mark.parametrize("raw", ["", "80", "ff" * 10, "ff" * 12, "8100", "ffffffffffffffffff02"])
def test_bad_unsigned(raw: str) -> None:
    with pytest.raises(FormatError):
        decode_unsigned(bytes.fromhex(raw))


@pytest.mark.parametrize("raw", ["", "80", "ff" * 12, "80808080808080808001", "81" * 10 + "00"])
def test_bad_signed(raw: str) -> None:
    with pytest.raises(FormatError):
        decode_signed(bytes.fromhex(raw))


@given(st.binary(max_size=13))
def test_any_bytes_as_numbers(raw: bytes) -> None:
    for decode in (decode_unsigned, decode_signed):
        with contextlib.suppress(FormatError):
            _, behind = decode(raw)
            assert 0 < behind <= min(len(raw), 11)


def test_sample() -> None:
    tree = [(FILE, b"a.txt", 5, 1700000000), (b"l", b"l"), (DIRECTORY, b"sub", [])]
    assert write([(b"root.pxar.didx", tree)]) == SAMPLE
    assert read_all(SAMPLE) == [(b"root.pxar.didx", tree)]


def test_lookup() -> None:
    catalog = Catalog(BytesReadAt(SAMPLE))
    (root,) = catalog.archives()
    assert catalog.lookup(root, b"a.txt") == CatalogEntry(FILE, b"a.txt", 5, 1700000000)
    assert catalog.lookup(root, b"nope") is None
    sub = catalog.lookup(root, b"sub")
    assert sub is not None
    assert catalog.list(sub) == []


@given(st.lists(st.tuples(names, trees), max_size=3))
def test_round_trip(archives: list[tuple[bytes, Tree]]) -> None:
    assert read_all(write(archives)) == archives


def has_link(tree: Tree) -> bool:
    return any(has_link(rest[0]) if kind == DIRECTORY else kind == b"h" for kind, _, *rest in tree)


@given(st.lists(st.tuples(names, trees), max_size=3))
def test_whether_there_are_hard_links(archives: list[tuple[bytes, Tree]]) -> None:
    expected = any(has_link(tree) for _, tree in archives)
    assert Catalog(BytesReadAt(write(archives))).may_have_links() == expected


@pytest.mark.parametrize("at", [None, 0, 9_999, 19_999])
def test_a_hard_link_is_found_among_many_files(at: int | None) -> None:
    tree: Tree = [(FILE, b"h%06d" % i + b"h" * (i % 300), i, -i) for i in range(20_000)]
    tree = [(DIRECTORY, b"h", []), *tree, (DIRECTORY, b"hh", tree[:3])]
    if at is not None:
        tree.insert(at, (b"h", b"link"))
    raw = write([(b"a.didx", tree), (b"b.didx", [(FILE, b"n" * MAX_NAME_LENGTH, 1, 1)] * 3)])
    assert Catalog(BytesReadAt(raw)).may_have_links() == (at is not None)


def test_entries_of_one_size_end_at_every_place_of_a_window() -> None:
    tree: Tree = [(DIRECTORY, b"x", [(FILE, b"123", 1, 1)] * 8)] * 8_000
    assert not Catalog(BytesReadAt(write([(b"a.didx", tree)]))).may_have_links()


def test_large_directories_are_read_by_windows() -> None:
    tree = [(FILE, b"%06d" % i + b"x" * (i % 300), i, -i) for i in range(20_000)]
    raw = write([(b"a.didx", tree), (b"b.didx", [(FILE, b"n" * MAX_NAME_LENGTH, 1, 1)] * 3)])
    assert read_all(raw)[0] == (b"a.didx", tree)
    catalog = Catalog(BytesReadAt(raw))
    directory = catalog.archives()[0]
    tracemalloc.start()
    assert sum(1 for _ in catalog.entries(directory)) == len(tree)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000 < len(raw)
    tracemalloc.stop()


CALLS = {
    "start": lambda w: w.start(),
    "begin_archive": lambda w: w.begin_archive(b"a.didx"),
    "enter_directory": lambda w: w.enter_directory(b"d"),
    "file": lambda w: w.file(b"f", 1, 2),
    "other": lambda w: w.other(b"l", b"l"),
    "leave_directory": lambda w: w.leave_directory(),
    "end_archive": lambda w: w.end_archive(),
    "finish": lambda w: w.finish(),
}
# What may follow in each state: (call, next state).
STATES = {
    "new": {"start": "root"},
    "root": {"begin_archive": "archive", "finish": "end"},
    "archive": {
        "enter_directory": "directory",
        "file": "archive",
        "other": "archive",
        "end_archive": "root",
    },
    "directory": {"file": "directory", "other": "directory", "leave_directory": "archive"},
    "end": {},
}
TO_STATE = {
    "new": [],
    "root": ["start"],
    "archive": ["start", "begin_archive"],
    "directory": ["start", "begin_archive", "enter_directory"],
    "end": ["start", "finish"],
}


@pytest.mark.parametrize(("state", "call"), list(itertools.product(STATES, CALLS)))
def test_order_of_calls(state: str, call: str) -> None:
    writer = CatalogWriter()
    for step in TO_STATE[state]:
        CALLS[step](writer)
    if call in STATES[state] or (state, call) == ("directory", "enter_directory"):
        CALLS[call](writer)
        return
    with pytest.raises(FormatError, match=call):
        CALLS[call](writer)
    for allowed in list(STATES[state])[:1]:
        CALLS[allowed](writer)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0", b"n" * 4096])
def test_bad_names(name: bytes) -> None:
    writer = CatalogWriter()
    writer.start()
    with pytest.raises(FormatError, match="bad name"):
        writer.begin_archive(name)
    writer.begin_archive(b"a.didx")
    for call in (
        lambda: writer.enter_directory(name),
        lambda: writer.file(name, 0, 0),
        lambda: writer.other(b"l", name),
    ):
        with pytest.raises(FormatError, match="bad name"):
            call()
    with pytest.raises(FormatError, match="kind"):
        writer.other(b"f", b"name")
    length = encode_unsigned(len(name))
    entry = b"\x01l" + length + name
    raw = SAMPLE[:8] + encode_unsigned(len(entry)) + entry + (8).to_bytes(8, "little")
    with pytest.raises(FormatError):
        Catalog(BytesReadAt(raw)).archives()


@pytest.mark.parametrize(
    "block",
    [
        "00",  # not even a count
        "0200",  # longer than the catalog
        "020000",  # a byte left over
        "0101",  # fewer entries than counted
        "0401ff0161",  # unknown kind
        "0501640161 00",  # a directory that is its own child
        "0501640161 01",  # a child before the first block
        "0501640161 7f",  # a child before the catalog
        "04 01 66 01 61",  # a file without a size
        "ffffffffffffffffff01",  # as long as the universe
        "0a ffffffffffffffffff01",  # as many entries
    ],
)
def test_hostile_blocks(block: str) -> None:
    raw = SAMPLE[:8] + bytes.fromhex(block) + (8).to_bytes(8, "little")
    with pytest.raises(FormatError):
        Catalog(BytesReadAt(raw)).archives()


@pytest.mark.parametrize("offset", [0, 7, 53, 61, 2**64 - 1])
def test_hostile_root_offsets(offset: int) -> None:
    with pytest.raises(FormatError):
        Catalog(BytesReadAt(SAMPLE[:-8] + offset.to_bytes(8, "little"))).archives()


@pytest.mark.parametrize("raw", [b"", SAMPLE[:15], b"\0" * 61])
def test_not_a_catalog(raw: bytes) -> None:
    with pytest.raises(FormatError):
        Catalog(BytesReadAt(raw))


@given(data=st.data())
def test_mutated_catalogs(data: st.DataObject) -> None:
    """Every walk ends, whatever the bytes, and only FormatError comes out."""
    tree = [(DIRECTORY, b"d", [(DIRECTORY, b"e", [(FILE, b"f", 1, -1)])]), (b"p", b"pipe")]
    raw = bytearray(write([(b"a.didx", tree), (b"b.didx", tree)]))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FormatError):
        read_all(bytes(raw))
    with contextlib.suppress(FormatError):
        assert Catalog(BytesReadAt(bytes(raw))).may_have_links() in {True, False}


def golden_catalog(snapshot: StoredSnapshot) -> bytes:
    return b"".join(snapshot.stream("catalog.pcat1.didx"))


def test_golden_catalogs(golden_snapshots: tuple[StoredSnapshot, ...]) -> None:
    """The real client's catalogs, plain and encrypted, made again byte for byte."""
    found = [s for s in golden_snapshots if (s.path / "catalog.pcat1.didx").exists()]
    kinds: set[bytes] = set()
    for snapshot in found:
        raw = golden_catalog(snapshot)
        assert write(read_all(raw)) == raw
        kinds.update(kind for kind, *_ in flat(read_all(raw)))
    assert len(found) == 7
    assert kinds == OTHER_KINDS | {DIRECTORY, FILE}


def flat(archives: Tree) -> Iterator[tuple[bytes, bytes, int, int]]:
    """Every entry as kind, path, size, mtime_s, in archive order."""

    def walk(path: bytes, tree: Tree) -> Iterator[tuple[bytes, bytes, int, int]]:
        for kind, name, *rest in tree:
            full = path + b"/" + name
            if kind == FILE:
                yield kind, full, rest[0], rest[1]
            else:
                yield kind, full, 0, 0
            if kind == DIRECTORY:
                yield from walk(full, rest[0])

    for name, tree in archives:
        yield DIRECTORY, b"./" + name, 0, 0
        yield from walk(b"./" + name, tree)


DUMP_LINE = re.compile(rb'(.) "((?:[^"\\]|\\.)*)"(?: (\d+) (\S+))?')
ESCAPE = re.compile(rb"\\(?:x([0-9A-F]{2})|(.))")
ESCAPED = {b"n": b"\n", b"t": b"\t", b'"': b'"', b"\\": b"\\"}


def dumped(line: bytes) -> tuple[bytes, bytes, int, int]:
    """Read one line of `catalog dump`, which quotes paths as Rust's debug form does."""
    match = DUMP_LINE.fullmatch(line)
    assert match is not None, line
    kind, quoted, size, time = match.groups()
    path = ESCAPE.sub(lambda m: bytes.fromhex(m[1].decode()) if m[1] else ESCAPED[m[2]], quoted)
    if time is None:
        return kind, path, 0, 0
    mtime = datetime.strptime(time.decode(), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return kind, path, int(size), int(mtime.timestamp())


def test_golden_catalog_against_the_clients_dump(
    golden: Path, golden_snapshots: tuple[StoredSnapshot, ...]
) -> None:
    (snapshot,) = (s for s in golden_snapshots if "/host/v1/2025-01-01" in str(s.path))
    lines = (golden / "expected/catalog-dump.v1.txt").read_bytes().splitlines()
    found = list(flat(read_all(golden_catalog(snapshot))))
    assert found == [dumped(line) for line in lines]
