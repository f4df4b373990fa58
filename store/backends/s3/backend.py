"""A datastore in a bucket, in PBS's layout, without any local copy."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from store.backends.base import Backend, Listed, Lock, ObjectStat, OneCopy, Space, Walked
from store.backends.chunks import max_read
from store.backends.s3.config import S3Config
from store.backends.s3.http.client import S3Client
from store.backends.s3.keys import CHUNKS, IN_USE, OURS, Keys, check_name, is_namespaces
from store.backends.s3.locks.leases import Leases
from store.backends.s3.marker import foreign_holder, make_marker
from store.backends.s3.temporary import S3TemporaryFile
from store.backends.s3_settings import S3_SCHEME
from store.backends.wrappers.read_only import ReadOnly
from store.errors import AlreadyExists, NotFound
from store.format.blob import encode_blob_parts
from store.format.buffer import Buffer
from store.progress import SILENT, Progress

Wrap = Callable[[Backend], Backend]
Beside = Callable[[Backend], AbstractContextManager[object]]
DIRECTORY = ObjectStat(0, 0, 0, is_directory=True, is_regular=False)
NO_SIZE = Space(0, 0, 0)
STORE_LOCK = ".lock"
TEST_CHUNK = bytes(4 << 20)
"""What a PBS puts into every new datastore, to try it."""


class _Subdirectory(NamedTuple):
    name: str
    is_marked: bool


class S3Backend(OneCopy):
    """A Backend in a bucket. See store.backends.base for what each method promises.

    Directories are there while something is in them; namespaces also by their marker. Nothing is
    retried here.
    """

    is_object_store = True

    def __init__(self, config: S3Config) -> None:
        """Connects with the first call.

        Raises InvalidName (profile, endpoint, CA file), PermissionDenied (no credentials).
        """
        self.location = f"{S3_SCHEME}{config.bucket}/{config.datastore}"
        self.parallelism = config.connections
        self._config = config
        self.client = S3Client(config)
        self._keys = Keys(config.datastore)
        self._leases = Leases(self.client, f"{self._keys.root}{OURS}/locks/", self.location)
        self._is_datastore = self._is_creating = False

    def __repr__(self) -> str:
        return f"S3Backend({self.location!r})"

    def create(self, progress: Progress = SILENT) -> None:
        """Make the datastore in a bucket that exists: its marker, and PBS's test chunk.

        A call that failed may be repeated: what it made is known again.
        """
        self.client.head_bucket()
        if not self._is_creating and self._any(self._keys.root):
            raise AlreadyExists(f"{self.location}: there are objects already")
        in_doubt, self._is_creating = self._is_creating, True
        marker = make_marker()
        try:
            self._put(self._keys.in_use, (marker,), exclusive=True)
        except AlreadyExists:
            if not in_doubt or self.client.get(self._keys.in_use) != marker:
                raise
        digest = hashlib.sha256(TEST_CHUNK).hexdigest()
        self.write(f"{CHUNKS}/{digest[:4]}/{digest}", encode_blob_parts(TEST_CHUNK))
        self._is_datastore = True

    def status(self) -> Space:
        return NO_SIZE

    def read(self, name: str) -> bytes:
        data = self.client.get(self._keys.key(name), max_read(name))
        self._is_datastore = self._is_datastore or name == IN_USE
        return data

    def read_into(self, name: str, room: memoryview) -> Buffer:
        return self.client.get_into(self._keys.key(name), room, max_read(name))

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        return self.client.get_range(self._keys.key(name), offset, size)

    def map(self, name: str) -> Buffer:
        return self.client.get_mapped(self._keys.key(name))

    def write(
        self, name: str, parts: Sequence[Buffer], *, exclusive: bool = False, durable: bool = False
    ) -> None:
        self._put(self._keys.key(name), parts, exclusive=exclusive)

    def _put(self, key: str, parts: Sequence[Buffer], *, exclusive: bool = False) -> None:
        """Without conditions a look comes first: then the locks alone keep two writers apart."""
        conditional = self._config.conditional_put
        if exclusive and not conditional and self.client.head(key) is not None:
            raise AlreadyExists(f"{S3_SCHEME}{self._config.bucket}/{key}: exists")
        self.client.put(key, parts, if_absent=exclusive and conditional)

    def create_temporary(self, name: str, temporary: str, size: int = 0) -> S3TemporaryFile:
        key = self._keys.key(name)
        return S3TemporaryFile(lambda parts: self.client.put(key, parts), size)

    def stat(self, name: str) -> ObjectStat | None:
        if name in ("", CHUNKS):
            return DIRECTORY if self._exists() else None
        head = self.client.head(self._keys.key(name))
        if head is not None:
            time_ns = int(head.modified_s * 1e9)
            return ObjectStat(head.size, time_ns, time_ns)
        return DIRECTORY if self._any(self._keys.prefix(name)) else None

    def _exists(self) -> bool:
        """Whether there is a datastore; what was found once is not asked again."""
        self._is_datastore = self._is_datastore or self._any(self._keys.root)
        return self._is_datastore

    def _any(self, prefix: str) -> bool:
        return bool(next(self.client.list(prefix, page_size=1)).objects)

    def touch(self, name: str) -> int | None:
        head = self.client.head(self._keys.key(name))
        return None if head is None else head.size

    def rename(self, old: str, new: str) -> None:
        self.client.copy(self._keys.key(old), self._keys.key(new))
        self.client.delete(self._keys.key(old))

    def delete(self, name: str) -> None:
        key = self._keys.key(name)
        if self.client.head(key) is None:  # a deletion does not tell
            raise NotFound(f"{S3_SCHEME}{self._config.bucket}/{key}: no such object")
        self.client.delete(key)

    def scan(self, name: str) -> list[Listed]:
        """As promised, but for this: SeaweedFS lists directories for minutes after they are empty.

        A group without objects has no snapshot, and nobody minds; namespaces are looked into.
        """
        found: dict[str, bool] = {}
        for prefix in self._keys.listings(name):
            for page in self.client.list(prefix, delimiter="/"):
                keys = [(one.key, False) for one in page.objects]
                keys += [
                    (key.removesuffix("/"), True)
                    for key in page.prefixes
                    if not is_namespaces(name) or self._any(key)
                ]
                for key, is_directory in keys:
                    below = self._below(name, key)
                    if below is not None:
                        found[below] = is_directory
        return [Listed(*one) for one in found.items()]

    def _below(self, directory: str, key: str) -> str | None:
        """The name of a listed object from `directory` on; None for what has none."""
        name = self._keys.name(key)
        if name is None or not directory:
            return name
        return name.removeprefix(f"{directory}/")

    def subdirectories(self, name: str, mark: str) -> list[_Subdirectory]:
        found: dict[str, bool] = {}
        for one in self.walk(name):
            directory, slash, rest = one.name.partition("/")
            if slash:
                found[directory] = found.get(directory, False) or rest == mark
        return [_Subdirectory(*one) for one in found.items()]

    def walk(self, name: str, after: str = "") -> Iterator[Walked]:
        prefix = self._keys.prefix(name)
        start = "" if not after else prefix + after if name else self._keys.place(after)
        for page in self.client.list(prefix, after=start):
            for one in page.objects:
                below = self._below(name, one.key)
                if below is not None:
                    yield Walked(below, one.size)

    def mkdir(self, name: str, *, durable: bool = False) -> bool:
        marker = self._keys.marker(check_name(name))
        if marker is not None:
            try:
                self._put(marker, (), exclusive=True)
            except AlreadyExists:
                return False
        return True

    def rmdir(self, name: str) -> bool:
        marker = self._keys.marker(check_name(name))
        page = next(self.client.list(self._keys.prefix(name), page_size=2))
        keys = [one.key for one in page.objects]
        if any(key != marker for key in keys):
            return False
        self.client.delete_many(keys)
        return True

    def remove_tree(self, name: str) -> None:
        check_name(name)
        for page in self.client.list(self._keys.prefix(name)):
            self.client.delete_many([one.key for one in page.objects])

    def sync(self) -> None:
        """What a server has acknowledged it keeps."""

    def lock(
        self, name: str, lock_names: Sequence[str], *, exclusive: bool, timeout_s: float = 0
    ) -> Lock:
        return self._leases.acquire(check_name(name), exclusive=exclusive, timeout_s=timeout_s)

    def forget_lock(self, lock_names: Sequence[str]) -> None:
        """PBS keeps none in a bucket; ours go when they are released."""

    def lock_store(self, *, exclusive: bool = False) -> Lock:
        return self._leases.acquire(STORE_LOCK, exclusive=exclusive)

    def interrupt(self) -> None:
        self.client.interrupt()

    def close(self) -> None:
        self._leases.close()
        self.client.close()


def open_s3(
    config: S3Config, wrap: Wrap = lambda backend: backend, beside: Beside = nullcontext
) -> Backend:
    """The backend of a datastore, read-only while a PBS holds it, unless told to take it over.

    Costs one request, through the wrappers that `wrap` puts around it. Meanwhile the backend is in
    `beside`, which may read from it. Raises as S3Backend; that there is a datastore is not checked.
    """
    backend = wrap(S3Backend(config))
    try:
        with beside(backend):
            holder = _find_holder(backend)
    except BaseException:
        backend.close()
        raise
    if holder is None or config.take_over:
        return backend
    return ReadOnly(backend, f"{holder}; when no PBS does any more, open it with --take-over")


def _find_holder(backend: Backend) -> str | None:
    """Why not to write. None when we may."""
    try:
        return foreign_holder(backend.read(IN_USE))
    except NotFound:
        return None


def create_s3(config: S3Config, wrap: Wrap = lambda backend: backend) -> None:
    """Make an empty datastore in a bucket, through the wrappers that `wrap` puts around it.

    Raises NotFound (no such bucket), AlreadyExists (there are objects of that name).
    """
    backend = wrap(S3Backend(config))
    try:
        backend.create()
    finally:
        backend.close()
