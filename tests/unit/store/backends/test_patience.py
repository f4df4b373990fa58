"""How long failing calls are repeated, where what they are part of knows better."""

import threading

import pytest

from store.backends import patience
from store.backends.memory import MemoryBackend
from store.backends.wrappers.retry import Retry
from store.errors import BackendError, Locked
from tests.fakes.clock import FakeClock

pytestmark = pytest.mark.expect_warnings  # of what is tried for long


class Failing(MemoryBackend):
    """Every read fails; with `hangs`, not before it is interrupted."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.hangs = False
        self._interrupted = threading.Event()

    def read(self, name: str) -> bytes:
        self.calls += 1
        if self.hangs:
            self._interrupted.wait()
        raise BackendError("down", retryable=True)

    def interrupt(self) -> None:
        self._interrupted.set()


@pytest.fixture
def backend() -> Failing:
    return Failing()


def retry(backend: Failing, clock: FakeClock) -> Retry:
    return Retry(backend, clock=clock, wait=clock.wait)


def test_nothing_begins_when_a_lock_is_lost(backend: Failing) -> None:
    clock = FakeClock()

    def check() -> None:
        if clock.now > 120:
            raise Locked("lost")

    with patience.while_held(check), pytest.raises(Locked, match="lost"):
        retry(backend, clock).read("x")
    assert 120 < clock.now <= 150
    calls = backend.calls
    with patience.while_held(check), pytest.raises(Locked, match="lost"):
        retry(backend, clock).read("x")
    assert backend.calls == calls


def test_in_a_hurry_one_failure_is_enough(backend: Failing) -> None:
    clock = FakeClock()
    with patience.in_a_hurry(backend):
        for _ in range(3):
            with pytest.raises(BackendError, match="down"):
                retry(backend, clock).read("x")
    assert (backend.calls, clock.waits) == (1, [])
    with pytest.raises(BackendError, match="tried"):
        retry(backend, clock).read("x")


def test_in_a_hurry_what_hangs_is_interrupted(
    backend: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "HURRY_S", 0.01)
    backend.hangs = True
    with patience.in_a_hurry(backend), pytest.raises(BackendError, match="down"):
        retry(backend, FakeClock()).read("x")
    assert backend.calls == 1


def test_other_threads_have_theirs(backend: Failing) -> None:
    clock = FakeClock()
    with patience.in_a_hurry(backend):
        thread = threading.Thread(target=lambda: _try(retry(backend, clock)))
        thread.start()
        thread.join()
    assert clock.now > 200


def _try(backend: Retry) -> None:
    with pytest.raises(BackendError, match="tried"):
        backend.read("x")
