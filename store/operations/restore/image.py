"""Restoring a disk image: to a new file (sparse), onto a block device, or into a pipe.

Workers each take the next stretch, decode it and write it at its own offset: nothing waits for
order, and nothing is copied through a queue. Zero chunks are known by their digest and never
decoded.
"""

import fcntl
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from store.datastore.archives import IndexedStream
from store.errors import OutOfSpace, SourceError
from store.format.buffer import Buffer
from store.operations.restore.problems import target_error
from store.operations.restore.writing import new_file
from store.progress import Progress

BLKZEROOUT = 0x127F

Extent = tuple[int, int, bool]


def restore_image_to_file(
    image: IndexedStream, path: Path, progress: Progress, *, overwrite: bool
) -> None:
    """Write the image to a file that appears when it is complete; zero chunks become holes."""
    with new_file(path, overwrite=overwrite) as file:
        os.ftruncate(file, image.size)
        _restore(image, file, str(path), progress, lambda _offset, _length: None)


def restore_image_to_device(
    image: IndexedStream, path: Path, progress: Progress, *, skip_zeros: bool = False
) -> None:
    """Write the image onto a block device, which nobody else may have mounted.

    skip_zeros: the device is known to be all zeros where the image is.

    Raises:
        OutOfSpace: the device is smaller than the image.
        SourceError: it is in use, or failed; what was written stays.
    """
    try:
        device = os.open(path, os.O_WRONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        raise target_error(error, str(path)) from error
    try:
        size = os.lseek(device, 0, os.SEEK_END)
        if size < image.size:
            raise OutOfSpace(f"{path}: the device has {size} bytes, the image {image.size}")
        zero = (lambda _offset, _length: None) if skip_zeros else _Zeroer(device).zero
        _restore(image, device, str(path), progress, zero)
        os.fsync(device)
    except OSError as error:
        raise target_error(error, str(path)) from error
    finally:
        os.close(device)


def restore_image_to_stream(
    image: IndexedStream, output: BinaryIO, name: str, progress: Progress
) -> None:
    """Write the whole image to a pipe."""
    progress.start(image.size, "B")
    try:
        with image.workers() as workers:
            for piece in image.chunks(workers=workers):
                output.write(piece)
                progress.advance(len(piece))
        output.flush()
    except OSError as error:
        raise target_error(error, name) from error
    finally:
        progress.done()


class _Zeroer:
    """Zeroes stretches of a block device.

    The kernel does it at once, or with writes where it does not know how.
    """

    _BLOCK = bytes(1 << 20)

    def __init__(self, device: int) -> None:
        self._device = device

    def zero(self, offset: int, length: int) -> None:
        try:
            fcntl.ioctl(self._device, BLKZEROOUT, struct.pack("=QQ", offset, length))
        except OSError:  # not whole sectors, or not a device that can
            for start in range(offset, offset + length, len(self._BLOCK)):
                _pwrite_all(self._device, self._BLOCK[: offset + length - start], start)


def _restore(
    image: IndexedStream,
    file: int,
    path: str,
    progress: Progress,
    zero: Callable[[int, int], None],
) -> None:
    """Write every stretch of the image at its offset, in a few threads.

    Raises what the first failing one raised.
    """
    stretches = _Stretches(image)

    def work() -> None:
        try:
            for offset, length, is_zero in stretches:
                if is_zero:
                    zero(offset, length)
                else:
                    _pwrite_all(file, image.view(offset, length), offset)
                    image.passed(offset)
                progress.advance(length)
        except OSError as error:
            raise target_error(error, path) from error
        finally:
            stretches.stop()  # ended or failed: the others need not go on either way

    progress.start(image.size, "B")
    try:
        with image.workers() as workers:
            try:
                workers.run(work)
            finally:
                stretches.stop()  # interrupted: nothing more begins
    finally:
        progress.done()


class _Stretches:
    """An image's chunks and runs of zero chunks, each handed to one of several threads."""

    def __init__(self, image: IndexedStream) -> None:
        self._lock = threading.Lock()
        self._stretches = self._split(image)
        self._stopped = False

    def __iter__(self) -> Iterator[Extent]:
        return self

    def __next__(self) -> Extent:
        with self._lock:
            if self._stopped:
                raise StopIteration
            return next(self._stretches)

    def stop(self) -> None:
        """Hand out no more."""
        self._stopped = True

    @staticmethod
    def _split(image: IndexedStream) -> Iterator[Extent]:
        for offset, length, is_zero in image.extents(0, image.size):
            if is_zero:
                yield offset, length, True
                continue
            end = offset + length
            while offset < end:
                stop = min(end, image.index.range(image.index.position(offset))[1])
                yield offset, stop - offset, False
                offset = stop


def _pwrite_all(file: int, data: Buffer, offset: int) -> None:
    written = os.pwrite(file, data, offset)
    while written < len(data):
        written += os.pwrite(file, memoryview(data)[written:], offset + written)


def is_block_device(path: Path) -> bool:
    """Whether a target is a block device, also through a symlink such as /dev/vg/lv.

    Raises SourceError.
    """
    try:
        return stat.S_ISBLK(path.stat().st_mode)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error
