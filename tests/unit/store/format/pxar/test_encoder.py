import hashlib

import pytest

from store.errors import FormatError, InvalidName
from store.format.pxar.encoder import Encoder
from store.format.pxar.entries import encode_stat, payload_header
from store.format.pxar.items import HEADER_SIZE

MINIMAL = bytes.fromhex(
    "efac88e5746495d53800000000000000ed4100000000000000000000000000"
    "00e8030000e8030000d87f43550000000000000000000000001d73d542a64f"
    "ec2f280000000000000055153e755bed5eef38000000000000002800000000"
    "000000"
)
T = 1430487000
TEXT = b"This is a small text file.\n"


def sample() -> bytes:
    """The specification's own v1 sample: a file, a hard link, a symlink, a device, a fifo."""
    encoder = Encoder(split=False)
    out = [encoder.begin(encode_stat(0o40755, 0, 1000, 1000, T, 0))]
    out += [encoder.file(b"file.txt", encode_stat(0o100644, 0, 1000, 1000, T, 123456789), 27), TEXT]
    target = encoder.last_offset
    out.append(encoder.hardlink(b"hard.txt", target, b"file.txt"))
    out.append(encoder.symlink(b"link", encode_stat(0o120777, 0, 1000, 1000, T, 0), b"file.txt"))
    out.append(encoder.enter_directory(b"sub", encode_stat(0o40700, 0, 0, 0, -1, 500_000_000)))
    out.append(encoder.device(b"null", encode_stat(0o20666, 0, 0, 0, T, 0), 1, 3))
    out.append(encoder.special(b"pipe", encode_stat(0o10600, 0, 0, 0, T, 0)))
    return b"".join([*out, encoder.leave_directory(), encoder.finish()])


def upstream_fixture(*, reused: bool) -> bytes:
    """pbs4 tests/pxar/backup-client-pxar-{data,expected}.mpxar: 10 folders of 10 files of 1 MiB."""
    encoder = Encoder(split=True, prelude=b"" if reused else None)
    directory = encode_stat(0o40777, 0, 1000, 1000, 0, 0)
    file = encode_stat(0o100777, 0, 1000, 1000, 0, 0)
    position, out = 32 if reused else 16, [encoder.begin(directory)]
    for folder in range(10):
        out.append(encoder.enter_directory(b"folder_%d" % folder, directory))
        for number in range(10):
            name = b"file_%d" % number
            out.append(encoder.file_ref(name, file, position, 1 << 20, reused=reused))
            position += HEADER_SIZE + (1 << 20)
        out.append(encoder.leave_directory())
    return b"".join([*out, encoder.finish()])


def begun(*, split: bool = False) -> Encoder:
    encoder = Encoder(split=split)
    encoder.begin(encode_stat(0o40755, 0, 0, 0, 0, 0))
    return encoder


FILE = encode_stat(0o100644, 0, 0, 0, 0, 0)
DIRECTORY = encode_stat(0o40755, 0, 0, 0, 0, 0)


def test_the_minimal_archive() -> None:
    encoder = Encoder(split=False)
    start = encoder.begin(encode_stat(0o40755, 0, 1000, 1000, T, 0))
    assert start + encoder.finish() == MINIMAL
    assert encoder.position == len(MINIMAL) == 96


def test_the_sample_archive() -> None:
    archive = sample()
    assert len(archive) == 826
    digest = "250b75033cab6fb03f8553c475fc2598066764f72a83b3f12365331c16091833"
    assert hashlib.sha256(archive).hexdigest() == digest


@pytest.mark.parametrize(("reused", "size"), [(False, 15070), (True, 15086)])
def test_upstream_fixture_sizes(reused: bool, size: int) -> None:
    assert len(upstream_fixture(reused=reused)) == size


def test_position_counts_content_that_the_caller_appends() -> None:
    encoder = begun()
    before = encoder.position
    item = encoder.file(b"a", FILE, 1000)
    assert item.endswith(payload_header(1000))
    assert encoder.position == before + len(item) + 1000
    assert encoder.last_offset == before


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"a\0", b"x" * 4097])
def test_refuses_names_that_no_reader_takes(name: bytes) -> None:
    for call in (begun().special, begun().enter_directory):
        with pytest.raises(InvalidName):
            call(name, DIRECTORY)


def test_names_ascend() -> None:
    encoder = begun()
    encoder.special(b"b", FILE)
    for name in (b"a", b"b"):
        with pytest.raises(InvalidName, match="cannot follow"):
            encoder.special(name, FILE)
    encoder.enter_directory(b"c", DIRECTORY)
    encoder.special(b"a", FILE)
    encoder.leave_directory()
    with pytest.raises(InvalidName):
        encoder.special(b"c", FILE)
    encoder.special(b"c\xff", FILE)


def test_the_command_lines_patterns_come_last_in_the_root() -> None:
    encoder = begun()
    encoder.special(b"b", FILE)
    encoder.enter_directory(b"d", DIRECTORY)
    encoder.special(b"a", FILE)
    with pytest.raises(InvalidName):
        encoder.file(b".pxarexclude-cli", FILE, 0)
    encoder.leave_directory()
    encoder.file(b".pxarexclude-cli", FILE, 0)
    for name in (b"e", b".pxarexclude-cli"):
        with pytest.raises(InvalidName):
            encoder.file(name, FILE, 0)
    encoder.finish()


def test_the_command_lines_patterns_come_once() -> None:
    encoder = begun()
    encoder.file(b".pxarexclude-cli", FILE, 0)
    encoder.file(b"a", FILE, 0)
    with pytest.raises(InvalidName):
        encoder.file(b".pxarexclude-cli", FILE, 0)


def test_split_archives_have_no_exception_to_the_order() -> None:
    encoder = begun(split=True)
    encoder.special(b"b", FILE)
    with pytest.raises(InvalidName):
        encoder.file_ref(b".pxarexclude-cli", FILE, 16, 0)


def test_payload_references_ascend() -> None:
    encoder = begun(split=True)
    with pytest.raises(FormatError, match="16 or more"):
        encoder.file_ref(b"a", FILE, 15, 10)
    encoder.file_ref(b"a", FILE, 16, 10)
    with pytest.raises(FormatError, match="42 or more"):
        encoder.file_ref(b"b", FILE, 41, 10)
    encoder.file_ref(b"b", FILE, 42, 0)
    encoder.file_ref(b"c", FILE, 100, 0)


def test_calls_in_an_impossible_order() -> None:
    with pytest.raises(FormatError, match="not begun"):
        Encoder(split=False).special(b"a", FILE)
    encoder = begun()
    for call in (encoder.leave_directory, lambda: encoder.begin(DIRECTORY)):
        with pytest.raises(FormatError):
            call()
    encoder.enter_directory(b"a", DIRECTORY)
    with pytest.raises(FormatError, match="2 open directories"):
        encoder.finish()
    encoder.leave_directory()
    encoder.finish()
    with pytest.raises(FormatError):
        encoder.special(b"b", FILE)


def test_what_a_version_cannot_hold() -> None:
    with pytest.raises(FormatError, match="prelude"):
        Encoder(split=False, prelude=b"")
    with pytest.raises(FormatError, match="content"):
        begun(split=True).file(b"a", FILE, 0)
    with pytest.raises(FormatError, match="payload reference"):
        begun().file_ref(b"a", FILE, 16, 0)


def test_hard_links_point_back() -> None:
    encoder = begun()
    encoder.file(b"a", FILE, 0)
    with pytest.raises(FormatError, match="hard link"):
        encoder.hardlink(b"b", encoder.position, b"a")
    with pytest.raises(InvalidName):
        encoder.hardlink(b"b", encoder.last_offset, b"a\0")
    encoder.hardlink(b"b", encoder.last_offset, b"a")


def test_a_failed_call_may_be_left_out() -> None:
    encoder = begun()
    encoder.special(b"b", FILE)
    with pytest.raises(InvalidName):
        encoder.special(b"a", FILE)
    with pytest.raises(InvalidName):
        encoder.symlink(b"c", FILE, b"\0")
    other = begun()
    other.special(b"b", FILE)
    assert encoder.finish() == other.finish()
