import contextlib
import errno
import stat
import struct
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.disks.microvm.protocol import (
    LARGEST_REPLY,
    VERSION,
    Key,
    Op,
    Page,
    Record,
    Reply,
    ReplyReader,
    decode_page,
    decode_ready,
    decode_record,
    encode_request,
)
from store.errors import FormatError
from tests.fakes.guest_agent import encode_page, encode_record, encode_reply

numbers = st.integers(0, (1 << 63) - 1)
small = st.integers(0, (1 << 32) - 1)
names = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
kinds = st.sampled_from((stat.S_IFREG, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFLNK))
xattrs = st.lists(
    st.tuples(st.text("abc.", min_size=1, max_size=20).map(str.encode), st.binary(max_size=50)),
    max_size=3,
).map(tuple)


@st.composite
def records(draw: st.DrawFn) -> Record:
    mode = draw(kinds) | draw(st.integers(0, 0o7777))
    is_link = stat.S_ISLNK(mode)
    return Record(
        Key(draw(numbers), draw(numbers)), draw(numbers),
        (draw(st.integers(-(1 << 63), (1 << 63) - 1)), draw(st.integers(0, 999_999_999))),
        mode, (draw(small), draw(small)), draw(small), (draw(small), draw(small)), 0, draw(names),
        draw(st.binary(min_size=1, max_size=99).filter(lambda text: b"\0" not in text))
        if is_link else b"", draw(xattrs),
    )  # fmt: skip


replies = st.builds(Reply, small, st.integers(0, 133), st.binary(max_size=99))


@given(st.lists(records(), min_size=1, max_size=5), numbers, st.booleans())
def test_pages_come_back(found: list[Record], following: int, last: bool) -> None:
    page = Page(found, following, last)
    assert decode_page(encode_page(page)) == page


@given(records())
def test_records_come_back(record: Record) -> None:
    assert decode_record(encode_record(record)) == record


@given(st.lists(replies, max_size=5), st.lists(st.integers(0, 600), max_size=8))
def test_replies_come_back_however_they_are_split(sent: list[Reply], cuts: list[int]) -> None:
    stream = b"".join(map(encode_reply, sent))
    places = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    reader, found = ReplyReader(), []
    for start, end in pairwise(places):
        found += reader.feed(stream[start:end])
    assert found == sent


@given(st.lists(records(), min_size=1, max_size=3), st.data())
def test_mutated_pages_are_format_errors_or_still_harmless(
    found: list[Record], data: st.DataObject
) -> None:
    raw = bytearray(encode_page(Page(found, 7, False)))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(raw)))
    with contextlib.suppress(FormatError):
        for record in decode_page(bytes(raw[:end])).records:
            assert b"/" not in record.name
            assert record.name not in (b"", b".", b"..")
            assert 0 <= record.size < 1 << 63


@given(st.binary(max_size=300))
def test_noise_is_a_format_error(noise: bytes) -> None:
    for decode in (decode_page, decode_record, decode_ready, ReplyReader().feed):
        with contextlib.suppress(FormatError):
            decode(noise)


def test_a_reply_too_large_is_refused_before_it_is_there() -> None:
    with pytest.raises(FormatError):
        ReplyReader().feed(struct.pack("<IIi", LARGEST_REPLY, 1, 0))
    with pytest.raises(FormatError):
        ReplyReader().feed(struct.pack("<IIi", 8, 1, -5))


def record(**changes: Any) -> bytes:
    plain = Record(Key(0, 5), 1, (2, 3), stat.S_IFREG, (0, 0), 1, (0, 0), 0, b"name", b"", ())
    return encode_record(plain._replace(**changes))


@pytest.mark.parametrize(
    "raw",
    [
        record(name=b".."),
        record(name=b"a/b"),
        record(name=b"a\0"),
        record(name=b"n" * 256),
        record(size=1 << 63),
        record(mtime=(0, 1_000_000_000)),
        record(mode=0o644),
        record(mode=0o777777),
        record(target=b"somewhere"),
        record(mode=stat.S_IFLNK, target=b""),
        record(mode=stat.S_IFLNK, target=b"x" * 4097),
        record(mode=stat.S_IFLNK, target=b"a\0b"),
        record(xattrs=((b"", b""),)),
        record() + b"x",
        record()[:-1],
    ],
)
def test_what_no_kernel_says_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        decode_record(raw)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0", b"n" * 256])
def test_a_name_that_cannot_be_hides_no_others(name: bytes) -> None:
    good, omitted = decode_record(record()), []
    page = Page([good._replace(name=each) for each in (b"one", name, b"two")], 7, False)
    found = decode_page(encode_page(page), omitted.append)
    assert [each.name for each in found.records] == [b"one", b"two"]
    assert (omitted, found.following) == ([name], 7)


def test_a_damaged_inode_has_a_name_all_the_same() -> None:
    found = decode_record(record(error=errno.EUCLEAN, mode=stat.S_IFLNK))
    assert (found.name, found.error) == (b"name", errno.EUCLEAN)


def test_an_empty_page_must_be_the_last() -> None:
    assert decode_page(encode_page(Page([], 0, True))) == Page([], 0, True)
    with pytest.raises(FormatError):
        decode_page(encode_page(Page([], 0, False)))


def test_another_version_is_refused_and_the_log_is_printable() -> None:
    ready = decode_ready(struct.pack("<IQQ", VERSION, 5, 256) + b"a\x1b[31m\xff\n")
    assert ready == (Key(5, 256), "a?[31m\ufffd\n")
    with pytest.raises(FormatError, match="speaks version 2"):
        decode_ready(struct.pack("<IQQ", 2, 5, 256))


def test_names_no_file_has_are_not_asked_for() -> None:
    assert encode_request(1, Op.STAT, Key(2, 3))[4:8] == b"\1\0\0\0"
    for name in (b"a/b", b"a\0", b"n" * 256):
        with pytest.raises(FormatError):
            encode_request(1, Op.LOOKUP, Key(2, 3), name=name)
