"""Which chunks are likely to be in a datastore: by its last snapshot, and by a file on this host.

Digests are told by their first eight bytes. Nothing here needs to be right or complete.
"""

import hashlib
import logging
import os
import threading
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from struct import Struct

from store.datastore.xdg import cache_home
from store.errors import InvalidName
from store.names import Digest

log = logging.getLogger(__name__)

MAX_HINTS = 4 << 20
FEW = 1 << 16
"""Fewer are sorted sooner than numpy, which does it in a tenth of the memory, is loaded."""
PREFIX = 8
HEADER = Struct("<8sII")
MAGIC = b"vwhints1"

Prefixes = Sequence[int]
"""Sorted, none twice."""


def prefix_of(digest: bytes) -> int:
    """The first eight bytes as a number; those of a shorter text are filled up with zeros."""
    return int.from_bytes(digest[:PREFIX].ljust(PREFIX, b"\0"), "big")


class Candidates:
    """The digests that a backup to an object store is likely to meet again. Thread-safe."""

    def __init__(self, location: str, previous: Callable[[], Iterable[Digest]]) -> None:
        """`previous` gives those of the previous snapshot; called once, when first needed."""
        self._hints = HintFile(location)
        self._previous = previous
        self._lock = threading.Lock()
        self._sources: tuple[Prefixes, ...] | None = None

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, Digest) and any(
            _has(prefixes, prefix_of(digest)) for prefixes in self._load()
        )

    def _load(self) -> tuple[Prefixes, ...]:
        with self._lock:
            if self._sources is None:
                previous = array("Q", map(prefix_of, self._previous()))
                self._sources = (_sorted(previous), self._hints.read())
            return self._sources

    def remember(self, used: "array[int]") -> None:
        """Keep the prefixes of a finished backup's chunks for the next one."""
        self._hints.add(used)


class HintFile:
    """The chunks of one datastore seen by backups from this host, in the user's cache directory.

    magic 8 | count u32 | crc32 u32 | count prefixes u64, sorted; all little-endian

    It may vanish, be damaged, or be replaced by another process at any time. Errors are for the
    debug log.
    """

    def __init__(self, location: str) -> None:
        self.path = _user_cache() / "digests" / hashlib.sha256(location.encode()).hexdigest()

    def read(self) -> Prefixes:
        """What is in the file; nothing if it is not as we write it."""
        try:
            with open(_open_file(self.path), "rb") as file:
                raw = file.read(HEADER.size + MAX_HINTS * PREFIX + 1)
        except OSError as error:
            log.debug("%s: %s", self.path, error)
            return ()
        body = memoryview(raw)[HEADER.size :]
        if raw[: HEADER.size] != HEADER.pack(MAGIC, len(body) // PREFIX, zlib.crc32(body)):
            log.debug("%s: not a list of digests, ignored", self.path)
            return ()
        return body[: len(body) // PREFIX * PREFIX].cast("Q")

    def add(self, used: "array[int]") -> None:
        """Put more into the file, in place of old ones when it is full."""
        body = _merge(used, self.read())
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.write_bytes(HEADER.pack(MAGIC, len(body) // PREFIX, zlib.crc32(body)) + body)
            temporary.replace(self.path)
        except OSError as error:
            log.debug("%s: not written: %s", self.path, error)
            with suppress(OSError):
                temporary.unlink()


def _user_cache() -> Path:
    """Of a user without a home: a place where nothing is, and nothing can be made."""
    try:
        return cache_home()
    except InvalidName as error:
        log.debug("no list of digests: %s", error)
        return Path(os.devnull)


def _open_file(path: Path) -> int:
    """No pipe that somebody put there may make us wait."""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _merge(used: "array[int]", old: Prefixes) -> bytes:
    """All of `used` if they fit, and as many of the others as fit then."""
    if len(used) + len(old) < FEW:
        new = set(used)
        kept = [*sorted(new), *(prefix for prefix in old if prefix not in new)][:MAX_HINTS]
        return array("Q", sorted(kept)).tobytes()
    import numpy

    first = numpy.unique(numpy.frombuffer(used, dtype="<u8"))[:MAX_HINTS]
    others = numpy.setdiff1d(numpy.array(old, dtype="<u8"), first, assume_unique=True)
    merged = numpy.concatenate((first, others[: MAX_HINTS - len(first)]))
    return bytes(numpy.sort(merged).tobytes())


def _sorted(prefixes: "array[int]") -> Prefixes:
    if len(prefixes) < FEW:
        return array("Q", sorted(set(prefixes)))
    import numpy

    return memoryview(numpy.unique(numpy.frombuffer(prefixes, dtype="<u8")).tobytes()).cast("Q")


def _has(prefixes: Prefixes, wanted: int) -> bool:
    position = bisect_left(prefixes, wanted)
    return position < len(prefixes) and prefixes[position] == wanted
