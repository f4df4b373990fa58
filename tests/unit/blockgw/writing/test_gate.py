"""Who comes in, and who is waited for."""

import threading

import pytest

from blockgw.writing.gate import Gate
from store.errors import BackendError


def test_it_waits_for_who_is_inside() -> None:
    gate, left, inside = Gate(), threading.Event(), threading.Event()
    done: list[str] = []

    def request() -> None:
        with gate:
            inside.set()
            left.wait(10)
            done.append("request")

    def shut() -> None:
        gate.shut()
        done.append("shut")

    threads = [threading.Thread(target=request), threading.Thread(target=shut)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    with pytest.raises(BackendError, match="is ending"):
        come_and_go(gate)  # until the other thread has shut it
    assert done == []
    left.set()
    for thread in threads:
        thread.join(10)
    assert done == ["request", "shut"]


def come_and_go(gate: Gate) -> None:
    while True:
        with gate:
            pass


def test_a_failed_request_has_left() -> None:
    gate = Gate()
    with pytest.raises(OSError, match="full"), gate:
        raise OSError("full")
    gate.shut()
