import struct
from collections.abc import Callable

import pytest

from store.errors import FormatError, NotFound
from store.format.buffer import BytesReadAt
from store.format.pxar.accessor import Accessor
from store.format.pxar.encoder import Encoder
from store.format.pxar.entries import (
    PAYLOAD_START,
    Entry,
    EntryKind,
    Metadata,
    encode_metadata,
    encode_stat,
    payload_header,
)
from store.format.pxar.items import HEADER, PXAR_GOODBYE, PXAR_GOODBYE_TAIL_MARKER
from tests.unit.store.format.pxar.archives import open_archive, walk
from tests.unit.store.format.pxar.test_decoder import deep
from tests.unit.store.format.pxar.test_encoder import MINIMAL, TEXT, sample

DIRECTORY = encode_stat(0o40755, 0, 0, 0, 0, 0)
FILE = encode_stat(0o100644, 0, 0, 0, 0, 0)
FIFO = encode_stat(0o10644, 0, 0, 0, 0, 0)

# Where the sample's goodbye tables start, and the root's records (spec 9.11).
SUB_TABLE, ROOT_TABLE = 602, 690
SUB_RECORD, FILE_RECORD, LINK_RECORD, HARD_RECORD = (
    ROOT_TABLE + 16 + 24 * slot for slot in (1, 2, 3, 0)
)


class CountingReadAt(BytesReadAt):
    """Notes what is read, and the largest piece of it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads = self.total = self.largest = 0

    def read(self, offset: int, size: int) -> bytes:
        self.reads += 1
        self.total += size
        self.largest = max(self.largest, size)
        return super().read(offset, size)


def test_the_sample() -> None:
    accessor = open_archive(sample(), None)
    assert accessor.version == 1
    entries = dict(walk(accessor))
    assert sorted(entries) == [
        b"",
        b"file.txt",
        b"hard.txt",
        b"link",
        b"sub",
        b"sub/null",
        b"sub/pipe",
    ]
    assert [entry.name for entry in accessor.list(accessor.root())] == [
        b"file.txt",
        b"hard.txt",
        b"link",
        b"sub",
    ]
    assert entries[b""].end == 826
    assert (entries[b"sub"].offset, entries[b"sub"].end) == (340, 690)
    assert accessor.follow(entries[b"hard.txt"]).offset == 56
    assert accessor.read(entries[b"file.txt"], 0, 100) == TEXT


def test_an_empty_directory() -> None:
    accessor = open_archive(MINIMAL, None)
    assert accessor.list(accessor.root()) == []
    assert accessor.lookup(accessor.root(), b"a") is None


def test_paths() -> None:
    accessor = open_archive(sample(), None)
    for path in (b"", b"/", b"//"):
        assert accessor.resolve(path).name == b""
    for path in (b"sub/null", b"/sub/null", b"//sub//null/"):
        assert accessor.resolve(path).name == b"null"
    for path in (
        b"nope",
        b"sub/nope",
        b"file.txt/a",
        b"hard.txt/a",
        b"..",
        b".",
        b"sub/..",
        b"\xff\0",
    ):
        with pytest.raises(NotFound, match="in the archive"):
            accessor.resolve(path)


@pytest.mark.parametrize(
    ("offset", "size", "expected"),
    [
        (0, 27, TEXT),
        (0, 0, b""),
        (20, 100, TEXT[20:]),
        (27, 5, b""),
        (99, 5, b""),
        (3, 4, TEXT[3:7]),
    ],
)
def test_reading_a_part(offset: int, size: int, expected: bytes) -> None:
    accessor = open_archive(sample(), None)
    assert accessor.read(accessor.resolve(b"file.txt"), offset, size) == expected


def split_archive(*, offset: int = 16, size: int = 5) -> bytes:
    encoder = Encoder(split=True)
    return (
        encoder.begin(DIRECTORY)
        + encoder.file_ref(b"a", FILE, offset, size, reused=True)
        + encoder.finish()
    )


def test_content_in_the_payload_stream() -> None:
    payload = PAYLOAD_START + payload_header(5) + b"hello" + bytes(100)
    accessor = open_archive(split_archive(), payload)
    file = accessor.resolve(b"a")
    stream, offset = accessor.content(file)
    assert stream.read(offset, file.size) == b"hello"
    assert accessor.read(file, 1, 3) == b"ell"


@pytest.mark.parametrize(
    ("archive", "payload"),
    [
        (split_archive(), PAYLOAD_START + payload_header(5) + b"hell"),
        (split_archive(), PAYLOAD_START + payload_header(4) + b"hello"),
        (split_archive(), PAYLOAD_START + HEADER.pack(7, 21) + b"hello"),
        (split_archive(), PAYLOAD_START),
        (split_archive(offset=17), PAYLOAD_START + payload_header(5) + b"hello"),
        (split_archive(offset=2**62), PAYLOAD_START),
        (split_archive(offset=2**64 - 1), PAYLOAD_START),
        (split_archive(size=2**64 - 1), PAYLOAD_START + payload_header(5) + b"hello"),
        (split_archive(size=2**62), PAYLOAD_START + payload_header(5) + b"hello"),
        (split_archive(), None),
    ],
)
def test_content_that_is_not_there(archive: bytes, payload: bytes | None) -> None:
    accessor = open_archive(archive, payload)
    with pytest.raises(FormatError):
        accessor.content(accessor.resolve(b"a"))
    with pytest.raises(FormatError):
        accessor.read(accessor.resolve(b"a"), 0, 1)


def test_what_a_kind_cannot_do() -> None:
    accessor = open_archive(sample(), None)
    link, sub, file = (accessor.resolve(name) for name in (b"link", b"sub", b"file.txt"))
    for call in (
        lambda: accessor.content(sub),
        lambda: accessor.content(accessor.resolve(b"hard.txt")),
        lambda: accessor.list(link),
        lambda: accessor.lookup(file, b"a"),
        lambda: accessor.follow(file),
        lambda: accessor.follow(sub),
    ):
        with pytest.raises(FormatError):
            call()


def test_depth_does_not_recurse() -> None:
    accessor = open_archive(deep(10_000), None)
    entry, depth = accessor.root(), 0
    while children := accessor.list(entry):
        (entry,) = children
        depth += 1
    assert depth == 10_000
    assert accessor.resolve(b"d/" * 10_000).offset == entry.offset


def large_directory(count: int, content: bytes = b"") -> bytes:
    encoder = Encoder(split=False)
    out = [encoder.begin(DIRECTORY)]
    for number in range(count):
        out += [encoder.file(b"%06d" % number, FILE, len(content)), content]
    return b"".join([*out, encoder.finish()])


def test_a_large_directory_is_read_in_large_pieces() -> None:
    stream = CountingReadAt(large_directory(20_000))
    accessor = Accessor(stream)
    assert len(accessor.list(accessor.root())) == 20_000
    assert stream.reads < 30
    assert stream.largest <= 256 * 1024
    assert stream.total < 1.2 * stream.size


def test_a_listing_does_not_read_contents() -> None:
    stream = CountingReadAt(large_directory(100, bytes(100_000)))
    accessor = Accessor(stream)
    assert len(accessor.list(accessor.root())) == 100
    assert stream.total < 0.1 * stream.size


def test_a_lookup_reads_little() -> None:
    stream = CountingReadAt(large_directory(20_000))
    accessor = Accessor(stream)
    before = stream.total
    assert accessor.lookup(accessor.root(), b"012345") is not None
    assert stream.total - before < 2000


def test_large_metadata_is_read() -> None:
    metadata = Metadata(0o40755, xattrs=tuple((b"user.%d" % n, bytes(65_000)) for n in range(40)))
    encoder = Encoder(split=False)
    raw = encode_metadata(metadata)
    out = [encoder.begin(raw), encoder.enter_directory(b"a", raw)]
    accessor = open_archive(b"".join([*out, encoder.leave_directory(), encoder.finish()]), None)
    assert accessor.root().metadata == metadata
    assert [entry.metadata for entry in accessor.list(accessor.root())] == [metadata]


class HugeReadAt:
    """A stream of 2**62 bytes: `start`, zeros, `end`. Refuses to give more than 32 MiB at once."""

    size = 2**62

    def __init__(self, start: bytes, end: bytes) -> None:
        self.start, self.end = start, end

    def read(self, offset: int, size: int) -> bytes:
        assert 0 <= size <= 32 * 2**20
        assert 0 <= offset <= self.size - size
        if offset < len(self.start):
            return self.start[offset : offset + size].ljust(size, b"\0")
        if offset + size > self.size - len(self.end):
            return (bytes(size) + self.end)[offset - self.size :][:size]
        return bytes(size)


@pytest.mark.parametrize("table", [40, 64, 2**61 + 16, 2**62 - 56, 2**62, 2**64 - 8, 0, 16])
def test_hostile_tables_take_little_memory(table: int) -> None:
    tail = struct.pack("<QQQ", PXAR_GOODBYE_TAIL_MARKER, (2**62 - table) % 2**64, table)
    for start in (sample(), DIRECTORY + HEADER.pack(PXAR_GOODBYE, table % 2**64)):
        with pytest.raises(FormatError):
            look_at_all(Accessor(HugeReadAt(start, tail)))


def changed(*changes: tuple[int, int]) -> Accessor:
    """The sample with other values at some positions."""
    archive = bytearray(sample())
    for position, value in changes:
        archive[position : position + 8] = (value % 2**64).to_bytes(8, "little")
    return open_archive(archive, None)


def look_at_all(accessor: Accessor) -> None:
    for _, entry in walk(accessor):
        if entry.kind is EntryKind.HARDLINK:
            accessor.follow(entry)


@pytest.mark.parametrize("distance", [0, 1, -1, 690 - 56 - 1, 690, 691, 2**63, 690 - 340 - 76])
@pytest.mark.parametrize("record", [SUB_RECORD, FILE_RECORD, HARD_RECORD, LINK_RECORD])
def test_tables_that_point_elsewhere(record: int, distance: int) -> None:
    with pytest.raises((FormatError, AssertionError)):
        look_at_all(changed((record + 8, distance)))


@pytest.mark.parametrize("size", [0, 1, 75, 349, 351, 350 + 136, 351 + 136, 2**63, -1])
def test_directories_that_end_elsewhere(size: int) -> None:
    with pytest.raises(FormatError):
        look_at_all(changed((SUB_RECORD + 16, size)))


@pytest.mark.parametrize("distance", [0, 1, 602 - 360 - 1, 602, 690, -1, 2**63])
def test_a_table_of_another_directory(distance: int) -> None:
    with pytest.raises(FormatError):
        look_at_all(changed((ROOT_TABLE - 16, distance)))


def test_a_directory_that_contains_itself() -> None:
    """sub's record says it ends with the root's table: listing it would list the root's again."""
    with pytest.raises(FormatError):
        look_at_all(changed((SUB_RECORD + 16, 826 - 340)))


@pytest.mark.parametrize(
    "distance",
    [0, 124 - 1, 124 + 1, 124 - 25, 180 - 81, 180, 181, 2**63, -1, -(238 - 180), -(340 - 180)],
)
def test_hard_links_to_no_file(distance: int) -> None:
    with pytest.raises(FormatError):
        look_at_all(changed((205 + 16, distance)))


def linked(write_target: Callable[[Encoder], bytes]) -> tuple[Accessor, Entry]:
    """An archive whose file `z` is a hard link to what `write_target` writes."""
    encoder = Encoder(split=False)
    out = [encoder.begin(DIRECTORY), write_target(encoder)]
    out += [encoder.hardlink(b"z", encoder.last_offset, b"a"), encoder.finish()]
    accessor = open_archive(b"".join(out), None)
    return accessor, accessor.resolve(b"z")


@pytest.mark.parametrize(
    "write_target",
    [
        lambda encoder: encoder.special(b"a", FIFO),
        lambda encoder: encoder.symlink(b"a", encode_stat(0o120777, 0, 0, 0, 0, 0), b"b"),
        lambda encoder: encoder.enter_directory(b"a", DIRECTORY) + encoder.leave_directory(),
        lambda encoder: encoder.file(b"a", FILE, 0) + encoder.hardlink(b"b", 56, b"a"),
    ],
)
def test_hard_links_to_other_kinds(write_target: Callable[[Encoder], bytes]) -> None:
    accessor, link = linked(write_target)
    with pytest.raises(FormatError, match="regular file"):
        accessor.follow(link)


def test_hard_links_to_files() -> None:
    accessor, link = linked(lambda encoder: encoder.file(b"a", FILE, 0))
    assert accessor.follow(link).name == b"a"


@pytest.mark.parametrize("name", [b"", b"/", b".", b"..", b"a/b", b"a\0b"])
def test_forbidden_names(name: bytes) -> None:
    encoder = Encoder(split=False)
    out = encoder.begin(DIRECTORY) + encoder.special(b"x" * len(name), FIFO) if name else b""
    if not name:
        return
    archive = (out + encoder.finish()).replace(b"x" * len(name) + b"\0", name + b"\0")
    accessor = open_archive(archive, None)
    with pytest.raises(FormatError, match="forbidden name"):
        accessor.list(accessor.root())


def test_entries_again_by_their_offset() -> None:
    accessor = open_archive(sample(), None)
    sub = accessor.resolve(b"sub")
    assert [entry.name for entry in accessor.list(accessor.entry_at(sub.offset, sub.end))] == [
        b"null",
        b"pipe",
    ]
    assert accessor.entry_at(56).name == b"file.txt"
    with pytest.raises(FormatError):
        accessor.entry_at(57)
    with pytest.raises(FormatError):
        accessor.entry_at(sub.offset)


@pytest.mark.parametrize("archive", [sample(), large_directory(300)], ids=["sample", "large"])
def test_entries_by_nothing_but_their_offset(archive: bytes) -> None:
    accessor = open_archive(archive, None)
    for path, entry in walk(accessor):
        if not path:
            continue
        found = accessor.entry_within(entry.offset)
        assert (found.name, found.offset, found.end) == (entry.name, entry.offset, entry.end)
        names = [directory.name for directory in accessor.path_to(entry.offset)]
        assert b"/".join(names[1:]) == path.rpartition(b"/")[0]
        with pytest.raises(FormatError):
            accessor.entry_within(entry.offset + 1)
    for outside in (0, -1, 1 << 62):
        with pytest.raises(FormatError):
            accessor.entry_within(outside)


@pytest.mark.parametrize("length", range(826))
def test_every_truncation_is_an_error(length: int) -> None:
    with pytest.raises(FormatError):
        look_at_all(open_archive(sample()[:length], None))
