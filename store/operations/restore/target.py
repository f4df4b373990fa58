"""The directory that a tree is restored into: opened, checked, and what an error leaves of it."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from store.errors import AlreadyExists, FormatError, InvalidName, StoreError
from store.operations.restore.attributes import Attributes
from store.operations.restore.problems import Warnings, target_error
from store.operations.restore.request import RestoreOptions
from store.operations.restore.tree import LOST_AND_FOUND, TreeWriter


@contextmanager
def tree_target(
    target: str | os.PathLike[str], name: str, warnings: Warnings, options: RestoreOptions
) -> Iterator[tuple[TreeWriter, bool]]:
    """Open a directory, absent or empty unless `overwrite`; yields its writer, and if it is new.

    After an error the tree stays as far as it came, and the error says so; it names the archive
    `name`, too.

    Raises InvalidName, AlreadyExists, SourceError, PermissionDenied.
    """
    check_target(target)
    root, created = _open_directory(Path(target), overwrite=options.overwrite)
    attributes = Attributes(warnings, ignore_ownership=options.ignore_ownership)
    writer = TreeWriter(root, attributes, warnings, overwrite=options.overwrite)
    try:
        yield writer, created
    except StoreError as error:
        if isinstance(error, FormatError):  # the decoder does not know which archive it reads
            error.args = (str(error).replace("pxar archive", name, 1),)
        if writer.entries:
            error.args = (f"{error}; {target} holds an incomplete tree",)
        elif created:
            _remove_empty(Path(target))
        raise
    finally:
        writer.close()
        os.close(root)


def check_target(target: str | os.PathLike[str]) -> None:
    """Raise InvalidName for what can be no path."""
    if not os.fspath(target):
        raise InvalidName("the target is empty; name a file or directory")
    try:
        os.lstat(target)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InvalidName(f"target {target}: {error.strerror}") from error


def _open_directory(path: Path, *, overwrite: bool) -> tuple[int, bool]:
    """Open the target of a tree; returns its descriptor and whether it was created now."""
    try:
        created = not path.exists()
        if created:
            path.mkdir(mode=0o700)
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise target_error(error, str(path)) from error
    if not overwrite and set(os.listdir(root)) - {os.fsdecode(LOST_AND_FOUND)}:
        os.close(root)
        raise AlreadyExists(
            f"{path}: the directory is not empty; allow overwriting or name another"
        )
    return root, created


def _remove_empty(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:
        return  # it was not empty: what is in it stays
