import sys
import tracemalloc
from collections.abc import Iterator

import pytest

from store.errors import FormatError
from store.format.pxar.decoder import Decoder, DirectoryEnd, PayloadData, decode
from store.format.pxar.encoder import Encoder
from store.format.pxar.entries import Entry, EntryKind, Metadata, encode_metadata, encode_stat
from store.format.pxar.items import HEADER, PXAR_PAYLOAD, PXAR_PRELUDE, PXAR_XATTR, encode_item
from tests.unit.store.format.pxar.test_encoder import MINIMAL, TEXT, sample, upstream_fixture

DIRECTORY = encode_stat(0o40755, 0, 0, 0, 0, 0)
FILE = encode_stat(0o100644, 0, 0, 0, 0, 0)
VERSION = bytes.fromhex("0da416df756c0f73180000000000000002000000 00000000")


def test_the_sample() -> None:
    told = []
    for event in decode([sample()]):
        if isinstance(event, Entry):
            told.append((event.kind.name, event.name, event.offset))
        elif isinstance(event, PayloadData):
            told.append(("DATA", bytes(event.data), 0))
        else:
            told.append(("END", b"", event.end))
    assert told == [
        ("DIRECTORY", b"", 0),
        ("FILE", b"file.txt", 56),
        ("DATA", TEXT, 0),
        ("HARDLINK", b"hard.txt", 180),
        ("SYMLINK", b"link", 238),
        ("DIRECTORY", b"sub", 340),
        ("CHAR_DEVICE", b"null", 416),
        ("FIFO", b"pipe", 525),
        ("END", b"", 690),
        ("END", b"", 826),
    ]


def test_what_the_samples_entries_say() -> None:
    root, file, hard, link, sub, null, pipe = (
        e for e in decode([sample()]) if isinstance(e, Entry)
    )
    assert root.metadata == Metadata(0o40755, 0, 1000, 1000, 1430487000)
    assert (file.payload_offset, file.size, file.end) == (153, 27, 180)
    assert file.metadata.mtime_ns == 123456789
    assert (hard.target_offset, hard.target, hard.end) == (56, b"file.txt", 238)
    assert link.target == b"file.txt"
    assert (sub.metadata.mtime_s, sub.metadata.mtime_ns, sub.end) == (-1, 500_000_000, 0)
    assert (sub.content_offset, null.device) == (416, (1, 3))
    assert (pipe.end, pipe.raw_metadata) == (602, encode_stat(0o10600, 0, 0, 0, 1430487000, 0))
    with pytest.raises(FormatError):
        _ = hard.metadata


def test_the_minimal_archive() -> None:
    root, end = decode([MINIMAL])
    assert isinstance(root, Entry)
    assert isinstance(end, DirectoryEnd)
    assert (root.kind, end.end) == (EntryKind.DIRECTORY, 96)


def test_content_is_not_copied() -> None:
    encoder = Encoder(split=False)
    start = encoder.begin(DIRECTORY) + encoder.file(b"a", FILE, 100_000)
    archive = bytearray(start + bytes(100_000) + encoder.finish())
    seen = 0
    for event in decode([memoryview(archive)[:50_000], b"", memoryview(archive)[50_000:]]):
        if isinstance(event, PayloadData):
            assert event.data.obj is archive
            seen += len(event.data)
            archive[len(start)] += 1
            assert event.data[0] == (1 if seen <= 50_000 else 0)
    assert seen == 100_000


@pytest.mark.parametrize("archive", [sample(), upstream_fixture(reused=True)[:5000]])
def test_every_truncation_is_an_error(archive: bytes) -> None:
    step = 1 if len(archive) < 1000 else 37
    for length in range(0, len(archive), step):
        with pytest.raises(FormatError):
            list(decode([archive[:length]]))


@pytest.mark.parametrize("rest", [b"\0", bytes(100), MINIMAL])
def test_bytes_after_the_end_are_an_error(rest: bytes) -> None:
    with pytest.raises(FormatError, match="goes on"):
        list(decode([MINIMAL, b"", rest]))


def test_no_bytes_at_all() -> None:
    for chunks in ([], [b""], [b"", b""]):
        with pytest.raises(FormatError):
            list(decode(chunks))


def test_versions() -> None:
    encoder = Encoder(split=True, prelude=b"xyz")
    rest = (encoder.begin(DIRECTORY) + encoder.finish())[24:]
    for version in (1, 2):
        head = VERSION[:16] + version.to_bytes(8, "little")
        decoder = Decoder([head + rest])
        assert len(list(decoder)) == 2
        assert (decoder.version, decoder.prelude) == (version, b"xyz")
    for version in (0, 3, 2**64 - 1):
        with pytest.raises(FormatError, match="version"):
            list(decode([VERSION[:16] + version.to_bytes(8, "little") + rest]))
    with pytest.raises(FormatError):
        list(decode([encode_item(0x730F6C75DF16A40D, bytes(9)) + rest]))


def test_the_root_is_a_directory() -> None:
    for start in (FILE, sample()[56:], encode_item(PXAR_XATTR, b"a\0"), bytes(200), b"\xff" * 200):
        with pytest.raises(FormatError):
            list(decode([start + sample()]))


def test_content_where_it_does_not_belong() -> None:
    encoder = Encoder(split=True)
    metadata = encoder.begin(DIRECTORY) + encoder.file_ref(b"a", FILE, 16, 5) + encoder.finish()
    with pytest.raises(FormatError):
        list(decode([metadata[24:]]))
    archive = sample()
    with pytest.raises(FormatError):
        list(decode([VERSION, archive]))


@pytest.mark.parametrize("size", [2**64 - 1, 2**63, 2**40, 15, 0])
def test_hostile_content_sizes(size: int) -> None:
    archive = sample()
    hostile = archive[:137] + HEADER.pack(PXAR_PAYLOAD, size) + archive[153:]
    with pytest.raises(FormatError):
        list(decode([hostile]))


@pytest.mark.parametrize("size", [2**64 - 1, 2**63, 2**40, 2**24 + 17, 15, 0])
def test_hostile_prelude_sizes(size: int) -> None:
    def chunks() -> Iterator[bytes]:
        yield VERSION + HEADER.pack(PXAR_PRELUDE, size)
        for _ in range(100):
            yield bytes(2**20)

    with pytest.raises(FormatError):
        list(decode(chunks()))


@pytest.mark.parametrize("position", [0, 56, 81, 137, 180, 205, 315, 493, 602, 690])
@pytest.mark.parametrize("size", [2**64 - 1, 2**63, 2**32, 2**17, 4200, 17, 16, 15, 0])
def test_hostile_item_sizes(position: int, size: int) -> None:
    archive = bytearray(sample())
    archive[position + 8 : position + 16] = size.to_bytes(8, "little")
    with pytest.raises(FormatError):
        list(decode([archive]))


def endless_metadata() -> Iterator[bytes]:
    yield DIRECTORY
    item = encode_item(PXAR_XATTR, b"user.a\0" + bytes(60_000))
    while True:
        yield item


def test_metadata_without_end_is_an_error_in_bounded_memory() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="endless"):
            list(decode(endless_metadata()))
        assert tracemalloc.get_traced_memory()[1] < 400 * 2**20
    finally:
        tracemalloc.stop()


def test_large_metadata_is_read() -> None:
    metadata = Metadata(0o40755, xattrs=tuple((b"user.%d" % n, bytes(65_000)) for n in range(40)))
    encoder = Encoder(split=False)
    out = [encoder.begin(encode_metadata(metadata))]
    out += [encoder.enter_directory(b"a", encode_metadata(metadata)), encoder.leave_directory()]
    archive = b"".join([*out, encoder.finish()])
    pieces = [archive[start : start + 1000] for start in range(0, len(archive), 1000)]
    entries = [event for event in decode(pieces) if isinstance(event, Entry)]
    assert [entry.metadata for entry in entries] == [metadata, metadata]


def test_memory_does_not_grow_with_the_archive() -> None:
    encoder = Encoder(split=False)
    begin, chunk = encoder.begin(DIRECTORY), bytes(2**20)

    def chunks() -> Iterator[bytes]:
        yield begin
        for number in range(300):
            yield encoder.file(b"%05d" % number, FILE, len(chunk))
            yield chunk
        yield encoder.finish()

    tracemalloc.start()
    try:
        assert sum(1 for _ in decode(chunks())) > 600
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def deep(depth: int) -> bytes:
    encoder = Encoder(split=False)
    out = [encoder.begin(DIRECTORY)]
    out += [encoder.enter_directory(b"d", DIRECTORY) for _ in range(depth)]
    out += [encoder.leave_directory() for _ in range(depth)]
    return b"".join([*out, encoder.finish()])


def test_depth_does_not_recurse() -> None:
    depth = 20_000
    assert depth > 10 * sys.getrecursionlimit()
    events = list(decode([deep(depth)]))
    assert len(events) == 2 * (depth + 1)
