"""Small files made by the C module: what Python reads in the same bytes, or nothing."""

import os
import resource
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.errors import FormatError
from store.format.pxar.decoder import Decoder, PayloadData
from store.format.pxar.entries import Entry, EntryKind, payload_header
from store.format.pxar.items import PXAR_PAYLOAD_REF
from store.operations.restore.attributes import ForeignOwners
from tests.unit.store.operations.handmade import (
    DIRECTORY,
    FILE,
    TIME,
    archive,
    directory,
    item,
    metadata,
    name,
    symlink,
)

small_files = pytest.importorskip("store.operations._inode").small_files

LIMIT = 1 << 16
START = 1000  # of the piece of the payload stream
IDS = os.geteuid(), os.getegid()
needs_root = pytest.mark.needs("root")

Make = Callable[..., tuple[int, int, int]]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "place"
    directory.mkdir()
    return directory


@pytest.fixture
def make(place: Path) -> Iterator[Make]:
    opened = os.open(place, os.O_RDONLY | os.O_DIRECTORY)

    def call(
        items: bytes,
        payload: bytes | None = None,
        *,
        foreign: ForeignOwners = ForeignOwners.WARN,
        limit: int = LIMIT,
    ) -> tuple[int, int, int]:
        result: tuple[int, int, int] = small_files(
            items, payload, START, limit, (opened, *IDS, foreign)
        )
        return result

    yield call
    os.close(opened)


def stat_item(mode: int = FILE, **facts: int) -> bytes:
    owner = {"uid": IDS[0], "gid": IDS[1]}
    return metadata(mode, **(owner | facts))


def whole(text: bytes, content: bytes, raw: bytes | None = None) -> bytes:
    """A file as a v1 archive has it."""
    return name(text) + (raw or stat_item()) + payload_header(len(content)) + content


def reference(text: bytes, offset: int, size: int, raw: bytes | None = None) -> bytes:
    """A file as a metadata stream has it."""
    return (
        name(text) + (raw or stat_item()) + item(PXAR_PAYLOAD_REF, struct.pack("<QQ", offset, size))
    )


def contents(place: Path) -> dict[bytes, bytes]:
    return {os.fsencode(path.name): path.read_bytes() for path in place.iterdir()}


def test_files_of_a_whole_archive(make: Make, place: Path) -> None:
    first = whole(b"a", b"first", stat_item(0o102640, mtime_s=-5, mtime_ns=999_999_999))
    second = whole(b"\xff", b"")
    assert make(first + second + symlink(b"l", b"x")) == (2, len(first + second), 5)
    assert contents(place) == {b"a": b"first", b"\xff": b""}
    info = (place / "a").stat()
    assert (info.st_mode, info.st_mtime_ns) == (0o102640, -4_000_000_001)
    assert (info.st_uid, info.st_gid) == IDS
    assert (place / os.fsdecode(b"\xff")).stat().st_mtime_ns == TIME * 10**9 + 7


def test_files_of_a_split_archive(make: Make, place: Path) -> None:
    payload = b"padding" + payload_header(5) + b"first" + payload_header(0)
    items = reference(b"a", START + 7, 5) + reference(b"b", START + 28, 0)
    assert make(items, payload) == (2, len(items), 5)
    assert contents(place) == {b"a": b"first", b"b": b""}


def test_at_most_64_at_once(make: Make, place: Path) -> None:
    items = b"".join(whole(b"%d" % number, b"x") for number in range(70))
    files, length, _ = make(items)
    assert (files, len(contents(place))) == (64, 64)
    assert make(items[length:])[0] == 6


@pytest.mark.parametrize(
    "other",
    [
        symlink(b"o", b"a"),
        directory(b"o"),
        whole(b"o", b"x", stat_item(flags=0x10000)),
        whole(b"o", b"x", stat_item(xattrs=((b"user.a", b"b"),))),  # type: ignore[arg-type]
        whole(b"o", b"x", stat_item(DIRECTORY)),
        whole(b"o", b"x", stat_item(0o1100644)),
        whole(b"o", b"x", stat_item()[:-8] + struct.pack("<II", 1_000_000_000, 0)),
        whole(b"o", bytes(LIMIT)),
        whole(b"..", b"x"),
        whole(b".", b"x"),
        whole(b"", b"x"),
        whole(b"../o", b"x"),
        whole(b"o\0o", b"x"),
        whole(b"o" * 256, b"x"),
        name(b"o") + stat_item() + item(0, b"x"),
        reference(b"o", START, 1),
        whole(b"a", b"a name that is taken"),
    ],
)
def test_ends_before_anything_else(make: Make, place: Path, other: bytes) -> None:
    first = whole(b"a", b"first")
    assert make(first + other + whole(b"z", b"last")) == (1, len(first), 5)
    assert contents(place) == {b"a": b"first"}


@pytest.mark.parametrize(
    ("offset", "size"),
    [(START - 1, 1), (START, 2), (START + 1, 1), (START + 17, 0), (START + 18, 0), (1 << 63, 1)],
)
def test_contents_that_are_not_there(make: Make, place: Path, offset: int, size: int) -> None:
    payload = payload_header(1) + b"x"
    assert make(reference(b"a", START, 1), payload)[0] == 1
    assert make(reference(b"b", offset, size), payload) == (0, 0, 0)
    assert make(reference(b"b", START, 1 << 63), payload_header((1 << 63) - 32)) == (0, 0, 0)
    assert make(whole(b"b", b"inline"), payload) == (0, 0, 0)
    assert contents(place) == {b"a": b"x"}


def test_pieces_that_end_anywhere(make: Make, place: Path) -> None:
    items, payload = reference(b"a", START, 1), payload_header(1) + b"x"
    for length in range(len(items)):
        assert make(items[:length], payload) == (0, 0, 0)
    for length in range(len(payload)):
        assert make(items, payload[:length]) == (0, 0, 0)
    long = whole(b"a", bytes(50))
    for length in range(len(long)):
        assert make(long[:length]) == (0, 0, 0)
    assert contents(place) == {}


def test_nothing_is_left_of_one_that_fails(make: Make, place: Path) -> None:
    """A file size limit stands for a full disk: half is written, then no more."""
    first = whole(b"a", b"x" * 100)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        result = make(first + whole(b"b", b"y" * 1000) + whole(b"c", b"z"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert result == (1, len(first), 100)
    assert contents(place) == {b"a": b"x" * 100}


class TestForeignOwners:
    foreign = stat_item(0o106755, uid=IDS[0] + 1)

    def test_are_for_others_to_warn_of(self, make: Make, place: Path) -> None:
        assert make(whole(b"f", b"x", self.foreign), foreign=ForeignOwners.WARN) == (0, 0, 0)
        assert contents(place) == {}

    def test_left_without_setuid_bits(self, make: Make, place: Path) -> None:
        ours = whole(b"ours", b"x", stat_item(0o106755))
        items = whole(b"f", b"x", self.foreign) + ours
        assert make(items, foreign=ForeignOwners.LEAVE) == (2, len(items), 2)
        info = (place / "f").stat()
        assert (stat.S_IMODE(info.st_mode), info.st_uid) == (0o755, IDS[0])
        assert stat.S_IMODE((place / "ours").stat().st_mode) == 0o6755

    @needs_root
    def test_given_away(self, make: Make, place: Path) -> None:
        assert make(whole(b"f", b"x", self.foreign), foreign=ForeignOwners.GIVE)[0] == 1
        info = (place / "f").stat()
        assert (stat.S_IMODE(info.st_mode), info.st_uid) == (0o6755, IDS[0] + 1)

    @needs_root
    def test_ours_in_a_directory_that_hands_down_its_group(self, make: Make, place: Path) -> None:
        os.chown(place, -1, 4711)
        place.chmod(0o2755)
        assert make(whole(b"f", b"x", stat_item(0o102755)), foreign=ForeignOwners.LEAVE)[0] == 1
        info = (place / "f").stat()
        assert (stat.S_IMODE(info.st_mode), info.st_gid) == (0o2755, IDS[1])


SAMPLE = b"".join(whole(b"file-%d" % number, b"content" * number) for number in range(4))


@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), min_size=1, max_size=4
    ),
    cut=st.integers(0, 40),
)
def test_never_more_than_python_reads(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]], cut: int
) -> None:
    """Whatever bytes it gets, it makes the files the decoder finds, in its order, and no other."""
    items = bytearray(SAMPLE)
    for position, value in edits:
        items[position] = value
    items = items[: len(items) - cut]
    place = tmp_path_factory.mktemp("mutated")
    opened = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        files, length, size = small_files(
            items, None, 0, LIMIT, (opened, *IDS, ForeignOwners.LEAVE)
        )
    finally:
        os.close(opened)
    made = contents(place)
    expected = decoded(bytes(items), files)
    assert made == expected
    assert (len(made), sum(map(len, made.values()))) == (files, size)
    assert length <= len(items)


def decoded(items: bytes, files: int) -> dict[bytes, bytes]:
    """The first `files` files as the decoder reads them."""
    found: dict[bytes, bytes] = {}
    if not files:
        return found
    events = iter(Decoder([archive(items)]))
    next(events)
    last = b""
    try:
        for event in events:
            if isinstance(event, Entry):
                if len(found) == files:
                    break
                assert event.kind is EntryKind.FILE
                last = event.name
                found[last] = b""
            elif isinstance(event, PayloadData):
                found[last] += event.data
            else:
                break
    except FormatError:
        pass  # behind those that were made
    return found
