"""Whatever is in the bytes, both readers raise FormatError and nothing else, and come to an end."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.errors import FormatError
from store.format.pxar.decoder import decode
from store.format.pxar.encoder import Encoder
from store.format.pxar.entries import Entry, EntryKind, Metadata, encode_metadata
from store.format.pxar.items import PAYLOAD_START, payload_header
from tests.unit.store.format.pxar.archives import ROOTS, Node, encode_tree, open_archive, split_at
from tests.unit.store.format.pxar.test_encoder import sample
from tests.unit.store.format.pxar.test_metadata import ALL


def split_sample() -> bytes:
    encoder = Encoder(split=True, prelude=b"{}")
    directory = encode_metadata(Metadata(0o40755, xattrs=((b"user.a", b"b"),)))
    out = [encoder.begin(directory), encoder.enter_directory(b"d", directory)]
    out += [encoder.file_ref(b"a", encode_metadata(ALL), 16, 5)]
    out += [encoder.hardlink(b"b", encoder.last_offset, b"d/a"), encoder.leave_directory()]
    return b"".join([*out, encoder.finish()])


PAYLOAD = PAYLOAD_START + payload_header(5) + b"hello"


def decode_all(archive: bytes, _payload: bytes | None) -> None:
    for event in decode([archive]):
        if isinstance(event, Entry) and event.kind is not EntryKind.HARDLINK:
            assert event.metadata.mtime_ns < 1_000_000_000


def access_all(archive: bytes, payload: bytes | None) -> None:
    accessor = open_archive(archive, payload)
    todo = [accessor.root()]
    while todo:
        entry = todo.pop()
        if entry.kind is EntryKind.DIRECTORY:
            for child in accessor.list(entry):
                accessor.lookup(entry, child.name)
                todo.append(child)
        file = accessor.follow(entry) if entry.kind is EntryKind.HARDLINK else entry
        assert file.metadata.mtime_ns < 1_000_000_000
        if file.kind is EntryKind.FILE:
            accessor.read(file, 0, 100)


def only_format_errors(archive: bytes, payload: bytes | None) -> int:
    """Read in both ways; the number of errors. Anything but a FormatError of one line escapes."""
    messages = []
    for read in (decode_all, access_all):
        try:
            read(archive, payload)
        except FormatError as error:
            messages.append(str(error))
    assert not any(len(message) > 600 or "\n" in message for message in messages)
    return len(messages)


@pytest.mark.parametrize("make", [sample, split_sample])
def test_every_byte_damaged(make: Callable[[], bytes]) -> None:
    archive, payload = make(), None if make is sample else PAYLOAD
    assert only_format_errors(archive, payload) == 0
    errors = 0
    for position in range(len(archive)):
        for flip in (1, 0x80, 0xFF):
            damaged = bytearray(archive)
            damaged[position] ^= flip
            errors += only_format_errors(bytes(damaged), payload)
    assert errors > len(archive)


@given(ROOTS, st.booleans(), st.data())
@settings(max_examples=100)
def test_damaged_trees(root: Node, split: bool, data: st.DataObject) -> None:
    archive, payload = encode_tree(root, split=split)
    damaged = bytearray(archive)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(damaged) - 1))
        new = data.draw(st.binary(max_size=9))
        damaged[position : position + data.draw(st.integers(0, 9))] = new
    only_format_errors(bytes(damaged), payload)


@given(ROOTS, st.booleans(), st.lists(st.integers(0, 2**16), min_size=2, max_size=6), st.randoms())
def test_shuffled_pieces(root: Node, split: bool, cuts: list[int], random: object) -> None:
    archive, payload = encode_tree(root, split=split)
    pieces = split_at(archive, cuts)
    random.shuffle(pieces)  # type: ignore[attr-defined]
    only_format_errors(b"".join(pieces), payload)


@given(st.binary(max_size=300))
def test_noise(noise: bytes) -> None:
    assert only_format_errors(noise, None) == 2
    assert only_format_errors(sample()[:56] + noise, None) >= 1
