"""Journals of NTFS volumes, as Windows leaves them when it is not shut down.

Nothing on Linux writes one, so they are made here: of a volume as it was before something was
written to it and as it was afterwards. The file records that differ are taken back, and what
Windows would have written about them is put into $LogFile.

    restart page | its copy | last pages, as they grow | pages of records, a ring
                              1.1: 2 pages, 2.0: 32

Source: linux fs/ntfs3/fslog.c; ntfs-3g include/ntfs-3g/logfile.h, ntfsprogs/ntfsrecover.c.
"""

import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from store.format.buffer import Buffer

PAGE, SECTOR = 4096, 512
HEADER, DATA = 0x30, 0x40  # of a record; where a page's records begin
_NOBODY = 0xFFFF
_INITIALIZE, _UPDATE_RESIDENT, _ADD_TO_ROOT, _REMOVE_FROM_ROOT = 0x02, 0x07, 0x0C, 0x0D
_FORGET, _OPEN, _COMPENSATION = 0x1B, 0x1C, 0x01
_MFT_ENTRY, _TRANSACTION = 0x18, 0x18  # in the tables of open attributes and transactions
_INDEX_ROOT, _VOLUME_INFORMATION = 0x90, 0x70
_LOG_FILE, _VOLUME = 2, 3
_OLD_RECORDS = 2500


class Volume:
    """The image of a volume of small clusters, and where its file records are."""

    def __init__(self, image: Path) -> None:
        self.image = image
        boot = self.read(0, SECTOR)
        self.cluster = struct.unpack_from("<H", boot, 11)[0] * boot[13]
        self.record = 1 << -struct.unpack_from("<b", boot, 64)[0]
        place = struct.unpack_from("<Q", boot, 48)[0] * self.cluster
        first = unprotected(self.read(place, self.record))
        self._mft = [*_runs(first, 0x80)]

    def read(self, offset: int, size: int) -> bytes:
        with self.image.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def write(self, offset: int, data: bytes) -> None:
        with self.image.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def place(self, number: int) -> int:
        """Of a file record, in bytes."""
        vcn, rest = divmod(number * self.record, self.cluster)
        return _cluster(self._mft, vcn) * self.cluster + rest

    def raw(self, number: int) -> bytes:
        """A file record as it lies on the disk."""
        return self.read(self.place(number), self.record)

    @property
    def records(self) -> int:
        """How many there are."""
        return sum(count for _, count in self._mft) * self.cluster // self.record

    def mark_dirty(self) -> None:
        """Have it say that it wants to be checked, as a volume does that nobody unmounted."""
        record = bytearray(unprotected(self.raw(_VOLUME)))
        value = _attribute(record, _VOLUME_INFORMATION)
        value += struct.unpack_from("<H", record, value + 20)[0]
        record[value + 10] |= 1
        self.write(self.place(_VOLUME), protected(record))

    def log(self) -> tuple[int, int]:
        """Where the journal is, and its size."""
        record = unprotected(self.raw(_LOG_FILE))
        ((start, count),) = _runs(record, 0x80)
        return start * self.cluster, count * self.cluster


def _runs(record: bytes, kind: int) -> Iterator[tuple[int, int]]:
    """First cluster and number of clusters of an attribute's pieces."""
    at = _attribute(record, kind)
    at += struct.unpack_from("<H", record, at + 32)[0]
    start = 0
    while record[at]:
        few, many = record[at] & 15, record[at] >> 4
        count = int.from_bytes(record[at + 1 : at + 1 + few], "little")
        start += int.from_bytes(record[at + 1 + few : at + 1 + few + many], "little", signed=True)
        yield start, count
        at += 1 + few + many


def _cluster(runs: list[tuple[int, int]], vcn: int) -> int:
    for start, count in runs:
        if vcn < count:
            return start + vcn
        vcn -= count
    raise ValueError("past the end of the file records")


def _attribute(record: Buffer, kind: int) -> int:
    """Where an attribute is in a file record."""
    at: int = struct.unpack_from("<H", record, 20)[0]
    while struct.unpack_from("<I", record, at)[0] != kind:
        at += struct.unpack_from("<I", record, at + 4)[0]
    return at


def unprotected(block: bytes) -> bytes:
    """A block of several sectors, with what its update sequence array has put in its place."""
    data = bytearray(block)
    start, count = struct.unpack_from("<HH", data, 4)
    for index in range(1, count):
        data[index * SECTOR - 2 : index * SECTOR] = data[start + 2 * index : start + 2 * index + 2]
    return bytes(data)


def protected(block: Buffer) -> bytes:
    """The reverse."""
    data = bytearray(block)
    start, count = struct.unpack_from("<HH", data, 4)
    data[start : start + 2] = b"\1\0"
    for index in range(1, count):
        data[start + 2 * index : start + 2 * index + 2] = data[index * SECTOR - 2 : index * SECTOR]
        data[index * SECTOR - 2 : index * SECTOR] = b"\1\0"
    return bytes(data)


@dataclass(frozen=True, slots=True)
class Action:
    """What a record says: do this, and this to take it back, in a file record."""

    redo: int
    undo: int
    number: int = 0  # of the file record
    attribute: int = 0  # where in it the attribute is
    at: int = 0  # where in that
    new: bytes = b""
    old: bytes = b""


class Ring:
    """The pages of records, filled from page `first` on."""

    def __init__(self, size: int, first: int) -> None:
        self.size = size
        self.data: dict[int, bytearray] = {}
        # By page: the last record to begin on it, and the last to end.
        self._starts: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        self.last = self.last_length = 0
        self._previous = 0
        self._page, self._at = first, DATA

    @property
    def bits(self) -> int:
        """Of a log sequence number that count how often the ring was written."""
        return 67 - self.size.bit_length()

    @property
    def here(self) -> int:
        """The number of the next record."""
        if PAGE - self._at < HEADER:
            self._page, self._at = self._page + 1, DATA
        return 1 << 64 - self.bits | (self._page * PAGE + self._at) >> 3

    def add(self, kind: int, transaction: int, said: bytes) -> int:
        """One record, that may reach over pages; its number."""
        said += bytes(-len(said) % 8)
        lsn = self.here
        long = self._at + HEADER + len(said) > PAGE
        previous = self._previous if transaction else 0
        record = struct.pack(
            "<QQQIHHIIH6x", lsn, previous, previous, len(said), 0, 0, kind, transaction, long
        )
        self._starts[self._page] = lsn
        self._append(record + said)
        self._ends[self._page] = self.last = lsn
        self.last_length = len(said)
        self._previous = lsn if transaction else 0
        return lsn

    def _append(self, data: bytes) -> None:
        while True:
            page = self.data.setdefault(self._page, bytearray(PAGE))
            piece = data[: PAGE - self._at]
            page[self._at : self._at + len(piece)] = piece
            self._at, data = self._at + len(piece), data[len(piece) :]
            if not data:
                return
            self._page, self._at = self._page + 1, DATA

    def page(self, number: int, *, copy: bool, version: int) -> bytes:
        """A page as it is on the disk; `copy`: as it is while it grows."""
        is_last = number == max(self.data)
        lsn = self._starts.get(number, self.last)
        after = self._at if is_last else self._end_of(number)
        head = struct.pack(
            "<4sHHQIHHH6xQ", b"RCRD", 0x28, PAGE // SECTOR + 1,
            number * PAGE if copy and version < 2 else lsn,
            number in self._ends, 1, 1, after, self._ends.get(number, 0),
        )  # fmt: skip
        page = bytearray(self.data[number])
        page[: len(head)] = head
        struct.pack_into("<I", page, 0x3C, number * PAGE if version > 1 else 0)
        return protected(bytes(page))

    def _end_of(self, number: int) -> int:
        """Where the last record that begins on a full page begins, for it ends on the next."""
        at = (self._starts[number] << 3) % self.size % PAGE
        size = struct.unpack_from("<I", self.data[number], at + 24)[0] + HEADER
        return at if at + size > PAGE else at + size


def take_back(before: Path, after: Path, image: Path, version: int = 1) -> int:
    """Make an image in which what was written between two others is only in the journal.

    Returns how many actions are to be redone. New are files with records that were free before,
    and names in directories small enough to be in their record.
    """
    shutil.copyfile(after, image)
    old, new = Volume(before), Volume(after)
    actions = [action for number in range(24, old.records) for action in _actions(old, new, number)]
    volume = Volume(image)
    for number in {action.number for action in actions}:
        volume.write(volume.place(number), old.raw(number))
    write_journal(volume, actions, version)
    return len(actions)


def _actions(old: Volume, new: Volume, number: int) -> list[Action]:
    """What makes of the old file record the new one."""
    was, now = old.raw(number), new.raw(number)
    if was == now or now[:4] != b"FILE":
        return []
    was, now = unprotected(was), unprotected(now)
    used = struct.unpack_from("<I", now, 24)[0]
    if not was[22] & 1:  # not in use
        return [Action(_INITIALIZE, 0, number, new=now[:used])]
    known, at = [entry for _, entry in _entries(was)], _attribute(now, _INDEX_ROOT)
    return [
        Action(_ADD_TO_ROOT, _REMOVE_FROM_ROOT, number, at, place - at, entry)
        for place, entry in _entries(now)
        if entry not in known
    ]


def _entries(record: bytes) -> Iterator[tuple[int, bytes]]:
    """Places and entries of a directory that is in its record."""
    attribute = _attribute(record, _INDEX_ROOT)
    at = attribute + struct.unpack_from("<H", record, attribute + 20)[0] + 32
    while not record[at + 12] & 2:
        size = struct.unpack_from("<H", record, at + 8)[0]
        yield at, record[at : at + size]
        at += size


def write_journal(volume: Volume, actions: list[Action], version: int = 1) -> None:
    """Write $LogFile: old records that are done with, a checkpoint, and `actions`, committed."""
    place, size = volume.log()
    first = 4 if version < 2 else 34
    ring = Ring(size, first)
    sample = Action(_UPDATE_RESIDENT, _UPDATE_RESIDENT, 5, 0x38, 0x18, bytes(8), bytes(8))
    for _ in range(_OLD_RECORDS):
        ring.add(1, _TRANSACTION, _said(volume, sample))
    checkpoint = ring.add(2, 0, struct.pack("<IIQ", 1, 0, ring.here).ljust(0x70, b"\0"))
    ring.add(1, _TRANSACTION, _opened())
    for action in actions:
        ring.add(1, _TRANSACTION, _said(volume, action))
    ring.add(1, _TRANSACTION, _said(volume, Action(_FORGET, _COMPENSATION)))
    volume.write(place, bytes([0xFF]) * size)
    for index in range(2):
        volume.write(place + index * PAGE, _restart_page(ring, checkpoint, version))
    last = max(ring.data)
    for number in ring.data:
        volume.write(place + number * PAGE, ring.page(number, copy=False, version=version))
    # Those written last are also where they grew, by turns.
    lanes = first - 2
    for number in range(last + 1 - lanes, last + 1):
        page = ring.page(number, copy=True, version=version)
        volume.write(place + (2 + number % lanes) * PAGE, page)


def _restart_page(ring: Ring, checkpoint: int, version: int) -> bytes:
    head = struct.pack(
        "<4sHHQIIHHH", b"RSTR", 0x1E, PAGE // SECTOR + 1, 0, PAGE, PAGE, 0x30, version < 2, version
    )
    area = struct.pack(
        "<QHHHHIHHQIHHI20x", ring.last, 1, _NOBODY, 0, 0, ring.bits, 0xE0, 0x40, ring.size,
        ring.last_length, HEADER, DATA, 1,
    )  # fmt: skip
    name = "NTFS".encode("utf-16-le")
    client = struct.pack(
        "<QQHHH6xI128s", checkpoint, checkpoint, _NOBODY, _NOBODY, 0, len(name), name
    )
    return protected((head.ljust(0x30, b"\0") + area + client).ljust(PAGE, b"\0"))


def _opened() -> bytes:
    """That $MFT's content was opened, and is known by a number from then on."""
    entry = struct.pack("<IIIIQQQ", 0xFFFFFFFF, 0, 0x80, 0, 1 << 48, 0, 0)
    head = struct.pack(
        "<HHHHHHHHHHHHQQ", _OPEN, 0, 0x28, len(entry), 0x28 + len(entry), 0, _MFT_ENTRY, 1,
        0, 0, 0, 0, 0, 0,
    )  # fmt: skip
    return head + entry


def _said(volume: Volume, action: Action) -> bytes:
    new = action.new + bytes(-len(action.new) % 8)
    vcn, rest = divmod(action.number * volume.record, volume.cluster)
    is_bare = action.redo == _FORGET
    head = struct.pack(
        "<HHHHHHHHHHHHQQ", action.redo, action.undo, 0x28, len(action.new),
        0x28 + len(new), len(action.old), 0 if is_bare else _MFT_ENTRY, not is_bare,
        action.attribute, action.at, rest // SECTOR, 0 if is_bare else 2, vcn,
        volume.place(action.number) // volume.cluster,
    )  # fmt: skip
    return head + new + action.old
