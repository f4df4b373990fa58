"""Every kind of backend, and every wrapper around them: each has to keep the contract."""

from collections.abc import Callable
from pathlib import Path

import pytest

from store.backends.base import Backend
from store.backends.cache import Cache
from store.backends.limit import Limit
from store.backends.memory import MemoryBackend
from store.backends.mirror import Mirror
from store.backends.retry import Retry
from tests.fakes.clock import FakeClock
from tests.fakes.datastores import bare_backend
from tests.fakes.faults import Fault, PlannedFaults, seeded_faults

Make = Callable[[Path, pytest.FixtureRequest], Backend]


def _memory(_path: Path, _request: pytest.FixtureRequest) -> Backend:
    backend = MemoryBackend()
    backend.create()
    return backend


def _local(path: Path, _request: pytest.FixtureRequest) -> Backend:
    return bare_backend(path / "datastore")


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


BACKENDS = {"memory": _memory, "local": _local}
WRAPPERS = {"retry": _retry, "limit": _limit, "cache": _cache, "mirror": _mirror}
IMPLEMENTATIONS = [
    *(pytest.param(make, id=name) for name, make in BACKENDS.items()),
    *(
        pytest.param(wrap(make), id=f"{wrapper}-{name}")
        for name, make in BACKENDS.items()
        for wrapper, wrap in WRAPPERS.items()
    ),
    pytest.param(_retry_lost_answers, id="retry-lost-answers"),
    pytest.param(_cache(_retry(_limit(_local))), id="cache-retry-limit-local"),
]
