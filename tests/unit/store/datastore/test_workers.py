"""Calls that are made at once, where each waits for a network."""

import threading

import pytest

from store.backends.memory import MemoryBackend
from store.backends.patience import current, patience
from store.datastore.workers import Workers, at_once
from store.errors import Locked, NotFound
from tests.fakes.object_store import ObjectStore


@pytest.mark.timeout(20)
def test_an_object_store_is_asked_at_once() -> None:
    """With the patience of who asks."""
    together, heard = threading.Barrier(3), []

    def call() -> None:
        together.wait()
        heard.append(current().seconds)

    with patience(7):
        at_once(ObjectStore(), call, call, call)
    assert heard == [7, 7, 7]


def test_the_first_in_order_is_raised_when_all_have_ended() -> None:
    later, done = threading.Event(), []

    def fail_first() -> None:
        later.wait()
        raise Locked("first")

    def fail_second() -> None:
        later.set()
        raise NotFound("second")

    with pytest.raises(Locked, match="first"):
        at_once(ObjectStore(), fail_first, fail_second, lambda: done.append(1))
    assert done == [1]


def test_a_single_call_is_made_here() -> None:
    threads: list[threading.Thread] = []
    at_once(ObjectStore(), lambda: threads.append(threading.current_thread()))
    at_once(ObjectStore())
    assert threads == [threading.current_thread()]


def test_interrupts_leave_time_to_take_something_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """All calls of other threads end by them, and those that give a lock back should not."""
    polls: list[float] = []
    interrupted: list[int] = []
    ended = threading.Event()
    store = ObjectStore()

    def sleep(seconds: float) -> None:
        polls.append(seconds)
        if len(polls) == 1000:
            ended.set()
        if len(polls) >= 1000:
            threading.Event().wait(0.001)

    monkeypatch.setattr("store.datastore.workers.time.sleep", sleep)
    monkeypatch.setattr(store, "interrupt", lambda: interrupted.append(len(polls)))
    workers, begun = Workers(store, 1, "test"), threading.Event()
    workers.submit(lambda: (begun.set(), ended.wait()))
    begun.wait()
    workers.stop()
    first = [0, 1, 2, 4, 8, 16, 32, 64, 128, 200, 256, 400, 512, 600, 800]
    assert interrupted[: len(first)] == first


def test_a_disk_is_asked_in_order_up_to_the_first_failure() -> None:
    done: list[int] = []

    def fail() -> None:
        raise Locked("held")

    with pytest.raises(Locked, match="held"):
        at_once(MemoryBackend(), lambda: done.append(1), fail, lambda: done.append(2))
    assert done == [1]
