"""Hosts that share one bucket in memory: real S3Backends and leases, each with a clock to set."""

import math
from collections.abc import Callable, Iterator, Sequence

from store.backends.base import MAX_READ
from store.backends.s3.backend import S3Backend
from store.backends.s3.config import S3Config
from store.backends.s3.http.client import Head, Listed, Page
from store.backends.s3.keys import OURS
from store.backends.s3.locks.leases import Leases
from store.errors import AlreadyExists, NotFound
from store.format.buffer import Buffer

EPOCH_S = 1_767_225_600.0
Hook = Callable[[str, str], None]


class Clock:
    """Seconds, when somebody sets them."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


class Bucket:
    """Objects with the time they were stored, by the server's clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.objects: dict[str, tuple[bytes, float]] = {}

    def time_s(self) -> float:
        return EPOCH_S + self.clock()


class Client:
    """What an S3Client does, one call a request; `before` is told of each and may raise."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket, self.objects = bucket, bucket.objects
        self.before: Hook = lambda kind, key: None
        self.server_time_s = -math.inf
        self.requests: list[tuple[str, str]] = []

    def _request(self, kind: str, key: str) -> None:
        self.requests.append((kind, key))
        self.before(kind, key)
        self.server_time_s = self.bucket.time_s()

    def get(self, key: str, limit: int = MAX_READ) -> bytes:
        self._request("get", key)
        if key not in self.objects:
            raise NotFound(key)
        return self.objects[key][0]

    get_mapped = get

    def get_range(self, key: str, offset: int, size: int) -> bytes:
        return self.get(key)[offset : offset + size]

    def head(self, key: str) -> Head | None:
        self._request("head", key)
        if key not in self.objects:
            return None
        data, stored_s = self.objects[key]
        return Head(len(data), stored_s, "", self.bucket.time_s())

    def head_bucket(self) -> None:
        """It is there."""

    def put(self, key: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        self._request("put", key)
        if if_absent and key in self.objects:
            raise AlreadyExists(key)
        self.objects[key] = (b"".join(parts), self.bucket.time_s())

    def copy(self, old: str, new: str) -> None:
        self.put(new, (self.get(old),))

    def delete(self, key: str) -> None:
        self._request("delete", key)
        self.objects.pop(key, None)

    def delete_many(self, keys: Sequence[str]) -> None:
        self._request("delete", ",".join(keys))
        for key in keys:
            self.objects.pop(key, None)

    def list(
        self, prefix: str, *, after: str = "", delimiter: str = "", page_size: int = 1000
    ) -> Iterator[Page]:
        self._request("list", prefix)
        found, prefixes = [], {}
        for key in sorted(self.objects):
            if key.startswith(prefix) and key > after:
                first, slash, _ = key.removeprefix(prefix).partition(delimiter or "\0")
                if slash:
                    prefixes[prefix + first + delimiter] = None
                else:
                    data, stored_s = self.objects[key]
                    found.append(Listed(key, len(data), stored_s))
        yield Page(found, list(prefixes), self.bucket.time_s())

    def interrupt(self) -> None:
        """No call waits."""

    def close(self) -> None:
        """There are no connections."""


class Host(S3Backend):
    """One host's way to the datastore `ds`; it renews its leases only when it is told to."""

    def __init__(self, bucket: Bucket, clock: Clock | None = None) -> None:
        """`clock`: of the host, where that is not the server's."""
        super().__init__(S3Config("bucket", "ds", access_key="a", secret_key="b"))
        self.fake = Client(bucket)
        self.client = self.fake  # type: ignore[assignment]
        clock = clock or bucket.clock
        self._leases = _Leases(
            self.fake, f"ds/{OURS}/locks/", self.location, clock=clock, sleep=clock.advance
        )


class _Leases(Leases):
    def _start_renewing(self) -> None:
        pass
