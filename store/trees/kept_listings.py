"""Listings of legacy archives, kept on local disk once they have been read.

A legacy archive has its metadata between the files' content, so listing it again means decoding
content again. What was listed is kept in one file per archive, as records that are only appended:

    offset of the directory u64 | size u32 | blob, encrypted when the archive is

    blob: per child  kind u8 | lengths of name u16, target u16, metadata u32 | offset, end,
                     payload_offset, size, target_offset, device major and minor u64 | the three

The file's name is the index's csum: snapshots with the same archive share it, and no other one ever
matches. Anybody may delete it at any time. Nothing here raises: what cannot be kept or read back is
listed from the archive.
"""

import errno
import logging
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from struct import Struct
from threading import Lock

from store.datastore.xdg import cache_home
from store.errors import StoreError
from store.format.blob import decode_blob, encode_blob
from store.format.crypt import CryptConfig
from store.format.pxar.entries import Entry, EntryKind

log = logging.getLogger(__name__)

ARCHIVE_BYTES = 256 << 20
ALL_BYTES = 1 << 30
_RECORD = Struct("<QI")
_ENTRY = Struct("<BHHIQQQQQQQ")
_KINDS = tuple(EntryKind)
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}


class KeptListings:
    """The kept listings of one archive. Thread-safe; several processes may keep the same.

    Memory: about 100 bytes for each directory.
    """

    def __init__(self, path: Path, key: CryptConfig | None, limit: int = ARCHIVE_BYTES) -> None:
        """Open or make the file at `path`, which grows up to about `limit` bytes."""
        self._key, self._limit = key, limit
        self._lock = Lock()
        self._file = -1
        self._places: dict[int, tuple[int, int]] = {}
        with suppress(OSError):
            self._open(path)

    def _open(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = _open_ours(path)
        if not self._find_records():
            path.unlink()
            os.close(self._file)
            self._file = -1
            self._file = _open_ours(path)
            self._places.clear()
        os.utime(self._file)
        make_room(path)

    def _find_records(self) -> bool:
        """Note where the records are; False when they do not fill the file: one was cut."""
        size, position = os.fstat(self._file).st_size, 0
        if not size:
            return True
        with mmap.mmap(self._file, size, prot=mmap.PROT_READ) as data:
            while position + _RECORD.size <= size:
                offset, length = _RECORD.unpack_from(data, position)
                position += _RECORD.size
                self._places[offset] = position, length
                position += length
        return position == size

    def close(self) -> None:
        """Close the file; nothing is kept or found any more."""
        with self._lock:
            self._places.clear()
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    __del__ = close

    def size_of(self, directory: int) -> int:
        """Bytes that `get` reads; 0 if it has nothing."""
        return self._places.get(directory, (0, 0))[1]

    def get(self, directory: int) -> list[Entry] | None:
        """The children of the directory at this offset, if they are here."""
        place = self._places.get(directory)
        if place is None:
            return None
        try:
            with self._lock:
                blob = os.pread(self._file, place[1], place[0])
            return list(_unpack(decode_blob(blob, self._key)))
        except (StoreError, OSError, struct.error, IndexError) as error:
            log.debug("kept listing of %d: %s", directory, error)
            self._places.pop(directory, None)
            return None

    def put(self, directory: int, children: list[Entry]) -> None:
        """Keep the children of the directory at this offset."""
        iv = os.urandom(16) if self._key else None
        with suppress(OSError, StoreError, struct.error):
            blob = encode_blob(b"".join(map(_pack, children)), self._key, iv=iv)
            with self._lock:
                if self._file >= 0 and directory not in self._places:
                    self._append(directory, blob)

    def _append(self, directory: int, blob: bytes) -> None:
        """One write, so that records of several processes do not mix."""
        record = _RECORD.pack(directory, len(blob)) + blob
        if os.fstat(self._file).st_size + len(record) > self._limit:
            return
        if os.write(self._file, record) == len(record):
            end = os.lseek(self._file, 0, os.SEEK_CUR)
            self._places[directory] = end - len(blob), len(blob)


def _open_ours(path: Path) -> int:
    """A descriptor; OSError for what somebody else put there: under sudo this may be his home."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    file = os.open(path, flags, 0o600)
    if os.fstat(file).st_uid != os.geteuid():
        os.close(file)
        raise PermissionError(errno.EPERM, f"{path} is somebody else's")
    return file


def open_kept_listings(csum: bytes, key: CryptConfig | None) -> KeptListings | None:
    """Those of the archive with this index; None without a place for them."""
    name = f"{csum.hex()}-{key.fingerprint.short.replace(':', '') if key else 'plain'}"
    try:
        return KeptListings(cache_home() / "listings" / name, key)
    except StoreError:
        return None


def make_room(kept: Path, budget: int = ALL_BYTES) -> None:
    """Delete those not used for longest, but `kept`, until all together are within the budget."""
    found = []
    for path in kept.parent.iterdir():
        with suppress(OSError):
            info = path.stat()
            found.append((path != kept, -info.st_mtime_ns, info.st_size, path))
    used = 0
    for may_go, _, size, path in sorted(found):
        used += size
        if may_go and used > budget:
            path.unlink(missing_ok=True)


def _pack(entry: Entry) -> bytes:
    name, target, metadata = entry.name, entry.target, entry.raw_metadata
    numbers = entry.offset, entry.end, entry.payload_offset, entry.size, entry.target_offset
    lengths = len(name), len(target), len(metadata)
    head = _ENTRY.pack(_NUMBERS[entry.kind], *lengths, *numbers, *entry.device)
    return b"".join((head, name, target, metadata))


def _unpack(data: bytes) -> Iterator[Entry]:
    position = 0
    while position < len(data):
        kind, name, target, metadata, *numbers, major, minor = _ENTRY.unpack_from(data, position)
        offset, end, payload_offset, size, target_offset = numbers
        position += _ENTRY.size
        texts = []
        for length in (name, target, metadata):
            texts.append(data[position : position + length])
            position += length
        yield Entry(
            texts[0], _KINDS[kind], offset, end, texts[2], payload_offset, size, texts[1],
            target_offset, (major, minor),
        )  # fmt: skip
