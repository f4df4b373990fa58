"""MD5 of several buffers at once, against hashlib's."""

import hashlib
import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.format.md5 import MOST, md5_many, one_by_one

AROUND_BLOCKS = [0, 1, 54, 55, 56, 57, 63, 64, 65, 118, 119, 120, 127, 128, 129, 4096]
sizes = st.sampled_from(AROUND_BLOCKS) | st.integers(0, 3000)


def test_the_c_module_is_there() -> None:
    """It may be missing elsewhere; here nothing else would be tested."""
    import store.format._md5  # noqa: F401


@given(st.lists(sizes, max_size=20), st.randoms(use_true_random=False))
def test_the_same_as_hashlib(lengths: list[int], rng: random.Random) -> None:
    buffers = [rng.randbytes(length) for length in lengths]
    assert md5_many(buffers) == one_by_one(buffers)


@pytest.mark.parametrize("size", AROUND_BLOCKS)
def test_any_length(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert md5_many([data, b"", data]) == [
        hashlib.md5(one, usedforsecurity=False).digest() for one in (data, b"", data)
    ]


def test_any_buffer() -> None:
    data = bytearray(b"abc" * 100)
    assert md5_many([data, memoryview(data)[3:], bytes(data)]) == one_by_one([data, data[3:], data])


def test_more_than_fit_into_one_call() -> None:
    native = pytest.importorskip("store.format._md5")
    assert len(native.md5_many([b"x"] * MOST)) == MOST
    with pytest.raises(ValueError, match="too many"):
        native.md5_many([b"x"] * (MOST + 1))


def test_what_is_no_buffer_is_refused_and_nothing_stays_held() -> None:
    native = pytest.importorskip("store.format._md5")
    data = bytearray(10)
    before = sys.getrefcount(data)
    with pytest.raises(TypeError):
        native.md5_many([data, "text"])
    assert sys.getrefcount(data) == before
    data.append(1)  # a buffer that is still exported can't grow
