"""From settings to an open datastore: its storage, and the wrappers that were asked for."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path

from store.backends.base import Backend, storage_error
from store.backends.chunks import CHUNKS
from store.backends.patience import patience
from store.datastore.datastore import Datastore
from store.errors import BackendError, NotFound, StoreError
from store.progress import SILENT, Progress
from store.repositories.credentials import with_secrets
from store.repositories.options import (
    DEFAULT_CACHE_BYTES,
    DEFAULT_OPEN_FOR_S,
    DEFAULT_RETRY_FOR_S,
)
from store.repositories.pbs_host import find_datastore
from store.repositories.repository_url import parse_url
from store.repositories.settings import RepositorySettings

Beside = Callable[[Backend], AbstractContextManager[object]]

OPEN_SITE_S = 10.0
"""How long a site of a mirror is tried until it counts as away."""


def open_datastore(repository: str | RepositorySettings, beside: Beside = nullcontext) -> Datastore:
    """Open an existing datastore.

    Args:
        repository: its settings, or just where it is (`parse_url`).
        beside: entered while a storage is opened that takes a request for it, to read from it
            meanwhile, past the cache. Not with mirrors.
    Raises:
        InvalidName: not a repository, or settings that can't be.
        NotFound: there is no datastore.
        PermissionDenied, BackendError: the storage says so.
    """
    settings = _settings(repository)
    backend = open_backend(settings, beside)
    try:
        return Datastore(_name(settings), backend, settings.memory_bytes)
    except BaseException:
        backend.close()
        raise


def create_datastore(repository: str | RepositorySettings, progress: Progress = SILENT) -> None:
    """Make a new datastore in an empty or missing directory, or in a bucket; not its mirrors.

    `progress` counts directories; on a disk they take seconds.
    An interrupted call leaves something that is no datastore yet; the next call finishes it.

    Raises:
        AlreadyExists: there is one.
        InvalidName: the directory holds something else; or as `open_datastore`.
        PermissionDenied, OutOfSpace, BackendError.
    """
    settings = with_secrets(_settings(repository))
    if settings.directory is None:
        from store.backends.s3.backend import create_s3

        create_s3(settings.s3_config(), lambda backend: _wrap(backend, settings))
        return
    backend = local_backend(settings.directory)
    backend.create(progress)
    backend.close()


def open_backend(settings: RepositorySettings, beside: Beside = nullcontext) -> Backend:
    """`Cache(Mirror(site, sites))`, without what was not asked for. As `open_datastore`."""
    settings = with_secrets(settings)
    with ExitStack() as opened:
        if settings.mirrors:
            backend = _open_mirror(settings, opened)
        else:
            backend = _open_site(settings, beside)
        opened.callback(backend.close)
        if settings.cache_directory is not None:
            from store.backends.cache.backend import Cache

            budget = settings.cache_bytes or DEFAULT_CACHE_BYTES
            directory = str(settings.cache_directory)
            backend = Cache(backend, directory, budget, identity=settings.identity)
        opened.pop_all()
        return backend


def _open_mirror(settings: RepositorySettings, opened: ExitStack) -> Backend:
    """All sites; those that are away are opened later. Raises when there is none."""
    from store.backends.mirror.backend import Mirror
    from store.backends.mirror.late import Late

    sites: list[Backend] = []
    errors: list[StoreError] = []
    for one in (settings, *settings.mirrors):
        try:
            site = _open_site_soon(one)
        except (NotFound, BackendError) as error:
            if isinstance(error, BackendError) and not error.retryable:
                raise
            errors.append(error)
            reopen = partial(_open_site_soon, one)
            site = Late(one.url, reopen, error, is_object_store=one.directory is None)
        opened.callback(site.close)
        sites.append(site)
    if len(errors) == len(sites):
        raise errors[0]
    retry_for_s = max(_retry_for_s(one) for one in (settings, *settings.mirrors))
    mirror = Mirror(sites[0], sites[1:], retry_for_s=retry_for_s)
    opened.pop_all()
    return mirror


def _open_site_soon(settings: RepositorySettings) -> Backend:
    """One site, if it can be reached and holds a datastore: a disk may not be mounted."""
    with patience(OPEN_SITE_S):
        backend = _open_site(settings)
        try:
            if backend.stat(CHUNKS) is None:
                raise NotFound(f"{backend.location} is not a datastore: it has no {CHUNKS}")
        except BaseException:
            backend.close()
            raise
    return backend


def _open_site(settings: RepositorySettings, beside: Beside = nullcontext) -> Backend:
    """One storage, wrapped."""
    if settings.directory is not None:
        return _wrap(_open_local(settings.directory), settings)
    from store.backends.s3.backend import open_s3

    return open_s3(settings.s3_config(), lambda backend: _wrap(backend, settings), beside)


def _wrap(backend: Backend, settings: RepositorySettings) -> Backend:
    """`Retry(Limit(storage))`: limits hold for what is repeated, too."""
    if settings.has_limits:
        from store.backends.wrappers.limit import Limit

        backend = Limit(
            backend,
            read_bytes_s=settings.read_bytes_s or None,
            write_bytes_s=settings.write_bytes_s or None,
            burst_bytes=settings.burst_bytes or None,
            requests_s=settings.requests_s or None,
        )
    retry_for_s = _retry_for_s(settings)
    if retry_for_s:
        from store.backends.wrappers.retry import Retry

        open_for_s = DEFAULT_OPEN_FOR_S if settings.retry_for_s is None else None
        backend = Retry(backend, retry_for_s=retry_for_s, open_for_s=open_for_s)
    return backend


def _retry_for_s(settings: RepositorySettings) -> float:
    """Where it is not asked for: where every call may fail."""
    if settings.retry_for_s is not None:
        return settings.retry_for_s
    return DEFAULT_RETRY_FOR_S if settings.directory is None else 0.0


def _open_local(path: Path) -> Backend:
    try:
        if not path.exists():
            raise NotFound(f"{path} does not exist")
    except OSError as error:
        raise storage_error(error, str(path)) from error
    return local_backend(path)


def local_backend(path: Path) -> Backend:
    """The storage in a directory, there or not: the one place where such a backend is made.

    Read-only on an NFS mount whose locks do not reach other hosts.
    """
    from store.backends.local.nfs import NfsBackend, open_directory

    known = find_datastore(str(path))
    backend = open_directory(str(path), pbs_lock_directory=known.lock_directory if known else None)
    if isinstance(backend, NfsBackend) and backend.why_no_locks:
        from store.backends.wrappers.read_only import ReadOnly

        return ReadOnly(backend, backend.why_no_locks)
    return backend


def _settings(repository: str | RepositorySettings) -> RepositorySettings:
    return RepositorySettings(parse_url(repository)) if isinstance(repository, str) else repository


def _name(settings: RepositorySettings) -> str:
    """What a PBS on this machine calls it, or the last part of the place."""
    if settings.directory is None:
        return settings.url.rpartition("/")[2]
    known = find_datastore(str(settings.directory))
    return known.name if known else settings.directory.resolve().name
