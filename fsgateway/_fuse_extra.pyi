from array import array
from collections.abc import Callable
from typing import Any

class Request:
    """What the kernel waits to be told; answered once, by EIO when it is dropped unanswered."""

    def reply_offset(self, offset: int, /) -> None: ...
    def reply_error(self, number: int, /) -> None: ...

class ListingRequest:
    """A directory whose listing the kernel waits for; answered once, likewise."""

    def reply_listing(self, packed: bytes, starts: array[int], links: array[int], /) -> None:
        """As `fsgateway.listings.Listing` has them, and the sorted targets of hard links (u64)."""
    def reply_error(self, number: int, /) -> None: ...

def set_listing(
    read: Callable[[ListingRequest, int], None],
    told: Callable[[int, int, list[tuple[int, int]]], None],
    uid: int,
    gid: int,
    umask: int,
    timeout_s: float,
    /,
) -> None: ...
def set_handler(name: str, handler: Callable[..., Any] | None, /) -> None: ...
def set_capabilities(wanted: int, refused: int, /) -> None: ...
def can_map_uncached() -> bool: ...
def set_direct_handlers(
    handlers: dict[str, Callable[..., object]],
    failed: Callable[[BaseException], object],
    bare: set[int],
    activity: object,
    numbers: tuple[int, int],
    /,
) -> None: ...
def directly_taken() -> int: ...
def session_count() -> int: ...
