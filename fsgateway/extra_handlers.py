"""FUSE handlers that pyfuse3 does not have, through a small C module of ours.

To be imported before pyfuse3 (`fsgateway/__init__.py` does): _fuse_extra.c says why. Where the
module is missing the mount works without them, as pyfuse3 has it.
"""

import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from store import native

if TYPE_CHECKING:
    from fsgateway._fuse_extra import ListingRequest
    from fsgateway.attributes import Presentation

log = logging.getLogger(__name__)


def _load() -> Any:  # noqa: ANN401 - the C module, or None
    """Load it so that pyfuse3's calls of libfuse's functions come to it first."""
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_GLOBAL | os.RTLD_NOW)
    try:
        if not native.is_usable("fsgateway._fuse_extra"):
            return None
    finally:
        sys.setdlopenflags(flags)
    from fsgateway import _fuse_extra

    return _fuse_extra


_module = _load()


def set_handler(name: str, handler: Callable[..., None] | None) -> bool:
    """Let `handler` answer requests of one kind in sessions that begin from now on.

    It is called on the event loop, must not wait, and answers through its first argument, now or
    later (`_fuse_extra.Request`). None takes it away.

        lseek      (request, inode, handle, offset, whence): SEEK_DATA or SEEK_HOLE, no others
        fallocate  (request, inode, handle, mode, offset, length)

    Returns False where the C module is missing: then nobody calls it.
    """
    if _module is not None:
        _module.set_handler(name, handler)
    return _module is not None


def set_direct_handlers(
    handlers: dict[str, Callable[..., object]],
    failed: Callable[[BaseException], object],
    bare: set[int],
    activity: object,
    numbers: tuple[int, int],
) -> bool:
    """Answer requests of these kinds without pyfuse3, in sessions that begin from now on.

    _fuse_direct.c says what they are asked and may answer. It is of inodes and handles with
    `numbers` from the first to before the second. Inodes in `bare` are known to have no
    capabilities; the set may change at any time. While `activity.count` is 0 the next request is
    waited for in the same place.

    Returns False where the C module is missing: then nobody calls them.
    """
    if _module is not None:
        _module.set_direct_handlers(handlers, failed, bare, activity, numbers)
    return _module is not None


def directly_taken() -> int:
    """How many requests came and were answered by those handlers, since the last call."""
    return _module.directly_taken() if _module is not None else 0


def can_map_uncached() -> bool:
    """Whether programs can map files shared that are opened past the kernel's cache (direct_io).

    It is known once the kernel has had its first answer. Linux 6.6; False where the C module is
    missing.
    """
    return _module is not None and _module.can_map_uncached()


def set_capabilities(wanted: int, refused: int) -> bool:
    """What sessions that begin from now on ask of the kernel, beyond pyfuse3's choice (FUSE_CAP_*).

    Returns False where the C module is missing.
    """
    if _module is not None:
        _module.set_capabilities(wanted, refused)
    return _module is not None


def set_listing(
    read: "Callable[[ListingRequest, int], None]",
    told: Callable[[int, int, list[tuple[int, int]]], None],
    presentation: "Presentation",
    timeout_s: float,
) -> bool:
    """Let the directories of trees be answered in C, in sessions that begin from now on.

    Args:
        read: called with (request, inode) on the event loop when a directory's listing is needed;
            as a handler of `set_handler` it answers now or later.
        told: called with (inode of the directory, count, directories) when a reply tells the
            kernel of `count` entries; those of them that are directories with their ends.
        presentation: owners and modes.
        timeout_s: how long the kernel may keep what it was told.

    Returns False where the C module is missing: then pyfuse3's handlers are asked.
    """
    if _module is not None:
        owner = [-1 if each is None else each for each in (presentation.uid, presentation.gid)]
        _module.set_listing(read, told, *owner, presentation.umask, timeout_s)
    return _module is not None
