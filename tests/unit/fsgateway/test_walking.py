"""What is loaded ahead of who lists an archive from its beginning to its end, and of whom not."""

from typing import TYPE_CHECKING, cast

import pytest

from fsgateway.walking import Walk

if TYPE_CHECKING:
    from store.datastore.streams import IndexedStream

CHUNK, COUNT = 100, 10


class Stream:
    """Ten chunks, and a note of those that were to be loaded."""

    size = CHUNK * COUNT

    def __init__(self) -> None:
        self.index = self
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return COUNT

    def position(self, offset: int) -> int:
        return offset // CHUNK

    def range(self, number: int) -> tuple[int, int]:
        return number * CHUNK, (number + 1) * CHUNK

    def prefetch(self, offset: int) -> None:
        self.loaded.append(offset // CHUNK)


@pytest.mark.parametrize(
    ("offsets", "loaded"),
    [
        ([0], []),  # only a look
        ([0, 50, 99], []),
        ([0, 100], [2, 3]),
        ([0, 100, 150, 200], [2, 3, 3, 4]),
        ([0, 200], [3, 4]),  # a file's content may fill a chunk
        ([0, 300], []),
        ([300, 200, 100], []),
        ([0, 500, 10, 600, 20], []),
        ([700, 800, 900], [9]),
        ([5000, -1], []),
    ],
)
def test_walks(offsets: list[int], loaded: list[int]) -> None:
    stream = Stream()
    walk = Walk(cast("IndexedStream", stream), 2)
    for offset in offsets:
        walk.reached(offset)
    assert stream.loaded == loaded
