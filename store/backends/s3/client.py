"""The S3 operations a datastore is made of, one request each."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from store.backends.s3.config import S3Config
from store.format.buffer import Buffer

PAGE_SIZE = 1000


class Listed(NamedTuple):
    """One object of a listing: bytes, and seconds since the epoch on the server's clock."""

    key: str
    size: int
    modified_s: float


class Page(NamedTuple):
    """One answer of a listing; `server_time_s` is its Date header."""

    objects: list[Listed]
    prefixes: list[str]
    server_time_s: float


class Head(NamedTuple):
    """What HEAD says of an object; times as in Listed and Page, `etag` without its quotes."""

    size: int
    modified_s: float
    etag: str
    server_time_s: float


class S3Client:
    """One bucket. Thread-safe. Keys are whole keys: `<datastore>/...`.

    Nothing is retried. Every method raises BackendError, PermissionDenied or OutOfSpace, with one
    line that names bucket and key.
    """

    def __init__(self, config: S3Config) -> None:
        """Connects on the first request."""
        self.config = config

    def get(self, key: str) -> bytes:
        """The whole object, checked against its length and ETag. Raises NotFound."""
        raise NotImplementedError

    def get_range(self, key: str, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`, fewer at the end of the object. Raises NotFound."""
        raise NotImplementedError

    def head(self, key: str) -> Head | None:
        """What is known of the object; None when there is none."""
        raise NotImplementedError

    def put(self, key: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        """Store one object from `parts`. `if_absent`: raises AlreadyExists when it is there."""
        raise NotImplementedError

    def delete(self, key: str) -> None:
        """Remove one object; nothing happens when there is none."""
        raise NotImplementedError

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove objects, a thousand a request where the provider can."""
        raise NotImplementedError

    def list(
        self, prefix: str, *, after: str = "", delimiter: str = "", page_size: int = PAGE_SIZE
    ) -> Iterator[Page]:
        """The objects whose keys start with `prefix`, in order of key, from behind the key `after`.

        Lazy: a request for each page. With `delimiter`, keys that hold it behind the prefix come
        as one entry of `prefixes`.
        """
        raise NotImplementedError

    def copy(self, old: str, new: str) -> None:
        """Copy an object within the bucket. Raises NotFound."""
        raise NotImplementedError

    def interrupt(self) -> None:
        """Make the requests of other threads end soon, with BackendError; later ones work."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the connections."""
        raise NotImplementedError
