"""Every kind of backend, and every wrapper around them: each has to keep the contract."""

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from store.backends.base import Backend
from store.backends.cache.backend import Cache
from store.backends.memory import MemoryBackend
from store.backends.mirror.backend import Mirror
from store.backends.s3.backend import S3Backend
from store.backends.wrappers.limit import Limit
from store.backends.wrappers.retry import Retry
from tests.fakes.clock import FakeClock
from tests.fakes.datastores import bare_backend, nfs_backend
from tests.fakes.faults import Fault, PlannedFaults, seeded_faults
from tests.s3_server import S3Server

Make = Callable[[Path, pytest.FixtureRequest], Backend]


def _memory(_path: Path, _request: pytest.FixtureRequest) -> Backend:
    backend = MemoryBackend()
    backend.create()
    return backend


def _local(path: Path, _request: pytest.FixtureRequest) -> Backend:
    return bare_backend(path / "datastore")


def _nfs(path: Path, _request: pytest.FixtureRequest) -> Backend:
    return nfs_backend(path / "datastore")


@cache
def _bucket(server: S3Server) -> str:
    """One for all: a server makes volumes for each bucket."""
    return server.new_bucket()


def _s3(fixture: str) -> Make:
    numbers = itertools.count()

    def make(_path: Path, request: pytest.FixtureRequest) -> Backend:
        server: S3Server = request.getfixturevalue(fixture)
        backend = S3Backend(server.config(_bucket(server), f"store-{next(numbers)}"))
        backend.create()
        return backend

    return make


def _retry(make: Make) -> Make:
    return lambda path, request: Retry(make(path, request))


def _retry_lost_answers(path: Path, request: pytest.FixtureRequest) -> Backend:
    """Of two calls in five the answer is lost, where the next one's must be the same."""
    clock, lost = FakeClock(), seeded_faults(1, 0.4, [Fault.LOST_ANSWER])

    def plan(number: int, name: str) -> Fault | None:
        return None if name in {"mkdir", "sync"} or "temporary." in name else lost(number, name)

    faulty = PlannedFaults(_memory(path, request), plan, clock)
    return Retry(faulty, clock=clock, wait=clock.wait)


def _limit(make: Make) -> Make:
    rates = {"read_bytes_s": 1e9, "write_bytes_s": 1e9, "requests_s": 1e6}
    return lambda path, request: Limit(make(path, request), **rates)


def _cache(make: Make) -> Make:
    return lambda path, request: Cache(make(path, request), str(path / "cache"), 64 << 20)


def _mirror(make: Make) -> Make:
    return lambda path, request: Mirror(
        make(path / "primary", request), [make(path / "other", request), _memory(path, request)]
    )


BACKENDS = {"memory": _memory, "local": _local, "seaweedfs": _s3("s3_server")}
WRAPPERS = {"retry": _retry, "limit": _limit, "cache": _cache, "mirror": _mirror}
MARKS = {"seaweedfs": [pytest.mark.needs("s3")]}
IMPLEMENTATIONS = [
    *(pytest.param(make, id=name, marks=MARKS.get(name, ())) for name, make in BACKENDS.items()),
    *(
        pytest.param(wrap(make), id=f"{wrapper}-{name}", marks=MARKS.get(name, ()))
        for name, make in BACKENDS.items()
        for wrapper, wrap in WRAPPERS.items()
    ),
    pytest.param(
        _s3("ceph_server"), id="ceph", marks=[pytest.mark.needs("ceph"), pytest.mark.slow]
    ),
    pytest.param(_retry_lost_answers, id="retry-lost-answers", marks=pytest.mark.expect_warnings),
    pytest.param(_cache(_retry(_limit(_local))), id="cache-retry-limit-local"),
]
