import hashlib
import struct
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.errors import InvalidName
from store.format import chunker, chunker_numpy
from store.format.chunker import (
    READ_SIZE,
    Chunker,
    ChunkStream,
    Cutter,
    FindCut,
    KnownChunks,
    PayloadStream,
)
from store.format.chunker_table import TABLE
from store.format.pxar.items import PXAR_PAYLOAD
from store.names import Digest
from tests.unit.store.format.stored_snapshot import StoredSnapshot

MiB = 1 << 20
G1_64K = [143377, 262144, 262144, 262144, 118767]  # G1, 1 MiB, average 64 KiB


def counter(size: int) -> bytes:
    """G1: 0, 1, 2, … as u32."""
    return np.arange(size // 4, dtype="<u4").tobytes()


def xorshift(size: int) -> bytes:
    """G2."""
    x, mask, out = 0x123456789ABCDEF0, (1 << 64) - 1, []
    for _ in range(size // 8):
        x ^= x << 13 & mask
        x ^= x >> 7
        x ^= x << 17 & mask
        out.append(x)
    return struct.pack(f"<{len(out)}Q", *out)


def noise(size: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@pytest.fixture(scope="module")
def g2() -> bytes:
    return xorshift(8 * MiB)


@pytest.fixture(params=["extension", "numpy"])
def search(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FindCut:
    """Both implementations of the search, each in the chunker's place."""
    if request.param == "extension":
        pytest.importorskip("store.format._chunker")
        return chunker.find_cut
    monkeypatch.setattr(chunker, "find_cut", chunker_numpy.find_cut)
    return chunker_numpy.find_cut


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def stream_sizes(parts: Iterator[bytes], average: int) -> list[int]:
    out: list[int] = []
    stream = ChunkStream(lambda chunk: out.append(len(chunk)), average)
    for part in parts:
        stream.write(part)
    stream.finish()
    assert stream.position == sum(out)
    return out


def chunker_sizes(parts: Iterator[bytes], average: int) -> list[int]:
    cutter, out, size = Chunker(average), [], 0
    for part in parts:
        while part:
            cut = cutter.scan(part)
            size += cut or len(part)
            if cut:
                out.append(size)
                size = 0
            part = part[cut or len(part) :]
    return [*out, size] if size else out


def plain_hash(window: bytes) -> int:
    """The definition, for the searches to be compared with."""
    value = 0
    for byte in window:
        value = (value << 1 | value >> 31) & 0xFFFFFFFF ^ TABLE[byte]
    return value


class TestTable:
    def test_is_the_one_of_pbs(self) -> None:
        packed = struct.pack("<256I", *TABLE)
        expected = "5b52080d38287da9d2e278466e3e0db7ec98e5e8b226f50612a56fa012b1f660"
        assert hashlib.sha256(packed).hexdigest() == expected
        assert np.bitwise_xor.reduce(np.array(TABLE, np.uint32)) == 0


class TestSearch:
    @pytest.mark.parametrize("size", [0, 63, 64, 65, 200, 2111, 2112, 5000, 140_000])
    @pytest.mark.parametrize("mask", [0x7F, 0x1FFF, 0x1FFFF])
    def test_finds_the_first_cut(self, search: FindCut, size: int, mask: int) -> None:
        data = noise(size)
        hits = [
            e
            for e in range(64, min(size, 5000) + 1)
            if plain_hash(data[e - 64 : e]) & mask >= mask - 2
        ]
        found = search(data, 0, len(data), mask, mask - 2)
        assert found == hits[0] if hits else not 0 < found <= 5000

    def test_every_lane_reports_its_first_cut(self) -> None:
        fast = pytest.importorskip("store.format._chunker")
        table, data = struct.pack("=256I", *TABLE), noise(3 * 131072 + 12345)
        for mask in (0x3FFFF, 0xFFFF):
            start = 0
            while start + 64 <= len(data):
                found = fast.find_cut(table, data, start, len(data), mask, mask - 2)
                assert found == chunker_numpy.find_cut(data, start, len(data), mask, mask - 2)
                if not found:
                    break
                start = found - 63

    def test_both_agree_on_ranges(self) -> None:
        pytest.importorskip("store.format._chunker")
        data, rng = noise(300_000), np.random.default_rng(2)
        for _ in range(100):
            start, end = sorted(int(x) for x in rng.integers(0, len(data), 2))
            mask = (1 << int(rng.integers(8, 20))) - 1
            assert chunker.find_cut(data, start, end, mask, mask - 2) == chunker_numpy.find_cut(
                data, start, end, mask, mask - 2
            )

    def test_refuses_a_range_outside(self) -> None:
        fast = pytest.importorskip("store.format._chunker")
        table = struct.pack("=256I", *TABLE)
        for arguments in (
            (table, b"x" * 100, 0, 101),
            (table, b"x" * 100, -1, 100),
            (table, b"x", 1, 0),
            (b"", b"x", 0, 1),
        ):
            with pytest.raises(ValueError):
                fast.find_cut(*arguments, 127, 125)

    def test_threads_at_once(self) -> None:
        data, found = noise(4 * MiB), []
        expected = chunker.find_cut(data, 0, len(data), 0x3FFFFF, 0x3FFFFD)
        threads = [
            threading.Thread(
                target=lambda: found.append(
                    chunker.find_cut(data, 0, len(data), 0x3FFFFF, 0x3FFFFD)
                )
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [expected] * 4


class TestChunker:
    @pytest.mark.usefixtures("search")
    @pytest.mark.parametrize("sizes", [stream_sizes, chunker_sizes])
    @pytest.mark.parametrize("piece", [1000, 65536, MiB])
    def test_vector_5(self, sizes: Callable[[Iterator[bytes], int], list[int]], piece: int) -> None:
        assert sizes(pieces(counter(MiB), piece), 65536) == G1_64K

    @pytest.mark.usefixtures("search")
    def test_vector_6(self, g2: bytes) -> None:
        assert stream_sizes(pieces(g2, 100_000), 512 << 10) == [
            406580, 669571, 840615, 764305, 439042, 231018, 633314, 425973, 881671,
            502326, 232503, 282691, 134468, 247638, 298818, 885283, 369657, 143135,
        ]  # fmt: skip

    def test_vector_1_begins(self, g2: bytes) -> None:
        out: list[bytes] = []
        stream = ChunkStream(out.append)
        stream.write(g2)
        stream.finish()
        assert [len(chunk) for chunk in out][:3] == [3351131, 1059287, 1616500]
        assert (
            hashlib.sha256(out[0])
            .hexdigest()
            .startswith("71c0a18cf33fff9d31ea634ad816d0ea32dd83b1b51eaca7")
        )

    def test_constant_data_is_cut_at_the_maximum(self) -> None:
        assert stream_sizes(pieces(bytes(40 * MiB), 16 * MiB), 4 * MiB) == [
            16 * MiB,
            16 * MiB,
            8 * MiB,
        ]

    @given(st.data())
    def test_any_split_gives_the_same_cuts(self, data: st.DataObject) -> None:
        average = data.draw(st.sampled_from([256, 1024, 4096]))
        text = noise(data.draw(st.integers(0, 40_000)), data.draw(st.integers(0, 1000)))
        borders = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=30)))
        parts = [text[a:b] for a, b in zip([0, *borders], [*borders, len(text)], strict=True)]
        whole = chunker_sizes(iter([text]), average)
        assert chunker_sizes(iter(parts), average) == whole
        assert stream_sizes(iter(parts), average) == whole
        assert sum(whole) == len(text)
        assert all(average // 4 <= size <= average * 4 for size in whole[:-1])

    def test_reset_begins_a_chunk(self) -> None:
        data, cutter = counter(MiB), Chunker(65536)
        assert cutter.scan(data[:100_000]) == 0
        cutter.reset()
        assert cutter.scan(data) == G1_64K[0]

    @pytest.mark.parametrize("average", [0, 100, 128, 3 << 16, 8 << 20])
    def test_refuses_other_sizes(self, average: int) -> None:
        with pytest.raises(InvalidName):
            Cutter(average)


class TestChunkStream:
    def test_reads_straight_into_its_buffer(self) -> None:
        out: list[bytes] = []
        stream, data = ChunkStream(out.append, 65536), noise(3 * MiB)
        for piece in pieces(data, 300_000):
            room = stream.reserve(400_000)
            room[: len(piece)] = piece
            stream.commit(len(piece))
        stream.finish()
        assert b"".join(out) == data
        assert [len(chunk) for chunk in out] == stream_sizes(iter([data]), 65536)

    def test_an_empty_stream_has_no_chunk(self) -> None:
        assert stream_sizes(iter([b""]), 65536) == []

    def test_memory_is_bounded(self) -> None:
        with pytest.raises(ValueError, match="at most"):
            ChunkStream(print).reserve(READ_SIZE + 1)


class Payload:
    """A payload stream that writes down what it emits: sizes, (digest, size) of known chunks."""

    def __init__(self, average: int = 65536) -> None:
        self.out: list[int | tuple[Digest, int]] = []
        self.data: list[bytes] = []
        self.stream = PayloadStream(self._emit, self.out.extend, average)

    def _emit(self, chunk: bytes) -> None:
        self.out.append(len(chunk))
        self.data.append(chunk)

    def file(self, content: bytes, reads: int = READ_SIZE) -> None:
        self.stream.suggest()
        self.stream.write(bytes(16))
        for piece in pieces(content, reads):
            self.stream.write(piece)

    def finish(self) -> list[int | tuple[Digest, int]]:
        self.stream.finish()
        return self.out


def known(size: int, count: int = 1) -> KnownChunks:
    return [(Digest(bytes([number] * 32)), size) for number in range(count)]


class TestPayloadStream:
    @pytest.mark.usefixtures("search")
    @pytest.mark.parametrize(
        ("suggestions", "unit", "sizes"),
        [
            ([32768, 32768, 0, 405521], MiB, [32768, 110609, 262144, 262144, 262144, 118767]),
            ([200000], MiB, [200000, 205521, 262144, 262144, 118767]),
            (
                [100000, 150000, 160000, 700000],
                MiB,
                [100000, 50000, 255521, 262144, 32335, 229809, 118767],
            ),
        ],
    )
    def test_demonstration_of_the_specification(
        self, suggestions: list[int], unit: int, sizes: list[int]
    ) -> None:
        payload = Payload()
        payload.stream._suggestions.extend(suggestions)
        for piece in pieces(counter(MiB), unit):
            payload.stream.write(piece)
        assert payload.finish() == sizes

    @pytest.mark.parametrize(
        ("suggestions", "unit", "sizes"),
        [
            ([200000], 65536, [143377, 56623, 205521, 262144, 262144, 118767]),
            ([200000], 4096, [143377, 56623, 205521, 262144, 262144, 118767]),
            (
                [100000, 150000, 160000, 700000],
                65536,
                [100000, 50000, 255521, 262144, 32335, 229809, 118767],
            ),
            (
                [100000, 150000, 160000, 700000],
                4096,
                [100000, 43377, 16623, 245521, 262144, 32335, 229809, 118767],
            ),
        ],
    )
    def test_demonstration_with_small_units(
        self, suggestions: list[int], unit: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(chunker, "WRITE_BUFFER", 1)  # every write is a unit of its own
        payload = Payload()
        payload.stream._suggestions.extend(suggestions)
        for piece in pieces(counter(MiB), unit):
            payload.stream.write(piece)
        assert payload.finish() == sizes

    def test_without_suggestions_it_is_the_plain_chunker(self) -> None:
        payload, data = Payload(), noise(2 * MiB)
        for piece in pieces(data, 77_777):
            payload.stream.write(piece)
        assert payload.finish() == stream_sizes(iter([data]), 65536)
        assert b"".join(payload.data) == data

    def test_a_files_end_wins_over_a_cut_in_its_last_read(self) -> None:
        payload = Payload(MiB)
        content = noise(3 * MiB + 5)
        assert len(stream_sizes(iter([content]), MiB)) > 2
        payload.stream.write(bytes(16))
        payload.file(content)
        payload.file(b"next")
        assert payload.finish() == [16 + 16 + len(content), 16 + 4]

    def test_a_suggestion_comes_in_time_after_an_empty_last_read(self) -> None:
        payload = Payload(MiB)
        content = noise(3 * MiB + 5)
        payload.file(content)
        payload.stream.reserve(READ_SIZE)
        payload.stream.commit(0)
        payload.file(b"next")
        assert payload.finish()[0] == 16 + len(content)

    def test_the_last_file_has_no_boundary(self) -> None:
        payload = Payload(MiB)
        content = noise(3 * MiB + 5)
        payload.file(content)
        payload.stream.write(bytes(16))
        assert payload.finish() == stream_sizes(iter([bytes(16) + content + bytes(16)]), MiB)

    def test_small_files_share_a_chunk(self) -> None:
        payload = Payload()
        for number in range(100):
            payload.file(bytes([number]) * 100)
        assert payload.finish() == [11_600]

    def test_injection_forces_a_boundary(self) -> None:
        payload = Payload()
        payload.stream.write(bytes(16))
        payload.stream.inject(known(5_000_000, 2))
        assert payload.stream.position == 10_000_016
        payload.file(b"abc")
        assert payload.stream.position == 10_000_035
        assert payload.finish() == [16, *known(5_000_000, 2), 19]

    def test_injections_in_a_row_emit_nothing_between(self) -> None:
        payload = Payload()
        payload.stream.inject(known(10))
        payload.stream.inject(known(20))
        payload.stream.write(b"x")
        payload.stream.inject(known(30))
        assert payload.finish() == [*known(10), *known(20), 1, *known(30)]

    def test_a_cut_before_the_injection_comes_first(self) -> None:
        payload = Payload()
        payload.stream.write(counter(MiB)[:300_000])
        payload.stream.inject(known(7))
        payload.stream.write(counter(MiB)[300_000:])
        out = payload.finish()
        assert out[:3] == [143377, 300_000 - 143377, *known(7)]
        assert b"".join(payload.data) == counter(MiB)
        assert out[3:] == stream_sizes(iter([counter(MiB)[300_000:]]), 65536)

    def test_suggestions_count_injected_bytes(self) -> None:
        payload = Payload()
        payload.stream.inject(known(123_456))
        payload.file(noise(30_000))
        payload.file(noise(300))
        assert payload.finish() == [*known(123_456), 30_016, 316]

    @given(st.lists(st.tuples(st.sampled_from("wsi"), st.integers(0, 3000)), max_size=40))
    def test_nothing_is_lost_and_sizes_are_bounded(self, steps: list[tuple[str, int]]) -> None:
        payload, written, injected = Payload(1024), b"", 0
        for number, (step, size) in enumerate(steps):
            if step == "w":
                data = noise(size, number)
                payload.stream.write(data)
                written += data
            elif step == "s":
                payload.stream.suggest()
            else:
                payload.stream.inject(known(size + 1))
                injected += size + 1
        out = payload.finish()
        assert b"".join(payload.data) == written
        assert payload.stream.position == len(written) + injected
        assert all(isinstance(entry, tuple) or 0 < entry <= 4096 for entry in out)


class TestGolden:
    """Streams that PBS's client cut, cut again."""

    def test_archives_of_one_stream(self, golden_snapshots: tuple[StoredSnapshot, ...]) -> None:
        for snapshot in golden_snapshots:
            if snapshot.path.parent.name != "v1":
                continue
            sizes = stream_sizes(snapshot.stream("root.pxar.didx"), 4 * MiB)
            assert sizes == index_sizes(snapshot, "root.pxar.didx")

    def test_payload_streams(self, golden_snapshots: tuple[StoredSnapshot, ...]) -> None:
        """Those of data mode, in the client's units: headers alone, contents in reads of 4 MiB."""
        seen = 0
        for snapshot in golden_snapshots:
            group, time = snapshot.path.parent.name, snapshot.path.name
            if group not in ("split", "encrypted", "deep") or not time.startswith("2025-01-01"):
                continue
            if "root.ppxar.didx" not in [info.filename for info in snapshot.manifest.files]:
                continue
            payload = Payload(4 * MiB)
            for is_file, unit in payload_units(b"".join(snapshot.stream("root.ppxar.didx"))):
                if is_file:
                    payload.stream.suggest()
                payload.stream.write(unit)
            assert payload.finish() == index_sizes(snapshot, "root.ppxar.didx")
            seen += 1
        assert seen >= 3


def index_sizes(snapshot: StoredSnapshot, filename: str) -> list[int]:
    index = snapshot.index(filename)
    ranges = (index.range(position) for position in range(len(index)))
    return [end - start for start, end in ranges]


def payload_units(stream: bytes) -> Iterator[tuple[bool, bytes]]:
    """What the client wrote, and whether a file begins with it."""
    position = 0
    while position < len(stream):
        htype, size = struct.unpack_from("<QQ", stream, position)
        yield htype == PXAR_PAYLOAD, stream[position : position + 16]
        for unit in pieces(stream[position + 16 : position + size], READ_SIZE):
            yield False, unit
        position += size
