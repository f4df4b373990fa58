"""Turns at the processors: never more at once, never lost."""

import threading
from collections.abc import Callable

import pytest

from store.backends import turns
from store.backends.memory import MemoryBackend
from store.backends.turns import Turns, turn_for


def run(count: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_so_many_at_once() -> None:
    two, lock = Turns(2), threading.Lock()
    inside, most = 0, 0
    both_in = threading.Barrier(2)

    def work() -> None:
        nonlocal inside, most
        with two.turn():
            with lock:
                inside += 1
                most = max(most, inside)
            both_in.wait(10)
            with lock:
                inside -= 1

    run(8, work)
    assert (inside, most) == (0, 2)


def test_an_error_gives_the_turn_back() -> None:
    one = Turns(1)
    for _ in range(3):
        with pytest.raises(KeyError), one.turn():
            raise KeyError


def test_a_lost_turn_hangs_nobody_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LONGEST_WAIT_S", 0.01)
    lost = Turns(0)
    with lost.turn():
        pass
    monkeypatch.setattr(turns, "LONGEST_WAIT_S", 1000)
    with lost.turn():
        pass


def test_a_storage_with_as_many_threads_as_processors_needs_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "processors", lambda: 2)
    monkeypatch.setattr(turns, "TURNS", Turns(0))
    monkeypatch.setattr(turns, "LONGEST_WAIT_S", 100)
    backend = MemoryBackend()
    backend.parallelism = 2
    with turn_for(backend):
        pass
