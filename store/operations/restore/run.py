"""Restoring one archive of a snapshot: the one function that callers need."""

import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from store.datastore.archives import IndexedStream, SnapshotReader
from store.errors import InvalidName
from store.operations.arenas import share_arenas
from store.operations.browse.contents import archive_name
from store.operations.restore.archive import TreeRestore
from store.operations.restore.image import (
    is_block_device,
    restore_image_to_device,
    restore_image_to_file,
    restore_image_to_stream,
)
from store.operations.restore.problems import Warnings, target_error
from store.operations.restore.request import AS_USUAL, RestoreOptions, RestoreResult
from store.operations.restore.selection import Selection
from store.operations.restore.target import check_target, tree_target
from store.operations.restore.writing import new_file, write_all

STDOUT = "-"
Target = str | os.PathLike[str] | BinaryIO


def restore_archive(
    reader: SnapshotReader,
    archive: str,
    target: Target,
    options: RestoreOptions = AS_USUAL,
    *,
    patterns: Sequence[str] = (),
) -> RestoreResult:
    """Restore one archive.

    Args:
        reader: of the snapshot, with its key. archive: `root.pxar`, `drive-scsi0.img`,
        `qemu-server.conf`; the names of their files (`….didx`) do as well. target: for a tree, a
        directory: absent (it is created) or empty, unless `overwrite`. For an image or blob, a
            file that does not exist unless `overwrite`, a block device, a binary stream, or "-" for
            standard output.
        patterns: of a tree, only what these take (see selection.py); its parents come along with
        their metadata.

    Raises:
        NotFound: no such archive, or nothing in it matches. InvalidName: a target or option that
        this kind of archive cannot have. AlreadyExists: something is in the way. SourceError,
        PermissionDenied, OutOfSpace: the target's side; names the path. FormatError,
        IntegrityError, KeyRequired, …: the datastore's side; names the archive, and the path if
        known.

    After an error or an interruption no half file is left under a whole one's name. A tree stays as
    far as it came, and the error says so; what was written to a device stays.
    """
    share_arenas()
    name = archive_name(reader, archive)
    if name.endswith(".pxar"):
        return _restore_tree(reader, name, target, options, patterns)
    if patterns:
        raise InvalidName(f"{name}: patterns are for trees (.pxar) only")
    if name.endswith(".img"):
        image = reader.open_image(name)
        _restore_image(image, target, options)
        return RestoreResult(name, str(target), 1, image.size, 0)
    blob = reader.read_blob(name)
    _restore_blob(blob, target, overwrite=options.overwrite)
    return RestoreResult(name, str(target), 1, len(blob), 0)


def _restore_tree(
    reader: SnapshotReader,
    name: str,
    target: Target,
    options: RestoreOptions,
    patterns: Sequence[str],
) -> RestoreResult:
    if target == STDOUT or not isinstance(target, str | os.PathLike):
        raise InvalidName(f"{name}: a tree needs a directory to be restored to, not a stream")
    selection = Selection(patterns) if patterns else None
    warnings, progress = Warnings(options.on_warning), options.progress
    metadata, payload = reader.open_streams(name)
    with (
        tree_target(target, name, warnings, options) as (writer, created),
        metadata.workers() as workers,
    ):
        progress.start(None if selection else (payload or metadata).size, "B")
        try:
            restore = TreeRestore(
                writer, workers, warnings, progress, lambda: reader.open_tree(name), selection
            )
            if selection:
                restore.restore_selected(apply_root=created)
            else:
                restore.restore_all(metadata, payload)
        finally:
            progress.done()
    return RestoreResult(name, str(target), writer.entries, writer.bytes, warnings.count)


def _restore_image(image: IndexedStream, target: Target, options: RestoreOptions) -> None:
    progress = options.progress
    stream = _as_stream(target)
    if stream is not None:
        restore_image_to_stream(image, stream, "output", progress)
        return
    path = _as_path(target)
    if is_block_device(path):
        restore_image_to_device(image, path, progress, skip_zeros=options.skip_zeros)
    elif _is_stream_file(path):
        with _open_stream_file(path) as output:
            restore_image_to_stream(image, output, str(path), progress)
    else:
        restore_image_to_file(image, path, progress, overwrite=options.overwrite)


def _restore_blob(blob: bytes, target: Target, *, overwrite: bool) -> None:
    stream = _as_stream(target)
    if stream is not None:
        _write_stream(stream, blob, "output")
        return
    path = _as_path(target)
    if is_block_device(path):
        raise InvalidName(f"{path}: a block device is a target for images only")
    if _is_stream_file(path):
        with _open_stream_file(path) as output:
            _write_stream(output, blob, str(path))
        return
    with new_file(path, overwrite=overwrite) as file:
        write_all(file, blob)


def _write_stream(output: BinaryIO, data: bytes, name: str) -> None:
    try:
        output.write(data)
        output.flush()
    except OSError as error:
        raise target_error(error, name) from error


def _as_stream(target: Target) -> BinaryIO | None:
    if target == STDOUT:
        return sys.stdout.buffer
    return None if isinstance(target, str | os.PathLike) else target


def _as_path(target: Target) -> Path:
    """The file itself, where a symlink names it: it is replaced, not the link.

    A pipe behind /dev/stdout has no other name. Raises InvalidName for a directory.
    """
    assert isinstance(target, str | os.PathLike)
    check_target(target)
    path = Path(target) if _is_stream_file(Path(target)) else Path(os.path.realpath(target))
    if path.is_dir():
        raise InvalidName(f"{target}: is a directory; name a file in it")
    return path


def _is_stream_file(path: Path) -> bool:
    """Whether the target is a pipe or character device, such as /dev/stdout or /dev/null."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


@contextmanager
def _open_stream_file(path: Path) -> Iterator[BinaryIO]:
    """Closing writes what could not be written once more, and fails once more."""
    try:
        with path.open("wb") as output:
            yield output
    except OSError as error:
        raise target_error(error, str(path)) from error
