"""The parser in C gives the entries that the one in Python gives, and leaves it what is wrong."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store import native
from store.errors import FormatError
from store.format.buffer import BytesReadAt
from store.format.pxar import accessor as accessors
from store.format.pxar.accessor import Accessor
from store.format.pxar.encoder import Encoder
from store.format.pxar.entries import Entry, EntryKind, encode_stat, hash_name
from store.format.pxar.goodbye import FRONT_SIZE, RECORD_SIZE
from store.format.pxar.packed import index, unpack_all
from store.format.pxar.parser import KINDS
from tests.unit.store.format.pxar.archives import ROOTS, Node, encode_tree
from tests.unit.store.format.pxar.test_damage import split_sample
from tests.unit.store.format.pxar.test_encoder import sample

_entries = pytest.importorskip("store.format.pxar._entries")

SOURCE = Path(accessors.__file__).parent / "_entries.c"
FILE, DIRECTORY = encode_stat(0o100644, 0, 1, 2, 3, 4), encode_stat(0o40755, 0, 1, 2, 3, 4)
Facts = tuple[object, ...]


def facts(entry: Entry) -> Facts:
    return tuple(getattr(entry, name) for name in Entry.__slots__ if name != "_metadata")


def walk(accessor: Accessor, *, in_batches: bool) -> Iterator[Facts]:
    """All there is, in archive order; ends with the message of what is wrong."""
    try:
        todo = [accessor.root()]
        while todo:
            directory = todo.pop()
            children = accessor.children(directory)
            for entry in accessor.iterate(directory) if in_batches else children:
                yield facts(entry)
                if entry.kind is EntryKind.DIRECTORY:
                    todo.append(entry)
    except FormatError as error:
        yield (str(error),)


def walk_packed(accessor: Accessor, archive: bytes) -> Iterator[Facts]:
    """The same from packed listings; a directory parsed from the whole archive has no other one."""
    try:
        todo = [accessor.root()]
        while todo:
            directory = todo.pop()
            found, children = b"", accessor.children(directory)
            while batch := children.packed():
                found += batch
                for entry in unpack_all(batch):
                    yield facts(entry)
                    if entry.kind is EntryKind.DIRECTORY:
                        todo.append(entry)
            place = directory.offset, directory.end, accessor.content_item
            whole = accessors.pack_directory(archive, 0, *place) if directory.name else None
            assert whole in (None, found)
    except FormatError as error:
        yield (str(error),)


def assert_same(archive: bytes) -> list[Facts]:
    try:
        accessor = Accessor(BytesReadAt(archive))
    except FormatError:
        return []
    found = list(walk(accessor, in_batches=True))
    assert found == list(walk(accessor, in_batches=False))
    assert found == list(walk_packed(accessor, archive))
    return found


@given(ROOTS, st.booleans())
def test_trees(root: Node, split: bool) -> None:
    assert_same(encode_tree(root, split=split)[0])


@given(ROOTS, st.booleans(), st.data())
@settings(max_examples=200)
def test_damaged_trees(root: Node, split: bool, data: st.DataObject) -> None:
    damaged = bytearray(encode_tree(root, split=split)[0])
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(damaged) - 1))
        new = data.draw(st.binary(max_size=9))
        damaged[position : position + data.draw(st.integers(0, 9))] = new
    assert_same(bytes(damaged))


@pytest.mark.parametrize("make", [sample, split_sample])
def test_every_byte_damaged(make: object) -> None:
    assert callable(make)
    archive = make()
    for position in range(len(archive)):
        for flip in (1, 0x80, 0xFF):
            damaged = bytearray(archive)
            damaged[position] ^= flip
            assert_same(bytes(damaged))


def large(make_child: object, count: int) -> bytes:
    assert callable(make_child)
    encoder = Encoder(split=True)
    out = [encoder.begin(DIRECTORY)]
    for number in range(count):
        out += make_child(encoder, number)
    return b"".join([*out, encoder.finish()])


def some_file(encoder: Encoder, number: int) -> list[bytes]:
    return [encoder.file_ref(b"%06d" % number, FILE, 16 + 100 * number, 80)]


def some_directory(encoder: Encoder, number: int) -> list[bytes]:
    return [encoder.enter_directory(b"%06d" % number, DIRECTORY), encoder.leave_directory()]


@pytest.mark.parametrize("make_child", [some_file, some_directory])
def test_directories_larger_than_a_window_and_a_table_larger_than_its_front(
    make_child: object,
) -> None:
    count = 2 * FRONT_SIZE // RECORD_SIZE
    assert len(assert_same(large(make_child, count))) == count


def test_many_at_once() -> None:
    accessor = Accessor(BytesReadAt(large(some_file, 100)))
    children = accessor.children(accessor.root())
    first = children.batch()
    assert 30 < len(first) < 80  # the first window has no more
    assert sum(map(len, iter(children.batch, []))) == 100 - len(first)
    assert children.batch() == []


def test_a_whole_directory_at_once() -> None:
    encoder = Encoder(split=True)
    out = [encoder.begin(DIRECTORY), encoder.enter_directory(b"d", DIRECTORY)]
    for number in range(100):
        out += some_file(encoder, number)
    archive = b"".join([*out, encoder.leave_directory(), encoder.finish()])
    accessor = Accessor(BytesReadAt(archive))
    (directory,) = accessor.list(accessor.root())
    place = directory.offset, directory.end, accessor.content_item
    expected = accessor.packed(directory)
    assert len(index(expected).starts) == 100
    assert accessors.pack_directory(archive, 0, *place) == expected
    cut = archive[directory.offset : directory.end]
    assert accessors.pack_directory(cut, directory.offset, *place) == expected
    assert accessors.pack_directory(cut[:-1], directory.offset, *place) is None
    assert accessors.pack_directory(cut[1:], directory.offset, *place) is None
    with pytest.raises(ValueError, match="out of range"):
        _entries.directory(cut, 7, 6, 10, 0)


def test_without_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = large(some_directory, 50)
    expected = assert_same(archive)
    monkeypatch.setattr(native, "is_usable", lambda _: False)
    parsers = zip(("parse_many", "pack_many", "pack_directory"), accessors._in_c(), strict=True)
    for name, parser in parsers:
        monkeypatch.setattr(accessors, name, parser)
    assert assert_same(archive) == expected


@given(
    st.binary(min_size=1, max_size=40).filter(lambda name: not {47, 0} & {*name} and name[0] != 46)
)
def test_hashes(name: bytes) -> None:
    """A directory is found in the table by the hash of its name."""
    encoder = Encoder(split=True)
    encoder.begin(DIRECTORY)
    start = encoder.position
    item = encoder.enter_directory(name, DIRECTORY) + encoder.leave_directory()
    end = start + len(item)
    record = b"".join(
        number.to_bytes(8, "little") for number in (hash_name(name), len(item), len(item))
    )
    found, position = _entries.children(
        Entry, KINDS, item, start, 0, bytes(16) + record, end, accessors.PXAR_PAYLOAD_REF
    )
    assert [(entry.name, entry.end) for entry in found] == [(name, end)]
    assert position == len(item)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="out of range"):
        _entries.children(Entry, KINDS, b"", 1 << 63, 0, b"", 0, 0)
    with pytest.raises(ValueError, match="out of range"):
        _entries.children(Entry, (), b"", 0, 0, b"", 0, 0)
    assert _entries.children(Entry, KINDS, b"x", 0, 1 << 40, b"", 1 << 50, 0) == ([], 1 << 40)


MUTATE = """
import random, re, sys
from store.format.pxar import _entries
from store.format.pxar.entries import Entry
from store.format.pxar.parser import KINDS
assert _entries.__file__.startswith(sys.argv[1]), _entries.__file__
rng, found, listed = random.Random(7), 0, 0
FILENAME, TAIL = bytes.fromhex("b317390621117016"), bytes.fromhex("55153e755bed5eef")
def places(data, item):
    return [found.start() for found in re.finditer(re.escape(item), data)] or [0]
for path in sys.argv[2:]:
    whole = open(path, "rb").read()
    for _ in range(4000):
        data = bytearray(whole)
        for _ in range(rng.randrange(4)):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 16, 255, rng.randrange(256)))
        start, end = rng.randrange(len(data)), rng.randrange(len(data) + 1)
        window, records = bytes(data[start:end]), bytes(data[-rng.randrange(1, 400):])
        for item in (0x28147A1B0B7C1A25, 0x419D3D6BC4BA977E):
            for position in (0, window.find(bytes.fromhex("b317390621117016"))):
                arguments = window, start, max(0, position), records, rng.randrange(2 * len(data))
                found += len(_entries.children(Entry, KINDS, *arguments, item)[0])
                _entries.children(None, None, *arguments, item)
        for item in (0x28147A1B0B7C1A25, 0x419D3D6BC4BA977E):
            place, end = rng.choice(places(data, FILENAME)), rng.choice(places(data, TAIL)) + 24
            if place <= end:
                packed = _entries.directory(data[:-1], 0, place, end, item)
                listed += packed is not None
                _entries.directory(data[place:], place, place, end + rng.randrange(99), item)
                listing = bytearray(packed or data)
                listing[rng.randrange(len(listing))] = rng.randrange(256)
                _entries.index(listing[rng.randrange(2) * 69 :], rng.randrange(99))
assert min(found, listed) > 300, (found, listed)
"""


def test_memory_is_never_read_past_its_end(tmp_path: Path) -> None:
    """The module with the address sanitizer in it, over thousands of damaged windows."""
    folder = tmp_path / "sanitized/store/format/pxar"
    folder.mkdir(parents=True)
    module = folder / SOURCE.with_suffix(sysconfig.get_config_var("EXT_SUFFIX")).name
    include = sysconfig.get_paths()["include"]
    sanitize = "-fsanitize=address,undefined", "-fno-sanitize-recover"
    subprocess.run(
        ["gcc", "-O1", "-g", *sanitize, "-shared", "-fPIC", f"-I{include}", SOURCE, "-o", module],
        check=True,
    )
    archives = []
    for number, archive in enumerate((sample(), split_sample(), large(some_directory, 9))):
        archives.append(tmp_path / str(number))
        archives[-1].write_bytes(archive)
    library = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    prefer = f"import store.format.pxar as p; p.__path__.insert(0, {str(folder)!r})\n"
    checked = {"ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc", "LD_PRELOAD": library}
    done = subprocess.run(
        [sys.executable, "-c", prefer + MUTATE, str(folder), *map(str, archives)],
        env=os.environ | checked, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
