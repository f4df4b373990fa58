"""Segments: append-only files of records that describe themselves. What is written lives here.

    segment := magic 8 | number u32 | reserved u32 | salt 16 | zeros to 64 | record*
    record  := header 36 | nonce 12 | tag 16 | payload          see RECORD
    header  := magic 4 | kind u8 | reserved u8 | archive u16 | payload size u32 | offset u64
               | count u64 | sequence u64

A process never appends to a segment that another one began, so a torn end is only ever at the end,
and a segment's key meets each nonce once. A segment is on disk before the next one begins: what was
synced at any time lies before the first record that can't be read.
"""

import errno
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from store.backends.base import storage_error
from store.errors import BackendError, FormatError, IntegrityError, StoreError
from store.format.buffer import Buffer
from store.heads.extents import CHUNK
from store.heads.protection import SALT_SIZE, Protection, open_record, seal_record

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SEGMENT_MAGIC, RECORD_MAGIC = b"VWHSEG01", b"VWHR"
SEGMENT_HEADER = 64
SEGMENT_SIZE = 256 << 20
_START = Struct("<8sIIQQ16s16x")
_HEADER = Struct("<4sBBHIQQQ")
HEADER_SIZE = _HEADER.size
SEAL_SIZE = 28
RECORD = HEADER_SIZE + SEAL_SIZE
MAX_PAYLOAD = 256 << 10
"""Reading any byte of a record decodes all of it: small enough for that, large enough to stream."""
CACHED_RECORDS = 8 << 20
RETIRED_S = 5.0
"""How long the descriptor of a removed segment stays: longer than any read takes."""

FILE_DATA, IMAGE_DATA, IMAGE_ZERO, IMAGE_SIZE = 1, 2, 3, 4


class Record(NamedTuple):
    """A record as recovery finds it."""

    kind: int
    archive: int
    offset: int
    size: int
    segment: int
    position: int


class Segments:
    """The segments of one head. Thread-safe.

    Attributes:
        current: the number of the segment that is appended to.
        stamp: that of the next record.
        total_bytes: what they take on the disk.
        live, image_live: of each segment and moved chunk, bytes that trees and images still refer
            to; kept by them under the head's lock.
    """

    def __init__(self, directory: str, protection: Protection) -> None:
        self._directory, self._protection = directory, protection
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._files: dict[int, int] = {}
        self._ciphers: dict[int, AESGCM | None] = {}
        self._cache: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._cached = 0
        self._retired: deque[tuple[float, int]] = deque()
        self.sizes: dict[int, int] = {}
        self.live: dict[int, int] = {}
        self.image_live: dict[int, int] = {}
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._find()
        self.total_bytes = sum(self.sizes.values())
        self.current = max(self.sizes, default=0)
        self.stamp = self.current + 1
        self._file, self._position = -1, 0
        self._cipher: AESGCM | None = None
        self._sequence = self._synced = 0
        self._failed: BackendError | None = None

    @property
    def moved_bytes(self) -> int:
        """What of `live` and `image_live` is in the datastore. Called under the head's lock."""
        counts = (*self.live.items(), *self.image_live.items())
        return sum(count for place, count in counts if place >= CHUNK)

    def _find(self) -> None:
        for entry in os.scandir(self._directory):
            stem, dot, extension = entry.name.partition(".")
            if dot and extension == "seg" and stem.isdigit():
                self.sizes[int(stem)] = entry.stat().st_size

    def append(
        self, kind: int, archive: int, offset: int, payload: Buffer, count: int
    ) -> tuple[int, int]:
        """Write one record, not yet durable; its segment, and its position there.

        Raises OutOfSpace, BackendError; nothing is written then.
        """
        with self._lock:
            if self._failed is not None:
                raise self._failed
            size = len(payload)
            if self._file < 0 or self._position + RECORD + size > SEGMENT_SIZE:
                self._begin()
            self._sequence += 1
            header = _HEADER.pack(
                RECORD_MAGIC, kind, 0, archive, size, offset, count, self._sequence
            )
            seal, body = seal_record(self._cipher, header, payload)
            position = self._position
            try:
                written = os.pwritev(self._file, (header + seal, body), position)
                if written < RECORD + size:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                os.ftruncate(self._file, position)
                raise storage_error(error, self._path(self.current)) from error
            self._position = position + RECORD + size
            self.sizes[self.current] = self._position
            self.total_bytes += RECORD + size
            return self.current, position

    def begin_from(self, first: int) -> None:
        """Number new segments from `first` on at least, even where those before it are gone.

        Recovery reads from a number on: a record in a segment before it would not be found.
        """
        self.current = max(self.current, first - 1)
        self.stamp = max(self.stamp, first)

    def roll(self) -> int:
        """Let the next record begin a new segment; the number that one will have."""
        with self._lock:
            self._finish()
            self.stamp = self.current + 1
            return self.stamp

    def _begin(self) -> None:
        self._finish()
        number, salt = self.current + 1, os.urandom(SALT_SIZE)
        path = self._path(number)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.write(file, _START.pack(SEGMENT_MAGIC, number, 0, 0, 0, salt))
            os.fsync(file)
            _sync_directory(self._directory)
        except OSError as error:
            raise storage_error(error, path) from error
        self._cipher = self._ciphers[number] = self._protection.segment_cipher(salt)
        self._file = self._files[number] = file
        self.current = self.stamp = number
        self._position = SEGMENT_HEADER
        self.sizes[number] = SEGMENT_HEADER
        self.total_bytes += SEGMENT_HEADER

    def _finish(self) -> None:
        """Make the segment durable that was appended to. Called under the lock."""
        if self._file >= 0:
            self._fsync(self._file)
            self._synced = self._sequence
            self._file = -1

    def sync(self) -> None:
        """Make durable what was appended. Threads that come meanwhile share the next one.

        Raises BackendError, then and ever after: what the disk has is not known any more.
        """
        with self._lock:
            target = self._sequence
        with self._syncing:
            if self._failed is not None:
                raise self._failed
            if self._synced >= target:
                return
            with self._lock:
                target, file = self._sequence, self._file
            if file >= 0:
                self._fsync(file)
            self._synced = max(self._synced, target)

    def _fsync(self, file: int) -> None:
        try:
            os.fdatasync(file)
        except OSError as error:
            self._failed = BackendError(f"{self._directory}: {error.strerror} on fsync")
            raise self._failed from error

    def read(self, segment: int, position: int) -> bytes:
        """The payload of a record. Raises IntegrityError, BackendError."""
        name = segment, position
        payload = self._cache.get(name)
        if payload is None:
            payload = self._load(segment, position)
            with self._lock:
                self._cache[name] = payload
                self._cached += len(payload)
                while self._cached > CACHED_RECORDS:
                    self._cached -= len(self._cache.popitem(last=False)[1])
        return payload

    def _load(self, segment: int, position: int) -> bytes:
        header = self._pread(segment, RECORD, position)
        try:
            size = _payload_size(header)
            body = self._pread(segment, size, position + RECORD)
            return open_record(
                self._ciphers[segment], header[:HEADER_SIZE], header[HEADER_SIZE:], body
            )
        except (IntegrityError, FormatError) as error:
            raise IntegrityError(f"{self._path(segment)} at {position}: {error}") from error

    def _pread(self, segment: int, size: int, position: int) -> bytes:
        try:
            return os.pread(self._opened(segment), size, position)
        except OSError as error:
            raise storage_error(error, self._path(segment)) from error

    def _opened(self, segment: int) -> int:
        file = self._files.get(segment)
        if file is None:
            with self._lock:
                file = self._files.get(segment)
                if file is None:
                    file = self._open(segment)
        return file

    def _open(self, segment: int) -> int:
        path = self._path(segment)
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise IntegrityError(f"{path}: is gone from the head's journal") from error
        start = os.pread(file, SEGMENT_HEADER, 0)
        if len(start) < SEGMENT_HEADER or start[:8] != SEGMENT_MAGIC:
            os.close(file)
            raise FormatError(f"{path}: no segment of a head's journal")
        salt = _START.unpack(start)[5]
        self._ciphers[segment] = self._protection.segment_cipher(salt)
        self._files[segment] = file
        return file

    def records(self, first: int) -> Iterator[Record]:
        """The records of images in the segments from number `first` on, in the order written."""
        for segment in sorted(number for number in self.sizes if number >= first):
            yield from self._records_of(segment)

    def _records_of(self, segment: int) -> Iterator[Record]:
        position = SEGMENT_HEADER
        try:
            self._opened(segment)
            while True:
                header = self._pread(segment, RECORD, position)
                size = _payload_size(header)
                _, kind, _, archive, _, offset, count, _ = _HEADER.unpack_from(header)
                if kind != FILE_DATA:
                    self._load(segment, position)
                    yield Record(kind, archive, offset, count, segment, position)
                position += RECORD + size
        except (IntegrityError, FormatError):
            return  # the torn end: none of it was ever acknowledged

    def drop(self, segments: Iterable[int]) -> None:
        """Remove segments that nothing refers to; who is reading one just now may end."""
        self.retire()
        for segment in segments:
            with suppress(StoreError):
                self._opened(segment)
            with self._lock:
                self.total_bytes -= self.sizes.pop(segment, 0)
                self.live.pop(segment, None)
                self.image_live.pop(segment, None)
                self._retired.append((time.monotonic(), segment))
            try:
                os.unlink(self._path(segment))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise storage_error(error, self._path(segment)) from error

    def retire(self) -> bool:
        """Give back removed segments that nobody reads any more; whether there are others."""
        with self._lock:
            while self._retired and self._retired[0][0] < time.monotonic() - RETIRED_S:
                file = self._files.pop(self._retired.popleft()[1], None)
                if file is not None:
                    os.close(file)
            return bool(self._retired)

    def close(self) -> None:
        """Give the descriptors back."""
        with self._lock:
            for file in self._files.values():
                os.close(file)
            self._files.clear()
            self._file = -1

    def _path(self, segment: int) -> str:
        return f"{self._directory}/{segment:08}.seg"


def _payload_size(header: bytes) -> int:
    if len(header) < RECORD or header[:4] != RECORD_MAGIC:
        raise FormatError("no record here")
    size: int = _HEADER.unpack_from(header)[4]
    if size > MAX_PAYLOAD:
        raise FormatError(f"a record of {size} bytes")
    return size


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = [
    "FILE_DATA",
    "IMAGE_DATA",
    "IMAGE_SIZE",
    "IMAGE_ZERO",
    "Record",
    "Segments",
    "StoreError",
]
