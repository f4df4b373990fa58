"""Restoring a part of a tree, or of a disk: from any directory of any FileTree."""

import os
from collections.abc import Sequence
from pathlib import Path

from store.datastore.archives import SnapshotReader
from store.datastore.memory import Memory
from store.datastore.workers import Workers, worker_count
from store.errors import InvalidName
from store.format.chunker import AVERAGE
from store.format.pxar.entries import EntryKind
from store.operations.arenas import share_arenas
from store.operations.browse.cat import read_file
from store.operations.browse.contents import IMAGE, INSIDE, SnapshotContents, spot_of
from store.operations.restore.archive import TreeRestore
from store.operations.restore.problems import Warnings
from store.operations.restore.request import AS_USUAL, RestoreOptions, RestoreResult
from store.operations.restore.run import STDOUT, restore_archive
from store.operations.restore.selection import Everything, Selection, Takes
from store.operations.restore.target import check_target, tree_target
from store.operations.restore.writing import new_file, write_all
from store.trees.base import FileTree
from store.trees.paths import Spot


def restore_tree(
    reader: SnapshotReader,
    tree: FileTree,
    top: Spot,
    target: str,
    selection: Takes,
    options: RestoreOptions = AS_USUAL,
    *,
    name: str,
) -> RestoreResult:
    """Restore what a selection takes below a directory of a tree.

    Args:
        reader: the snapshot that the tree is from.
        top: the directory that becomes `target`; the paths of the selection begin there.
        name: of the archive, for messages.

    Raises as `restore_archive`; NotFound also when nothing is taken.
    """
    share_arenas()
    if target == STDOUT:
        raise InvalidName(f"{name}: a tree needs a directory to be restored to, not a stream")
    if top.entry.kind is not EntryKind.DIRECTORY:
        raise InvalidName(f"{name}: what is restored as a tree must be a directory")
    warnings, progress = Warnings(options.on_warning), options.progress
    with (
        tree_target(target, name, warnings, options) as (writer, created),
        _workers(reader) as workers,
    ):
        progress.start(None, "B")
        try:
            TreeRestore(
                writer,
                workers,
                warnings,
                progress,
                lambda: tree,
                selection,
                top=top.entry,
                base=top.path,
            ).restore_selected(apply_root=created)
        finally:
            progress.done()
    return RestoreResult(name, target, writer.entries, writer.bytes, warnings.count)


def restore_path(
    contents: SnapshotContents,
    path: str,
    target: str,
    options: RestoreOptions = AS_USUAL,
    *,
    patterns: Sequence[str] = (),
) -> RestoreResult:
    """Restore an archive or, in one, a directory into a directory or a file's content into a file.

    The arguments, and what it raises: `restore_archive`.
    """
    if "/" not in path.strip("/") and not path.endswith(f"{IMAGE}{INSIDE}"):
        archive = path.strip("/")
        return restore_archive(contents.reader, archive, target, options, patterns=patterns)
    place = contents.locate(path)
    assert place.tree is not None
    spot = spot_of(place)
    if spot.entry.kind is EntryKind.DIRECTORY:
        return restore_tree(
            contents.reader,
            place.tree,
            spot,
            target,
            Selection(patterns) if patterns else Everything(),
            options,
            name=place.archive,
        )
    if patterns:
        raise InvalidName(f"{place}: is a file, patterns are for directories")
    size = _restore_file(contents, path, target, overwrite=options.overwrite)
    return RestoreResult(place.archive, target, 1, size, 0)


def _restore_file(contents: SnapshotContents, path: str, target: str, *, overwrite: bool) -> int:
    if target == STDOUT:
        raise InvalidName(f"{path}: `snapshot cat` writes files to standard output")
    check_target(target)
    if os.path.isdir(target):
        raise InvalidName(f"{target}: is a directory; name a file in it")
    size = 0
    with new_file(Path(target), overwrite=overwrite) as file:
        for piece in read_file(contents, path):
            write_all(file, piece)
            size += len(piece)
    return size


def _workers(reader: SnapshotReader) -> Workers:
    """Threads that read long files ahead, as many as the storage and the memory are good for."""
    backend = reader.datastore.chunks.backend
    return Workers(backend, worker_count(backend, Memory.of(reader.datastore), AVERAGE), "restore")
