"""MD5 of several buffers at once: what S3's ETags are made of, and the dearest of our checks.

One at a time it is 0.6 GB/s a core whoever computes it, for each of its steps needs the last one's
result. `_md5.c` does eight in the lanes of a vector register: 0.9 GB/s for two, 2.5 for eight.
"""

import hashlib
from collections.abc import Callable, Sequence

from store import native
from store.format.buffer import Buffer

MOST = 64
"""Buffers in one call."""

Md5Many = Callable[[Sequence[Buffer]], list[bytes]]


def one_by_one(buffers: Sequence[Buffer]) -> list[bytes]:
    """The same with hashlib."""
    return [hashlib.md5(buffer, usedforsecurity=False).digest() for buffer in buffers]


def _load_native() -> Md5Many:
    if not native.is_usable("store.format._md5"):
        return one_by_one
    from store.format import _md5

    return _md5.md5_many


_native = _load_native()


def md5_many(buffers: Sequence[Buffer]) -> list[bytes]:
    """The MD5 (16 bytes) of each of at most MOST buffers, in order. Runs without the GIL."""
    return one_by_one(buffers) if len(buffers) < 2 else _native(buffers)
