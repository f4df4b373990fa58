import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.disks.base import Segment, SegmentStream, State
from store.disks.layout import described, links_of, part_of
from store.errors import FormatError, IntegrityError
from store.format.buffer import BytesReadAt

SIZE = 1000


def one(**changes: Any) -> dict[str, Any]:
    whole = {
        "number": 1, "segments": [[0, 100]], "kind": "ext4", "label": "", "volume": "",
        "unclean": "", "problem": "",
    }  # fmt: skip
    return whole | changes


def parts(*told: dict[str, Any]) -> bytes:
    return json.dumps(told).encode()


def test_states() -> None:
    told = [
        one(),
        one(number=2, unclean="the journal holds writes"),
        one(number=3, kind="swap"),
        one(number=4, kind=None),
        one(number=5, segments=[], problem="LVM volume with a gap"),
    ]
    states = [part_of(part).state for part in described(parts(*told), SIZE)]
    unreadable = [State.UNREADABLE] * 3
    assert states == [State.CLEAN, State.UNCLEAN, *unreadable]


@pytest.mark.parametrize(
    "changes",
    [
        {"number": 0}, {"number": "1"}, {"number": True}, {"kind": "../etc"}, {"kind": 5},
        {"label": None}, {"segments": [[0, 1001]]}, {"segments": [[-1, 5]]}, {"segments": [[5, 0]]},
        {"segments": [[0, 1, 2]]}, {"segments": [["0", 1]]}, {"segments": 7},
    ],
)  # fmt: skip
def test_what_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError):
        described(parts(one(**changes)), SIZE)


@pytest.mark.parametrize(
    "answer",
    [b"", b"{}", b"[1]", b"[" * 100_000, b"[{}]", parts(one(), one()), parts(*[{}] * 2000)],
)
def test_noise(answer: bytes) -> None:
    with pytest.raises(IntegrityError):
        described(answer, SIZE)


@given(st.binary(max_size=100) | st.text(alphabet='[]{}":,0123number', max_size=60).map(str.encode))
def test_any_answer_is_parts_or_an_error(answer: bytes) -> None:
    with contextlib.suppress(IntegrityError):
        described(answer, SIZE)


def test_links_are_safe_and_of_one_part() -> None:
    told = [
        one(label="root"), one(number=2, label="both"), one(number=3, label="both"),
        one(number=4, label="../etc/passwd"), one(number=5, label=".."),
        one(number=6, label="part1"),
        one(number=7, label="part9.raw"), one(number=8, label="a\nb\0c", volume="vg-lv"),
        one(number=9, label="  "), one(number=10, volume="same", label="same"),
    ]  # fmt: skip
    links = links_of(described(parts(*told), SIZE))
    assert links == {
        1: ("root",), 4: (".._etc_passwd",), 8: ("vg-lv", "a_b_c"), 10: ("same",),
    }  # fmt: skip


@given(
    st.lists(st.tuples(st.integers(0, 900), st.integers(1, 100)), min_size=1, max_size=5),
    st.integers(0, 600),
    st.integers(0, 600),
)
def test_segments_are_one_stream(segments: list[tuple[int, int]], offset: int, size: int) -> None:
    data = bytes(number % 251 for number in range(SIZE))
    whole = b"".join(data[start : start + length] for start, length in segments)
    stream = SegmentStream(BytesReadAt(data), tuple(Segment(*each) for each in segments))
    if offset + size > len(whole):
        with pytest.raises(FormatError, match="past the end"):
            stream.read(offset, size)
    else:
        assert stream.read(offset, size) == whole[offset : offset + size]
