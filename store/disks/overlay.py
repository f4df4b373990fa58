"""A writable view of a stream: what is written stays in here, and is thrown away at the end.

A file system that was in use when it was copied must be repaired before it is shown, and repairing
writes. What is written is plaintext of a guest, so it is kept in memory within a budget; past it,
in a file without a name whose blocks are encrypted with a key that nobody ever sees. All overlays
of a process share one budget for these files: a guest that writes for ever fills its share of it,
and not the disk.
"""

import os
import secrets
import tempfile
from pathlib import Path
from threading import Lock
from weakref import finalize

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

from store.disks.ranges import Ranges
from store.errors import FormatError, OutOfSpace
from store.format.buffer import Buffer, ReadAt

BLOCK = 4096
ZERO = bytes(BLOCK)
# What a block that only says "zeros" costs in the table.
ENTRY_COST = 128
# So many blocks of zeros, 1 MiB, are one entry. It is taken even if there is no memory left for it:
# a disk has not so many.
LONG = 256
MEMORY = 64 << 20
VAR_TMP = Path("/var/tmp")  # noqa: S108 - the file in it has no name
# One overlay's share of what all of them have: a large journal is 1 GiB, that of XFS 2 GiB.
SHARE = 2 << 30


class Budget:
    """How many bytes all overlays of a process may put into files. Thread-safe."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._lock = Lock()

    def take(self, size: int) -> bool:
        """Whether there are as many left, which are then gone."""
        with self._lock:
            fits = size <= self._left
            self._left -= size if fits else 0
            return fits

    def give_back(self, size: int) -> None:
        """They are there again."""
        with self._lock:
            self._left += size


SPILL = Budget(4 << 30)


class Overlay:
    """`base`, with what was written to it. Thread-safe; sizes and offsets in bytes.

    Args:
        base: what is read where nothing was written.
        memory: how much of what is written stays in memory.
        share: how much more may go into the encrypted file.
        spill: how much may go into those of all overlays that have this budget.
    """

    def __init__(
        self, base: ReadAt, memory: int = MEMORY, share: int = SHARE, spill: Budget = SPILL
    ) -> None:
        self.size = base.size
        self._base = base
        self._memory, self._used = memory, 0
        self._blocks: dict[int, bytes | int] = {}  # by number: the bytes, or the place in the file
        self._zeroed = Ranges()  # where `_blocks` says nothing
        self._spilled = _SpillFile(share, spill)
        self._lock = Lock()

    def close(self) -> None:
        """Forget everything that was written."""
        with self._lock:
            self._blocks.clear()
            self._zeroed.clear()
            self._spilled.close()

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`. Raises FormatError past the end."""
        self._check(offset, size)
        if not size:
            return b""
        first, last = offset // BLOCK, (offset + size - 1) // BLOCK
        with self._lock:
            written = {
                number: self._plain(number)
                for number in range(first, last + 1)
                if self._is_written(number)
            }
        if len(written) == last - first + 1:
            whole = b"".join(written.values())
            return whole[offset - first * BLOCK :][:size]
        data = self._base.read(offset, size)
        return _patched(data, offset, written) if written else data

    def write(self, offset: int, data: Buffer) -> None:
        """Raises FormatError past the end, OutOfSpace when the budgets are used up."""
        view = memoryview(data)
        self._check(offset, len(view))
        with self._lock:
            while view:
                number, skip = divmod(offset, BLOCK)
                piece = view[: BLOCK - skip]
                self._put(number, self._merged(number, skip, piece))
                view, offset = view[len(piece) :], offset + len(piece)

    def zero(self, offset: int, size: int) -> None:
        """Write zeros; long stretches of them cost next to nothing, in time and in memory."""
        self._check(offset, size)
        first, last = -(-offset // BLOCK), (offset + size) // BLOCK
        if last - first < LONG:
            self.write(offset, bytes(size))
            return
        self.write(offset, bytes(first * BLOCK - offset))
        with self._lock:
            self._forget(first, last)
            self._used -= len(self._zeroed) * ENTRY_COST
            self._zeroed.add(first, last)
            self._used += len(self._zeroed) * ENTRY_COST
        self.write(last * BLOCK, bytes(offset + size - last * BLOCK))

    def _forget(self, first: int, last: int) -> None:
        """What was written to the blocks from `first` up to `last`."""
        if last - first < len(self._blocks):
            numbers = [number for number in range(first, last) if number in self._blocks]
        else:
            numbers = [number for number in self._blocks if first <= number < last]
        for number in numbers:
            block = self._blocks.pop(number)
            if isinstance(block, int):
                self._spilled.free(block)
            else:
                self._used -= _cost(block)

    def _is_written(self, number: int) -> bool:
        return number in self._blocks or number in self._zeroed

    def _merged(self, number: int, skip: int, piece: memoryview) -> bytes:
        """The whole of a block after `piece` is written into it; the stream's last is padded."""
        if len(piece) == BLOCK:
            return ZERO if piece == ZERO else bytes(piece)
        if self._is_written(number):
            old = self._plain(number)
        else:
            start = number * BLOCK
            old = self._base.read(start, min(BLOCK, self.size - start)).ljust(BLOCK, b"\0")
        return old[:skip] + bytes(piece) + old[skip + len(piece) :]

    def _put(self, number: int, block: bytes) -> None:
        old = self._blocks.get(number)
        if isinstance(old, int):
            self._spilled.write(old, block)
            return
        used = self._used - _cost(old) + _cost(block)
        if used <= self._memory:
            self._blocks[number], self._used = block, used
        else:
            self._blocks[number] = self._spilled.add(block)
            self._used -= _cost(old)

    def _plain(self, number: int) -> bytes:
        block = self._blocks.get(number, ZERO)
        return self._spilled.read(block) if isinstance(block, int) else block

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise FormatError(f"{size} bytes at {offset} reach past the disk's end ({self.size})")


def _cost(block: bytes | None) -> int:
    if block is None:
        return 0
    return ENTRY_COST if block is ZERO else ENTRY_COST + BLOCK


def _patched(data: bytes, offset: int, written: dict[int, bytes]) -> bytes:
    """`data`, which lies at `offset`, with the blocks that were written put over it."""
    patched = bytearray(data)
    for number, block in written.items():
        start = number * BLOCK - offset
        skip = max(0, -start)
        end = min(len(patched), start + BLOCK)
        patched[start + skip : end] = block[skip : end - start]
    return bytes(patched)


class _SpillFile:
    """Encrypted blocks by place, in a file without a name. AES-256-XTS, a block is a data unit."""

    def __init__(self, limit: int, budget: Budget) -> None:
        self._limit = limit // BLOCK
        self._opened: _Opened | None = None
        self._budget = budget
        self._closer: finalize[[], _SpillFile] | None = None
        self._key = secrets.token_bytes(64)
        self._free: list[int] = []

    def free(self, place: int) -> None:
        """What is there is not needed any more."""
        self._free.append(place)

    def add(self, block: bytes) -> int:
        if self._free:
            place = self._free.pop()
            self.write(place, block)
            return place
        file = self._open()
        if file.blocks >= self._limit or not self._budget.take(BLOCK):
            raise OutOfSpace("the overlay over a disk is full: too much is written to it")
        file.blocks += 1
        self.write(file.blocks - 1, block)
        return file.blocks - 1

    def write(self, place: int, block: bytes) -> None:
        encryptor = self._cipher(place).encryptor()
        os.pwrite(
            self._open().descriptor, encryptor.update(block) + encryptor.finalize(), place * BLOCK
        )

    def read(self, place: int) -> bytes:
        decryptor = self._cipher(place).decryptor()
        block = os.pread(self._open().descriptor, BLOCK, place * BLOCK)
        return decryptor.update(block) + decryptor.finalize()

    def close(self) -> None:
        if self._closer is not None:
            self._closer()
        self._opened = None
        self._free.clear()

    def _open(self) -> "_Opened":
        if self._opened is None:
            self._opened = _Opened(self._budget)
            self._closer = finalize(self, self._opened.close)
        return self._opened

    def _cipher(self, place: int) -> Cipher[XTS]:
        return Cipher(AES(self._key), XTS(place.to_bytes(16, "little")))


class _Opened:
    """The file, and how many blocks of the budget are in it: it lives until nobody reads in it."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self.blocks = budget, 0
        with tempfile.TemporaryFile(prefix="vaultway-overlay-", dir=_place()) as file:
            self.descriptor = os.dup(file.fileno())

    def close(self) -> None:
        os.close(self.descriptor)
        self._budget.give_back(self.blocks * BLOCK)


def _place() -> Path | None:
    """On a disk: the usual place for temporary files is in memory on many machines."""
    if "TMPDIR" not in os.environ and os.access(VAR_TMP, os.W_OK | os.X_OK):
        return VAR_TMP
    return None
