"""What stands before the root directory: nothing (v1), or format version and prelude (v2).

Source: pxar src/decoder/mod.rs (spec 9.4, 9.10).
"""

from collections.abc import Callable
from dataclasses import dataclass

from store.errors import FormatError
from store.format.pxar.items import (
    HEADER,
    HEADER_SIZE,
    PXAR_FORMAT_VERSION,
    PXAR_PRELUDE,
    item_error,
)

MAX_PRELUDE_SIZE = 16 * 1024 * 1024
_VERSION_SIZE = 24


@dataclass(frozen=True, slots=True)
class Preamble:
    """Format version (1 or 2), the client's prelude or None, where the root's ENTRY stands."""

    version: int
    prelude: bytes | None
    root_offset: int


def read_preamble(read: Callable[[int, int], bytes]) -> Preamble:
    """Read the start of an archive or metadata stream.

    Args:
        read: `read(offset, size)` gives exactly `size` bytes, or raises FormatError.

    Raises:
        FormatError: an unknown version, or a prelude of more than MAX_PRELUDE_SIZE (16 MiB) bytes.
    """
    htype, size = HEADER.unpack(read(0, HEADER_SIZE))
    if htype != PXAR_FORMAT_VERSION:
        return Preamble(1, None, 0)
    if size != _VERSION_SIZE:
        raise item_error(0, htype, size, f"{_VERSION_SIZE} bytes")
    version = int.from_bytes(read(HEADER_SIZE, 8), "little")
    if version not in (1, 2):
        raise FormatError(f"pxar archive: format version {version}, expected 1 or 2")
    htype, size = HEADER.unpack(read(_VERSION_SIZE, HEADER_SIZE))
    if htype != PXAR_PRELUDE:
        return Preamble(version, None, _VERSION_SIZE)
    if not HEADER_SIZE <= size <= HEADER_SIZE + MAX_PRELUDE_SIZE:
        raise item_error(_VERSION_SIZE, htype, size, f"{MAX_PRELUDE_SIZE} at most")
    prelude = read(_VERSION_SIZE + HEADER_SIZE, size - HEADER_SIZE)
    return Preamble(version, prelude, _VERSION_SIZE + size)
