"""Calls that are made at once, where each waits for a network."""

import threading

import pytest

from store.backends.memory import MemoryBackend
from store.backends.patience import current, patience
from store.datastore.workers import at_once
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


def test_a_disk_is_asked_in_order_up_to_the_first_failure() -> None:
    done: list[int] = []

    def fail() -> None:
        raise Locked("held")

    with pytest.raises(Locked, match="held"):
        at_once(MemoryBackend(), lambda: done.append(1), fail, lambda: done.append(2))
    assert done == [1]
