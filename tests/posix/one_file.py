"""One file beaten in every way, beside the bytes it ought to have."""

import mmap
import os
import random
from collections import deque
from pathlib import Path

from tests.posix import calls

MOST = 256 * 1024
MODES = ("mapped", "direct", "synchronous", "reopened", "image", "shared image")
"""Through the page cache and maps; with a second descriptor that goes past them; each write durable
when it returns; closed and opened again all the time; an image, which the kernel never keeps; the
same with others who only read it or write it, and come and go."""

IMAGES = ("image", "shared image")
ONLY_IN = {
    "do_direct_read": ("direct",), "do_direct_write": ("direct",),
    "do_reopen": ("reopened", "shared image"), "do_grow": IMAGES,
    "do_others_read": ("shared image",), "do_others_write": ("shared image",),
    "do_come_and_go": ("shared image",),
}  # fmt: skip
NOT_OF_IMAGES = ("do_map", "do_truncate")
OTHERS = (os.O_RDONLY, os.O_WRONLY)
RARE = {"do_sync": 0.05, "do_collapse": 0.1}


class OneFile:
    """A file and its model. Raises AssertionError where they differ."""

    def __init__(self, path: Path, seed: int, mode: str = "mapped") -> None:
        self._random = random.Random(seed)
        self._path, self._mode = path, mode
        self._truth = bytearray()
        self._done: deque[str] = deque(maxlen=30)
        self._flags = os.O_RDWR | os.O_CREAT
        if mode == "synchronous":
            self._flags |= os.O_DSYNC
        self._open()

    def _open(self) -> None:
        """Who is the first of them says whether a writable mount's images are cached."""
        is_shared = self._mode == "shared image"
        kinds = [self._flags, *(OTHERS if is_shared else ())]
        found = {kind: self._opened(kind) for kind in self._random.sample(kinds, len(kinds))}
        self._descriptor = found.pop(self._flags)
        self._others = found
        is_direct = self._mode == "direct"
        self._direct = self._opened(self._flags | os.O_DIRECT) if is_direct else -1

    def _opened(self, flags: int) -> int:
        return os.open(self._path, flags | os.O_CREAT)

    def steps(self, count: int) -> None:
        """Take so many: each is one call at least."""
        kinds = [name for name in dir(self) if name.startswith("do_") and self._has(name)]
        weights = [RARE.get(name, 1) for name in kinds]
        for name in self._random.choices(kinds, weights, k=count):
            self._done.append(name)
            getattr(self, name)()

    def _has(self, kind: str) -> bool:
        is_image = self._mode in IMAGES
        return self._mode in ONLY_IN.get(kind, MODES) and not (is_image and kind in NOT_OF_IMAGES)

    def close(self) -> None:
        self.check()
        self._close()

    def _close(self) -> None:
        for descriptor in (self._descriptor, *self._others.values()):
            os.close(descriptor)
        if self._direct >= 0:
            os.close(self._direct)

    def reopen(self) -> None:
        """After a seal, a remount."""
        self._open()
        self.check()

    def check(self) -> None:
        """All of it."""
        self._same(os.pread(self._descriptor, MOST * 2, 0), self._truth)

    def _same(self, found: bytes, truth: bytes | bytearray) -> None:
        if found != truth:
            pairs = zip(found, truth, strict=False)
            first = next((n for n, (a, b) in enumerate(pairs) if a != b), "the end")
            raise AssertionError(f"{len(found)}/{len(truth)} from {first}: {[*self._done]}")

    def _range(self) -> tuple[int, int]:
        start = self._random.randrange(MOST)
        return start, self._random.randrange(1, min(65_537, MOST - start + 1))

    def _grow(self, size: int) -> None:
        self._truth.extend(bytes(max(0, size - len(self._truth))))

    def do_read(self) -> None:
        start, size = self._range()
        self._same(os.pread(self._descriptor, size, start), self._truth[start : start + size])

    def do_others_read(self) -> None:
        start, size = self._range()
        found = os.pread(self._others[os.O_RDONLY], size, start)
        self._same(found, self._truth[start : start + size])

    def do_write(self) -> None:
        self._write(self._descriptor)

    def do_others_write(self) -> None:
        self._write(self._others[os.O_WRONLY])

    def _write(self, descriptor: int) -> None:
        start, size = self._range()
        data = self._random.randbytes(size)
        assert os.pwrite(descriptor, data, start) == size
        self._grow(start)
        self._truth[start : start + size] = data

    def do_come_and_go(self) -> None:
        kind = self._random.choice(OTHERS)
        os.close(self._others[kind])
        self._others[kind] = self._opened(kind)

    def do_small_write(self) -> None:
        start, data = self._random.randrange(MOST - 50), self._random.randbytes(50)
        os.pwrite(self._descriptor, data, start)
        self._grow(start)
        self._truth[start : start + 50] = data

    def do_truncate(self) -> None:
        size = self._random.randrange(MOST)
        os.ftruncate(self._descriptor, size)
        del self._truth[size:]
        self._grow(size)

    def do_grow(self) -> None:
        """What an image does instead: it does not shrink."""
        size = self._random.randrange(MOST)
        if size < len(self._truth):
            assert calls.outcome(os.ftruncate, self._descriptor, size) == "EINVAL"
        else:
            os.ftruncate(self._descriptor, size)
            self._grow(size)

    def do_reopen(self) -> None:
        self._close()
        self._open()

    def do_map(self) -> None:
        if not self._truth:
            self.do_truncate()
            return
        start, size = self._range()
        start %= len(self._truth)
        size = min(size, len(self._truth) - start)
        data = self._random.randbytes(size)
        with mmap.mmap(self._descriptor, len(self._truth)) as shared:
            self._same(shared[start : start + size], self._truth[start : start + size])
            shared[start : start + size] = data
            if self._random.random() < 0.5:
                shared.flush()
        self._truth[start : start + size] = data

    def do_punch(self) -> None:
        start, size = self._range()
        calls.fallocate(self._descriptor, calls.PUNCH_HOLE | calls.KEEP_SIZE, start, size)
        self._zero(start, start + size)

    def _zero(self, start: int, end: int) -> None:
        end = min(end, len(self._truth))
        if start < end:
            self._truth[start:end] = bytes(end - start)

    def do_zero(self) -> None:
        start, size = self._range()
        keep = self._random.choice((0, calls.KEEP_SIZE))
        calls.fallocate(self._descriptor, calls.ZERO_RANGE | keep, start, size)
        if not keep:
            self._grow(start + size)
        self._zero(start, start + size)

    def do_allocate(self) -> None:
        start, size = self._range()
        os.posix_fallocate(self._descriptor, start, size)
        self._grow(start + size)

    def do_collapse(self) -> None:
        for kind in (calls.COLLAPSE_RANGE, calls.INSERT_RANGE):
            assert calls.outcome(calls.fallocate, self._descriptor, kind, 0, 4096) == "ENOTSUP"

    def do_copy(self) -> None:
        start, size = self._range()
        target = self._random.randrange(MOST)
        size = min(size, MOST - target)
        arguments = (self._descriptor, self._descriptor, size, start, target)
        left = min(size, max(0, len(self._truth) - start))
        if start < target + left and target < start + left:
            assert calls.outcome(os.copy_file_range, *arguments) == "EINVAL"
            return
        copied = os.copy_file_range(*arguments)
        assert bool(copied) == bool(left)
        data = self._truth[start : start + copied]
        if copied:
            self._grow(target)
        self._truth[target : target + copied] = data

    def do_sync(self) -> None:
        os.fsync(self._descriptor)

    def do_direct_read(self) -> None:
        start = self._random.randrange(0, MOST, 4096)
        buffer = mmap.mmap(-1, 16384)
        found = os.preadv(self._direct, [buffer], start)
        self._same(buffer[:found], self._truth[start : start + 16384])

    def do_direct_write(self) -> None:
        start = self._random.randrange(0, MOST, 4096)
        buffer = mmap.mmap(-1, 8192)
        buffer[:] = data = self._random.randbytes(8192)
        os.pwritev(self._direct, [buffer], start)
        self._grow(start)
        self._truth[start : start + 8192] = data
