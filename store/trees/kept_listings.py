"""Listings of legacy archives, kept on local disk once they have been read.

A legacy archive has its metadata between the files' content, so listing it again means decoding
content again. What was listed is kept in one file per archive, as records that are only appended,
each with the directories that were listed one after the other, until they had 64 KiB:

    count u32 | size of the blob u32 | offset of each directory u64 | blob

    blob, encrypted when the archive is: of each directory  size u32 | its children, packed

The file's name is the index's csum: snapshots with the same archive share it, and no other one ever
matches. Anybody may delete it at any time. Nothing here raises: what cannot be kept or read back is
listed from the archive.
"""

import errno
import logging
import mmap
import os
import struct
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from struct import Struct
from threading import Lock

from store.datastore.xdg import cache_home
from store.errors import StoreError
from store.format.blob import decode_blob, encode_blob
from store.format.crypt import CryptConfig

log = logging.getLogger(__name__)

ARCHIVE_BYTES = 256 << 20
ALL_BYTES = 1 << 30
# So much at a time costs, for each directory, a tenth of what it costs alone.
GROUP_BYTES = 64 << 10
# Who lists a directory goes on with those that were listed after it.
GROUPS = 4
FORM = 2
"""Of the file: what was kept in another form has another name."""
_RECORD = Struct("<II")
_SIZE = Struct("<I")
_OFFSET = Struct("<Q")


class KeptListings:
    """The kept listings of one archive. Thread-safe; several processes may keep the same.

    Memory: about 100 bytes for each directory, and half a MiB.
    """

    def __init__(
        self,
        path: Path,
        key: CryptConfig | None,
        limit: int = ARCHIVE_BYTES,
        group_bytes: int = GROUP_BYTES,
    ) -> None:
        """Open or make the file at `path`, which grows up to about `limit` bytes.

        What was put is written when it has `group_bytes`, and when this is closed.
        """
        self._key, self._limit, self._group_bytes = key, limit, group_bytes
        self._lock = Lock()
        self._file = -1
        self._places: dict[int, tuple[int, int]] = {}
        self._pending: dict[int, bytes] = {}
        self._pending_bytes = 0
        self._groups: OrderedDict[int, dict[int, bytes]] = OrderedDict()
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
                count, length = _RECORD.unpack_from(data, position)
                blob = position + _RECORD.size + _OFFSET.size * count
                if blob > size:
                    return False
                place = position, blob - position + length
                offsets = _OFFSET.iter_unpack(data[position + _RECORD.size : blob])
                self._places |= dict.fromkeys((offset for (offset,) in offsets), place)
                position = sum(place)
        return position == size

    def close(self) -> None:
        """Write what is still to be written and close the file; nothing is found any more."""
        with self._lock:
            self._flush()
            self._places.clear()
            self._groups.clear()
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    __del__ = close

    def size_of(self, directory: int) -> int:
        """Bytes that `get` may have to read; 0 if it has nothing."""
        pending = self._pending.get(directory)
        return self._places.get(directory, (0, 0))[1] if pending is None else len(pending) + 1

    def get(self, directory: int) -> bytes | None:
        """The children of the directory at this offset, packed, if they are here."""
        with self._lock:
            found = self._pending.get(directory)
            place = self._places.get(directory)
            if found is not None or place is None:
                return found
            try:
                return self._group(*place)[directory]
            except (StoreError, OSError, KeyError, struct.error) as error:
                log.debug("kept listing of %d: %s", directory, error)
                self._places.pop(directory, None)
                return None

    def _group(self, position: int, size: int) -> dict[int, bytes]:
        """The listings of a record. Raises StoreError, OSError."""
        group = self._groups.pop(position, None)
        if group is None:
            group = _ungroup(os.pread(self._file, size, position), self._key)
        if len(group) > 1:
            self._groups[position] = group
            if len(self._groups) > GROUPS:
                self._groups.popitem(last=False)
        return group

    def put(self, directory: int, children: bytes) -> None:
        """Keep the children of the directory at this offset, packed."""
        with self._lock:
            if self._file < 0 or directory in self._places or directory in self._pending:
                return
            self._pending[directory] = children
            self._pending_bytes += len(children)
            if self._pending_bytes >= self._group_bytes:
                self._flush()

    def _flush(self) -> None:
        """Write what is pending, in one write, so that records of several processes do not mix."""
        pending, self._pending, self._pending_bytes = self._pending, {}, 0
        if not pending or self._file < 0:
            return
        with suppress(OSError, StoreError):
            record = _encode(pending, self._key)
            if os.fstat(self._file).st_size + len(record) > self._limit:
                return
            if os.write(self._file, record) == len(record):
                begin = os.lseek(self._file, 0, os.SEEK_CUR) - len(record)
                self._places |= dict.fromkeys(pending, (begin, len(record)))


def _encode(listings: dict[int, bytes], key: CryptConfig | None) -> bytes:
    """A record. Raises StoreError: it is larger than a blob may be."""
    content = b"".join(_SIZE.pack(len(listing)) + listing for listing in listings.values())
    blob = encode_blob(content, key, iv=os.urandom(16) if key else None)
    count = len(listings)
    return _RECORD.pack(count, len(blob)) + struct.pack(f"<{count}Q", *listings) + blob


def _ungroup(record: bytes, key: CryptConfig | None) -> dict[int, bytes]:
    """The listings of a record. Raises StoreError, struct.error."""
    count = _RECORD.unpack_from(record)[0]
    start = _RECORD.size + _OFFSET.size * count
    content, position = decode_blob(record[start:], key), 0
    group = {}
    for (directory,) in _OFFSET.iter_unpack(record[_RECORD.size : start]):
        begin = position + _SIZE.size
        position = begin + _SIZE.unpack_from(content, position)[0]
        group[directory] = content[begin:position]
    return group


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
    name = f"{csum.hex()}-{FORM}-{key.fingerprint.short.replace(':', '') if key else 'plain'}"
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
