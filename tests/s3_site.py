"""An S3 server behind a faulty proxy, a bucket with any number of datastores, and small backups."""

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

from store.backends.base import Backend
from store.backends.s3.config import S3Config
from store.backends.wrappers.retry import Retry
from store.datastore.archives import SnapshotReader
from store.datastore.chunk_cache import ChunkCache
from store.datastore.datastore import Datastore
from store.names import BackupGroup, Namespace, Snapshot
from store.operations.backup import BackupRequest, BackupSource, run_backup
from store.operations.restore import restore_archive
from tests.s3_proxy import Fault, Proxy, Request, proxy_before
from tests.s3_server import S3Server

ROOT = Namespace()
GROUP = BackupGroup("host", "web01")
DAY = 86400
DAYS = (1, 2, 3)
CHUNK = 64 << 10
READ_TIMEOUT_S = 0.5
RETRY_FOR_S = 20.0

Plan = Callable[[int, Request], Fault | None]


@dataclass
class Site:
    """The server behind its proxy, one bucket, and a source for each of DAYS."""

    server: S3Server
    proxy: Proxy
    bucket: str
    folder: Path
    _numbers: Iterator[int] = field(default_factory=count)

    def new_name(self) -> str:
        """A datastore that nobody has used."""
        return f"store{next(self._numbers)}"

    def config(self, name: str = "", **options: object) -> S3Config:
        """Of a datastore through the proxy, a new one without `name`."""
        direct = self.server.config(self.bucket, name or self.new_name(), connections=4)
        settings = {"endpoint": self.proxy.endpoint, "read_timeout_s": READ_TIMEOUT_S} | options
        return replace(direct, **settings)  # type: ignore[arg-type]

    def break_requests(self, plan: Plan) -> None:
        """From now on; `plan` is told how many requests came before."""
        first = len(self.proxy.requests)
        self.proxy.plan = lambda request: plan(request.number - first, request)

    def heal(self) -> None:
        self.proxy.plan = lambda _: None

    def keys(self, prefix: str) -> list[str]:
        """What is in the bucket, seen past us and past the proxy."""
        pages = self.server.boto3().get_paginator("list_objects_v2")
        found = pages.paginate(Bucket=self.bucket, Prefix=prefix)
        return [one["Key"] for page in found for one in page.get("Contents", ())]

    def back_up(self, store: Datastore, day: int, time: int = 0) -> Snapshot:
        """Back up the sources of a day."""
        sources = (f"root.pxar:{self.folder}/tree{day}", f"disk.img:{self.folder}/disk{day}")
        request = BackupRequest(
            store, ROOT, GROUP, (time or day) * DAY, tuple(map(BackupSource.parse, sources)),
            chunk_size=CHUNK,
        )  # fmt: skip
        run_backup(request)
        return request.snapshot

    def check_restore(self, store: Datastore, what: Snapshot, day: int, scratch: Path) -> None:
        """Restore all of a snapshot: it is what was backed up that day, or a StoreError."""
        target = scratch / "restored"
        try:
            with store.lock_snapshot_shared(ROOT, what):
                reader = SnapshotReader(store, ROOT, what, None, ChunkCache(1 << 20))
                restore_archive(reader, "root.pxar", target)
                restore_archive(reader, "disk.img", target / "disk")
            assert (target / "disk").read_bytes() == (self.folder / f"disk{day}").read_bytes()
            (target / "disk").unlink()
            assert contents(target) == contents(self.folder / f"tree{day}")
        finally:
            shutil.rmtree(target, ignore_errors=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def snapshot(day: int) -> Snapshot:
    return Snapshot(GROUP, day * DAY)


def retried(backend: Backend, retry_for_s: float = RETRY_FOR_S) -> Retry:
    """With pauses for tests."""
    return Retry(backend, retry_for_s=retry_for_s, first_pause_s=0.001, longest_pause_s=0.02)


@contextmanager
def site_before(server: S3Server, folder: Path) -> Iterator[Site]:
    """A site with a bucket of its own; `folder` is for the sources."""
    place, bucket = urlsplit(server.endpoint), server.new_bucket()
    for day in DAYS:
        _make_sources(folder, day)
    server.boto3().put_object(Bucket=bucket, Key="first", Body=b"takes the server seconds")
    with proxy_before(place.hostname or "", place.port or 0) as proxy:
        yield Site(server, proxy, bucket, folder)


def _make_sources(folder: Path, day: int) -> None:
    """A tree of a few chunks and an image of two; each day one chunk of each is another."""
    tree = folder / f"tree{day}"
    tree.mkdir()
    for number in range(6):
        version = day if number == 3 else 0
        (tree / f"{number}").write_bytes(random.Random(10 * number + version).randbytes(40_000))
    (folder / f"disk{day}").write_bytes(bytes([day]) * (4 << 20) + b"the end" * 1000)
