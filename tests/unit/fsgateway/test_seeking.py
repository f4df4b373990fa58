"""Where SEEK_DATA and SEEK_HOLE lead to in what is open."""

import errno
import os
from typing import TYPE_CHECKING, Any, cast

import pytest
from pyfuse3 import InodeT

from fsgateway.handles import BytesFile, OpenFile, StreamFile
from fsgateway.readahead import Way
from fsgateway.seeking import find

if TYPE_CHECKING:
    from store.datastore.archives import IndexedStream


class FakeHoles:
    """Data at 100 … 200 and 300 … 400 of 500 bytes."""

    def data_from(self, offset: int) -> int | None:
        return next((max(offset, at) for at in (100, 300) if offset < at + 100), None)

    def hole_from(self, offset: int) -> int:
        return next((at + 100 for at in (100, 300) if at <= offset < at + 100), offset)


class FakeStream:
    size = 500

    def holes(self) -> FakeHoles:
        return FakeHoles()

    def peek(self, offset: int, size: int) -> None: ...


def part(start: int, size: int) -> OpenFile:
    stream = cast("IndexedStream", FakeStream())
    return StreamFile(InodeT(1), stream, start, size, Way(start), is_exact=False)


@pytest.mark.parametrize(
    ("start", "size", "offset", "whence", "found"),
    [
        (0, 500, 0, os.SEEK_DATA, 100),
        (0, 500, 150, os.SEEK_DATA, 150),
        (0, 500, 0, os.SEEK_HOLE, 0),
        (0, 500, 120, os.SEEK_HOLE, 200),
        (0, 500, 400, os.SEEK_DATA, errno.ENXIO),
        (150, 100, 0, os.SEEK_DATA, 0),
        (150, 100, 0, os.SEEK_HOLE, 50),
        (150, 100, 50, os.SEEK_DATA, errno.ENXIO),  # the next data is another file's
        (110, 50, 10, os.SEEK_HOLE, 50),  # its end
        (0, 500, 500, os.SEEK_HOLE, errno.ENXIO),
        (0, 500, -1, os.SEEK_DATA, errno.ENXIO),
    ],
)
def test_a_part_of_a_stream(start: int, size: int, offset: int, whence: int, found: int) -> None:
    if found == errno.ENXIO:
        with pytest.raises(OSError, match=r"file|data") as caught:
            find(part(start, size), offset, whence)
        assert caught.value.errno == errno.ENXIO
    else:
        assert find(part(start, size), offset, whence) == found


def test_what_has_no_holes() -> None:
    file: Any = BytesFile(b"abc")
    assert find(file, 1, os.SEEK_DATA) == 1
    assert find(file, 1, os.SEEK_HOLE) == 3
    with pytest.raises(OSError, match="outside"):
        find(BytesFile(b""), 0, os.SEEK_DATA)
