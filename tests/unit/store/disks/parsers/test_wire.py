import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.disks.parsers import wire
from store.disks.parsers.files import HOLE, BadFile, Inode, Run, joined

names = st.binary(min_size=1, max_size=40).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
inodes = st.builds(
    Inode,
    number=st.integers(1, wire.MAX_NUMBER - 1),
    mode=st.sampled_from([0o100644, 0o040755, 0o060600, 0o140777]),
    uid=st.integers(0, 2**32 - 1),
    gid=st.integers(0, 2**32 - 1),
    mtime_ns=st.integers(-(2**62), 2**62),
    size=st.integers(0, 2**62),
    links=st.integers(1, 2**32 - 1),
    device=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    xattrs=st.lists(
        st.tuples(st.binary(min_size=1, max_size=20).filter(lambda n: b"\0" not in n), st.binary())
    ).map(tuple),
)


@given(st.lists(st.tuples(names, inodes), max_size=5))
def test_files_come_back(files: list[tuple[bytes, Inode]]) -> None:
    data = b"".join(wire.encode_inode(inode, name) for name, inode in files)
    assert [*wire.decode_inodes(data)] == files


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"a\0", b"n" * 1025])
def test_names_that_lead_elsewhere_hide_no_others(name: bytes) -> None:
    inode, omitted = Inode(5, 0o100644), []
    data = b"".join(wire.encode_inode(inode, each) for each in (b"one", name, b"two"))
    assert [*wire.decode_inodes(data, omit=omitted.append)] == [(b"one", inode), (b"two", inode)]
    assert omitted == [name]


@pytest.mark.parametrize(
    "inode",
    [
        Inode(0, 0o100644),
        Inode(1 << 46, 0o100644),
        Inode(5, 0o170644),
        Inode(5, 0o1100644),
        Inode(5, 0o120777),
        Inode(5, 0o120777, target=b"a\0b"),
        Inode(5, 0o100644, size=(1 << 62) + 1),
        Inode(5, 0o100644, xattrs=((b"a\0b", b""),)),
        Inode(5, 0o100644, xattrs=((b"n" * 256, b""),)),
    ],
)
def test_files_that_cannot_be(inode: Inode) -> None:
    with pytest.raises(BadFile):
        [*wire.decode_inodes(wire.encode_inode(inode, b"name"))]


@given(st.binary(max_size=200))
def test_noise_is_files_or_bad(noise: bytes) -> None:
    for decode in (wire.decode_inodes, lambda data: wire.decode_runs(data, 10, 100) or []):
        with contextlib.suppress(BadFile, struct.error):
            [*decode(noise)]


class TestRuns:
    def test_they_come_back(self) -> None:
        runs = [Run(0, 5), Run(HOLE, 10), Run(90, 10)]
        assert wire.decode_runs(wire.encode_runs(runs), 25, 100) == runs
        assert wire.decode_runs(wire.encode_runs(None), 25, 100) is None

    @pytest.mark.parametrize(
        ("runs", "size"),
        [
            ([Run(95, 6)], 6),
            ([Run(-2, 6)], 6),
            ([Run(0, 6)], 7),
            ([Run(0, (1 << 64) - 1)], 5),
        ],
    )
    def test_past_the_disk(self, runs: list[Run], size: int) -> None:
        with pytest.raises(BadFile):
            wire.decode_runs(wire.encode_runs(runs), size, 100)

    @given(
        st.lists(st.builds(Run, st.sampled_from([HOLE, 0, 10, 20, 30]), st.integers(0, 20))),
        st.integers(0, 100),
    )
    def test_joined_are_the_same_bytes(self, runs: list[Run], size: int) -> None:
        def places(pieces: list[Run]) -> list[int]:
            return [
                HOLE if run.start == HOLE else run.start + index
                for run in pieces
                for index in range(run.size)
            ]

        found = joined(runs, size)
        assert places(found) == (places(runs) + [HOLE] * size)[:size]


def test_keys_come_back() -> None:
    keys = (b"", b"a passphrase", bytes(range(256)) * 8)
    assert wire.decode_keys(wire.encode_keys(keys)) == [*keys]
    assert wire.decode_keys(wire.encode_keys((b"x" * 20_000, b"y"))) == [b"y"]
