"""PayloadReuse: which old chunks a new payload stream names, and where their files then are."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.format.chunker import PayloadStream
from store.format.dynamic_index import DynamicIndex, DynamicIndexBuilder
from store.format.pxar.items import HEADER, HEADER_SIZE, PAYLOAD_START, PAYLOAD_TAIL, PXAR_PAYLOAD
from store.names import Digest
from store.operations.backup.reuse import PayloadReuse

AVERAGE = 64 << 10


@dataclass
class Store:
    """Chunks by digest, and which of them a writer has lost."""

    chunks: dict[Digest, bytes] = field(default_factory=dict)
    lost: set[Digest] = field(default_factory=set)

    def touch(self, digest: Digest) -> bool:
        return digest in self.chunks and digest not in self.lost


@dataclass
class Sink:
    """A payload stream's chunks in order, and its index."""

    store: Store
    digests: list[tuple[int, Digest]] = field(default_factory=list)
    end: int = 0

    def emit(self, plain: bytes) -> None:
        digest = Digest((len(self.store.chunks)).to_bytes(32, "big"))
        self.store.chunks[digest] = plain
        self.emit_known([(digest, len(plain))])

    def emit_known(self, chunks: list[tuple[Digest, int]]) -> None:
        for digest, size in chunks:
            self.end += size
            self.digests.append((self.end, digest))

    def index(self) -> DynamicIndex:
        builder = DynamicIndexBuilder()
        body = b"".join(builder.add(end, digest) for end, digest in self.digests)
        return DynamicIndex(builder.header(bytes(16), 0) + body)

    def content(self) -> bytes:
        return b"".join(self.store.chunks[digest] for _, digest in self.digests)


def item(number: int, size: int) -> bytes:
    return HEADER.pack(PXAR_PAYLOAD, HEADER_SIZE + size) + number.to_bytes(4, "little") * (
        size // 4
    )


def first_stream(store: Store, items: list[bytes]) -> tuple[Sink, list[int]]:
    sink = Sink(store)
    stream = PayloadStream(sink.emit, sink.emit_known, AVERAGE)
    stream.write(PAYLOAD_START)
    offsets = []
    for data in items:
        stream.suggest()
        offsets.append(stream.position)
        stream.write(data)
    stream.write(PAYLOAD_TAIL)
    stream.finish()
    return sink, offsets


def next_stream(
    old: Sink, files: list[tuple[int | None, bytes]], growth: float = 4.0
) -> tuple[Sink, list[tuple[int, bytes]], int]:
    """Write `files`: (old offset or None when changed, item).

    Returns the sink, (offset, item) of each, and how many were placed.
    """
    sink = Sink(old.store)
    stream = PayloadStream(sink.emit, sink.emit_known, AVERAGE)
    reuse = PayloadReuse(old.index(), stream, old.store, growth)  # type: ignore[arg-type]
    written, placed = [], 0
    for offset, data in files:
        position = None if offset is None else reuse.place(offset, len(data))
        if position is None:
            if stream.position == 0:
                stream.write(PAYLOAD_START)
            reuse.count(len(data))
            stream.suggest()
            position = stream.position
            stream.write(data)
        else:
            placed += 1
        written.append((position, data))
    if stream.position == 0:
        stream.write(PAYLOAD_START)
    if not reuse.ends_with_marker():
        stream.write(PAYLOAD_TAIL)
    stream.finish()
    return sink, written, placed


def check(sink: Sink, written: list[tuple[int, bytes]]) -> None:
    content, end = sink.content(), 16
    assert content.startswith(PAYLOAD_START)
    assert content.endswith(PAYLOAD_TAIL)
    for offset, data in written:
        assert offset >= end
        assert content[offset : offset + len(data)] == data
        end = offset + len(data)
    assert end <= len(content) - 16


def test_nothing_changed_gives_the_same_index() -> None:
    old, offsets = first_stream(Store(), items := [item(i, 4000) for i in range(300)])
    sink, written, placed = next_stream(old, list(zip(offsets, items, strict=True)))
    assert placed == 300
    assert sink.digests == old.digests
    check(sink, written)


def test_one_changed_file_stores_only_itself() -> None:
    old, offsets = first_stream(Store(), items := [item(i, 4000) for i in range(300)])
    files: list[tuple[int | None, bytes]] = list(zip(offsets, items, strict=True))
    files[150] = (None, item(9999, 4000))
    before = len(old.store.chunks)
    sink, written, placed = next_stream(old, files)
    check(sink, written)
    assert placed == 299
    assert [len(chunk) for chunk in list(old.store.chunks.values())[before:]] == [4016]


def test_a_lost_chunk_is_read_again() -> None:
    old, offsets = first_stream(Store(), items := [item(i, 4000) for i in range(300)])
    old.store.lost.add(old.digests[3][1])
    sink, written, placed = next_stream(old, list(zip(offsets, items, strict=True)))
    check(sink, written)
    assert 200 < placed < 300
    assert old.digests[3][1] not in [digest for _, digest in sink.digests]


def test_growth_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.operations.backup.reuse.SLACK", 0)
    old, offsets = first_stream(Store(), items := [item(i, 4000) for i in range(2000)])
    kept = [(offset, data) for offset, data in zip(offsets, items, strict=True) if offset % 37 == 0]
    sink, written, _ = next_stream(old, list(kept), growth=2.0)
    check(sink, written)
    assert sink.end <= 2 * sum(len(data) for _, data in kept) + 4 * AVERAGE


@given(
    st.lists(
        st.tuples(st.integers(0, 20000), st.sampled_from("ssssssscdn")), min_size=1, max_size=80
    ),
    st.integers(1, 3),
)
def test_any_change_reads_back(plan: list[tuple[int, str]], generations: int) -> None:
    """s: same, c: changed, d: deleted, n: a new file before it. Each builds on the last."""
    items = [item(number, size) for number, (size, _) in enumerate(plan)]
    current, offsets = first_stream(Store(), items)
    files = list(zip(offsets, items, strict=True))
    for generation in range(1, generations + 1):
        wanted: list[tuple[int | None, bytes]] = []
        for number, (offset, data) in enumerate(files):
            action = plan[(number + generation) % len(plan)][1]
            fresh = item(1000 * generation + number, len(data))
            wanted += {
                "s": [(offset, data)],
                "c": [(None, fresh)],
                "d": [],
                "n": [(None, fresh), (offset, data)],
            }[action]
        current, files, _ = next_stream(current, wanted)
        check(current, files)


@given(st.lists(st.tuples(st.integers(0, 2**63), st.integers(0, 2**63)), max_size=30))
def test_references_that_lie(references: list[tuple[int, int]]) -> None:
    """Whatever an old archive says, what is placed lies inside, apart, and in ascending order."""
    old, offsets = first_stream(Store(), items := [item(i, 9000) for i in range(40)])
    sink = Sink(old.store)
    stream = PayloadStream(sink.emit, sink.emit_known, AVERAGE)
    reuse = PayloadReuse(old.index(), stream, old.store, 4.0)  # type: ignore[arg-type]
    hostile = [(start % (old.end + 100), size % 30_000) for start, size in references[::2]]
    true = [(offset, len(data)) for offset, data in zip(offsets, items, strict=True)]
    placed = []
    for start, size in sorted(hostile + true[::3]) + references[1::2]:
        position = reuse.place(start, HEADER_SIZE + size)
        if position is not None:
            placed.append((position, start, HEADER_SIZE + size))
    stream.finish()
    content, end = sink.content(), HEADER_SIZE
    for position, start, size in placed:
        assert position >= end
        end = position + size
        assert content[position:end] == old.content()[start : start + size]
    assert end <= max(len(content), HEADER_SIZE)
