"""Waiting for the next request: in turns, and never in the way of what else is going on."""

import os
from collections.abc import Iterator

import pyfuse3
import pytest
import trio
import trio.testing

from fsgateway import waiting
from fsgateway.bridge import Bridge
from fsgateway.waiting import TURNS, Activity, TurnLock, short_waits


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


class Steps:
    """Counts the passes through the scheduler that another task gets meanwhile."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self) -> None:
        while True:
            self.count += 1
            await trio.lowlevel.checkpoint()


def scheduled_meanwhile(activity: Activity, descriptor: int, waits: int) -> int:
    steps = Steps()

    async def wait() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(steps)
            await trio.lowlevel.checkpoint()
            waiting = vars(pyfuse3)["trio"].lowlevel
            await waiting.wait_readable(descriptor)  # the first is trio's
            steps.count = 0
            for _ in range(waits):
                await waiting.wait_readable(descriptor)
            nursery.cancel_scope.cancel()

    with short_waits(activity):
        trio.run(wait)
    return steps.count


def test_what_is_there_is_taken_at_once(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    assert scheduled_meanwhile(Activity(), pipe[0], TURNS) == 0


def test_others_have_their_turn(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    assert 1 <= scheduled_meanwhile(Activity(), pipe[0], 3 * TURNS) <= TURNS


def test_requests_answered_directly_are_turns(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    os.write(pipe[1], b"x")
    monkeypatch.setattr(waiting, "directly_taken", lambda: TURNS // 2)
    assert scheduled_meanwhile(Activity(), pipe[0], 6) >= 2


def test_what_else_is_going_on_comes_first(pipe: tuple[int, int]) -> None:
    activity = Activity()
    os.write(pipe[1], b"x")
    with activity.one_more():
        assert scheduled_meanwhile(activity, pipe[0], TURNS) >= TURNS // 2


def test_what_is_not_there_is_waited_for(pipe: tuple[int, int]) -> None:
    async def wait() -> None:
        waiting = vars(pyfuse3)["trio"].lowlevel
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(trio.to_thread.run_sync, os.write, pipe[1], b"x")
                await waiting.wait_readable(pipe[0])
                assert os.read(pipe[0], 1) == b"x"

    with short_waits(Activity()):
        trio.run(wait)


def test_pyfuse3_sees_trio_again_afterwards() -> None:
    with short_waits(Activity()):
        seen = vars(pyfuse3)["trio"]
        assert seen is not trio
        assert seen.ClosedResourceError is trio.ClosedResourceError
        assert seen.lowlevel.notify_closing is trio.lowlevel.notify_closing
    assert vars(pyfuse3)["trio"] is trio


def test_calls_in_threads_count() -> None:
    bridge = Bridge()

    async def call() -> None:
        assert await bridge.run(lambda: bridge.activity.count) == 1
        assert bridge.activity.count == 0
        with pytest.raises(ZeroDivisionError):
            await bridge.run(lambda: 1 / 0)
        assert bridge.activity.count == 0

    trio.run(call)


def test_a_task_counts_before_it_begins() -> None:
    """And no longer when it ends, however it does."""
    activity, seen = Activity(), []

    async def work(result: int) -> None:
        await trio.lowlevel.checkpoint()
        seen.append((activity.count, 1 // result))

    async def main(result: int) -> None:
        async with trio.open_nursery() as nursery:
            activity.starting(nursery.start_soon)(work, result)
            assert activity.count == 1

    trio.run(main, 1)
    assert (seen, activity.count) == ([(1, 1)], 0)
    with pytest.raises(ExceptionGroup):
        trio.run(main, 0)
    assert activity.count == 0


def test_one_at_a_time_and_nobody_is_forgotten() -> None:
    """Many take the lock over and over."""
    holders, taken = [], [0] * 8

    async def take(lock: TurnLock, number: int) -> None:
        for _ in range(50):
            async with lock:
                assert not holders
                holders.append(number)
                if number % 2:
                    await trio.lowlevel.checkpoint()
                taken[number] += 1
                holders.pop()
            await trio.lowlevel.checkpoint()

    async def main() -> None:
        lock = TurnLock()
        async with trio.open_nursery() as nursery:
            for number in range(len(taken)):
                nursery.start_soon(take, lock, number)

    trio.run(main)
    assert taken == [50] * len(taken)


def test_who_is_cancelled_while_waiting_hands_the_call_on() -> None:
    order = []

    async def wait(lock: TurnLock, name: str, scope: trio.CancelScope) -> None:
        with scope:
            async with lock:
                order.append(name)

    async def main() -> None:
        lock, first, second = TurnLock(), trio.CancelScope(), trio.CancelScope()
        async with trio.open_nursery() as nursery:
            async with lock:
                nursery.start_soon(wait, lock, "first", first)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(wait, lock, "second", second)
                await trio.testing.wait_all_tasks_blocked()
            first.cancel()
            with trio.fail_after(5):
                await trio.testing.wait_all_tasks_blocked()

    trio.run(main)
    assert order[-1] == "second"
