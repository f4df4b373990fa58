"""All that is to be known to open a repository."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from store.backends.base import storage_error
from store.backends.s3_settings import S3_SCHEME, S3Settings
from store.datastore.memory import DEFAULT_MEMORY
from store.datastore.xdg import cache_home
from store.errors import InvalidName, PermissionDenied
from store.repositories import option_kinds as kinds
from store.repositories.options import (
    BY_NAME,
    OPTIONS,
    SECRET_FORMS,
    Given,
    Repository,
    label,
)
from store.repositories.secret_sources import check_private

if TYPE_CHECKING:
    from store.backends.s3.config import S3Config


@dataclass(frozen=True, slots=True)
class RepositorySettings(S3Settings):
    """A repository with all that is to be known to open it.

    Bytes, seconds, bytes and requests a second.

    Attributes:
        url: an absolute path, or `s3://bucket/datastore`.
        name: in the configuration, if it has one.
        cache, cache_bytes: where chunks are kept, None for the usual place; 0 is no cache.
        mirrors: other sites. What they say of caches, memory, keys and namespaces means nothing.
        memory_bytes: how much of chunks a command keeps in memory, decoded or on their way.
    """

    url: str
    name: str | None = None
    secret_key_file: Path | None = None
    secret_key_cmd: str | None = None
    retry_for_s: float | None = None
    read_bytes_s: int | None = None
    write_bytes_s: int | None = None
    burst_bytes: int | None = None
    requests_s: int | None = None
    cache: Path | None = None
    cache_bytes: int | None = None
    mirrors: tuple["RepositorySettings", ...] = ()
    memory_bytes: int = DEFAULT_MEMORY
    keyfile: Path | None = None
    namespace: str | None = None

    @property
    def directory(self) -> Path | None:
        """Where a local datastore is; None in a bucket."""
        return None if self.url.startswith(S3_SCHEME) else Path(self.url)

    @property
    def cache_directory(self) -> Path | None:
        """Where its chunks are kept; None: nowhere."""
        if self.cache is not None and self.cache_bytes != 0:
            return self.cache
        return cache_home() / "chunks" if self.cache_bytes else None

    @property
    def identity(self) -> str:
        """What tells it from all others: two servers may have buckets of one name."""
        return f"{self.endpoint} {self.url}" if self.endpoint else self.url

    @property
    def has_limits(self) -> bool:
        """Whether any rate is limited; 0 is no limit."""
        return bool(self.read_bytes_s or self.write_bytes_s or self.requests_s)

    def directories(self) -> Iterator[Path]:
        """All on this machine that is read to read it."""
        for site in (self, *self.mirrors):
            if site.directory is not None:
                yield site.directory
        if self.cache_directory is not None:
            yield self.cache_directory

    def s3_config(self) -> "S3Config":
        """For a bucket. Raises InvalidName."""
        from store.backends.s3.config import S3Config

        bucket, datastore = S3Config.parse_url(self.url)
        said = {one.name: getattr(self, one.name) for one in fields(S3Settings)}
        return S3Config(bucket, datastore, **said)

    def encode(self) -> dict[str, Any]:
        """As JSON: by name the texts of options that are not as usual, secrets included."""
        values = ((option, getattr(self, option.field)) for option in OPTIONS)
        texts = {
            option.name: option.kind.format(value)
            for option, value in values
            if value != option.default and option.kind is not kinds.LIST
        }
        mirrors = [mirror.encode() for mirror in self.mirrors]
        return {"url": self.url, "name": self.name, "options": texts, "mirrors": mirrors}

    @classmethod
    def decode(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of `encode`."""
        options = {
            BY_NAME[name].field: BY_NAME[name].kind.read(text)
            for name, text in record["options"].items()
        }
        mirrors = tuple(map(cls.decode, record["mirrors"]))
        return cls(record["url"], record["name"], mirrors=mirrors, **options)


def make_settings(
    repository: Repository, mirrors: tuple[RepositorySettings, ...] = ()
) -> RepositorySettings:
    """The settings that a repository's options add up to.

    Raises InvalidName: they don't go together.
    """
    options, url = applicable(repository), repository.url.value
    for option, given in options.items():
        for other in sorted(BY_NAME[option].excludes & options.keys()):
            raise InvalidName(f"{given.origin}: {option} and {other} exclude each other")
    secrets = sorted(SECRET_FORMS & options.keys())
    if bool(secrets) != ("access-key" in options):
        there, missing = (secrets[0], "access-key") if secrets else ("access-key", "secret-key")
        what = f"{label(there, options[there])} without {missing}"
        raise InvalidName(f"{what}; give both or neither")
    said = {BY_NAME[option].field: given.value for option, given in options.items()}
    return RepositorySettings(url, repository.name, **{**said, "mirrors": mirrors})


def applicable(repository: Repository) -> dict[str, Given]:
    """Its options without those said of all repositories that mean nothing for a directory.

    Raises InvalidName: one was said of this directory.
    """
    url = repository.url.value
    meaningless = {n: g for n, g in repository.options.items() if not BY_NAME[n].applies_to(url)}
    for name, given in meaningless.items():
        if not given.is_general:
            what = label(name, given)
            raise InvalidName(f"{what} is for s3://… only, and {url} is a directory")
    return {n: given for n, given in repository.options.items() if n not in meaningless}


def check_files(repository: Repository, *names: str) -> None:
    """See whether the files that its options name are of use: those of `names`, or all.

    Raises NotFound, PermissionDenied (unreadable, or a secret that others can read),
    InvalidName (no certificates), BackendError.
    """
    for name, given in applicable(repository).items():
        if BY_NAME[name].kind is kinds.FILE and (not names or name in names):
            _check_file(name, given.value, f"{label(name, given)} {given.value}")


def _check_file(name: str, path: Path, what: str) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise storage_error(error, what) from error
    if not os.access(path, os.R_OK):
        raise PermissionDenied(f"{what}: cannot be read")
    if name == "secret-key-file":
        check_private(status, what)
    elif name == "ca-file":
        _check_certificates(path, what)


def _check_certificates(path: Path, what: str) -> None:
    import ssl

    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:
        raise InvalidName(f"{what}: has no certificates in PEM") from error
