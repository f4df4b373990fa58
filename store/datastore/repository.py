"""From what a user writes as a repository to an open datastore (design: section 2)."""

import re
from pathlib import Path

from store.backends.base import storage_error
from store.backends.local_nfs import open_directory
from store.datastore.datastore import Datastore
from store.datastore.pbs_host import find_datastore
from store.errors import InvalidName, NotFound
from store.progress import SILENT, Progress

FILE_SCHEME = "file://"
SCHEME = re.compile(r"([a-z][a-z0-9+.\-]*)://")


def open_datastore(repository: str) -> Datastore:
    """Open an existing datastore.

    Args:
        repository: `/path` or `file:///path`; also a relative path with a `/` or a leading `.`.
    Raises:
        InvalidName: not a repository, or one of a kind that does not work yet.
        NotFound: there is no datastore.
        PermissionDenied, BackendError: the storage says so.
    """
    path = local_path(repository)
    try:
        if not path.exists():
            raise NotFound(f"{path} does not exist")
    except OSError as error:
        raise storage_error(error, str(path)) from error
    known = find_datastore(str(path))
    backend = open_directory(str(path), pbs_lock_directory=known.lock_directory if known else None)
    return Datastore(known.name if known else path.resolve().name, backend)


def create_datastore(repository: str, progress: Progress = SILENT) -> Datastore:
    """Make a new datastore in an empty or missing directory, and open it.

    `progress` counts directories; on a disk they take seconds.
    An interrupted call leaves something that is no datastore yet; the next call finishes it.

    Raises:
        AlreadyExists: there is one.
        InvalidName: the directory holds something else; or as `open_datastore`.
        PermissionDenied, OutOfSpace, BackendError.
    """
    path = local_path(repository)
    backend = open_directory(str(path))
    backend.create(progress)
    backend.close()
    return open_datastore(repository)


def local_path(repository: str) -> Path:
    """The directory a repository means. Raises InvalidName."""
    if repository.startswith(FILE_SCHEME):
        path = Path(repository.removeprefix(FILE_SCHEME))
        if not path.is_absolute():
            raise InvalidName(f"repository {repository!r}: write it as file:///path")
        return path
    scheme = SCHEME.match(repository)
    if scheme:
        raise InvalidName(
            f"repository {repository!r}: {scheme[1]} is not supported yet; use a directory"
        )
    if repository.startswith((".", "/")) or ("/" in repository and ":" not in repository):
        return Path(repository).absolute()
    if not repository:
        raise InvalidName("no repository given; set --repository or PBS_REPOSITORY")
    raise InvalidName(
        f"repository {repository!r}: servers and configured names are not supported yet; use /path"
    )
