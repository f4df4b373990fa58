"""Bytes and requests come at the rate that was set, after a burst; first come, first served."""

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.backends.memory import MemoryBackend
from store.backends.wrappers.limit import Limit
from store.errors import BackendError, InvalidName, NotFound
from tests.fakes.clock import FakeClock

MIB = 1 << 20


def limited(**options: Any) -> tuple[Limit, FakeClock]:
    """A limit over an empty datastore in memory, by a clock that stands until somebody waits."""
    memory, clock = MemoryBackend(), FakeClock()
    memory.create()
    return Limit(memory, **{"clock": clock, "wait": clock.wait} | options), clock


def test_without_limits_nothing_waits() -> None:
    limit, clock = limited()
    limit.write("a", (bytes(MIB),))
    assert limit.read("a") == bytes(MIB)
    assert clock.waits == []


def test_a_write_is_paid_before_it_happens() -> None:
    limit, clock = limited(write_bytes_s=100, burst_bytes=1000)
    limit.write("a", (bytes(600), bytes(400)))
    assert clock.waits == []
    limit.write("b", (bytes(50),))
    assert clock.waits == [0.5]
    clock.now += 3
    limit.write("c", (bytes(400),))
    assert clock.waits == [0.5, 1.0]


def test_what_is_larger_than_a_burst_waits_for_its_debt() -> None:
    limit, clock = limited(write_bytes_s=100, burst_bytes=1000)
    limit.write("a", (bytes(5000),))
    assert clock.waits == [40.0]
    assert limit.read("a") == bytes(5000)


def test_quiet_time_saves_no_more_than_a_burst() -> None:
    limit, clock = limited(write_bytes_s=100, burst_bytes=1000)
    clock.now += 1e6
    limit.write("a", (bytes(1100),))
    assert clock.waits == [1.0]


READ_ARGUMENTS: dict[str, tuple[object, ...]] = {
    "read_into": (memoryview(bytearray(9999)),),
    "read_range": (0, 9999),
}


@pytest.mark.parametrize("read", ["read", "read_into", "map", "read_range"])
def test_a_read_is_paid_by_the_one_after_it(read: str) -> None:
    limit, clock = limited(read_bytes_s=100, burst_bytes=1000)
    limit.write("a", (bytes(1500),))
    arguments = READ_ARGUMENTS.get(read, ())
    assert len(getattr(limit, read)("a", *arguments)) == 1500
    assert clock.waits == []
    getattr(limit, read)("a", *arguments)
    assert clock.waits == [5.0]


def test_a_read_of_nothing_costs_no_bytes() -> None:
    limit, clock = limited(read_bytes_s=1)
    for _ in range(3):
        with pytest.raises(NotFound):
            limit.read("a")
    assert clock.waits == []


def test_directions_are_apart() -> None:
    limit, clock = limited(read_bytes_s=100, write_bytes_s=100, burst_bytes=1000)
    limit.write("a", (bytes(1000),))
    limit.read("a")
    assert clock.waits == []


def test_a_burst_is_a_second_and_a_chunk_at_least() -> None:
    limit, clock = limited(write_bytes_s=MIB)
    limit.write("a", (bytes(16 * MIB),))
    assert clock.waits == []
    limit, clock = limited(write_bytes_s=20 * MIB)
    limit.write("a", (bytes(20 * MIB),))
    assert clock.waits == []
    limit.write("a", (bytes(MIB),))
    assert clock.waits == [0.05]


def test_a_temporary_file_is_paid_when_it_gets_its_name() -> None:
    limit, clock = limited(write_bytes_s=100, burst_bytes=100, requests_s=1)
    file = limit.create_temporary("a", "a.tmp", 150)
    file.map()[:4] = b"head"
    file.write(bytes(50))
    file.write_at(0, b"HEAD")
    assert clock.waits == []
    file.commit()
    assert clock.waits == [1.0]
    limit.create_temporary("b", "b.tmp").discard()
    assert clock.waits == [1.0]


CALLS: dict[str, Callable[[Limit], object]] = {
    "status": lambda limit: limit.status(),
    "read": lambda limit: limit.read("a"),
    "read_into": lambda limit: limit.read_into("a", memoryview(bytearray(9))),
    "read_range": lambda limit: limit.read_range("a", 0, 1),
    "map": lambda limit: limit.map("a"),
    "write": lambda limit: limit.write("b", (b"",)),
    "commit": lambda limit: limit.create_temporary("c", "c.tmp").commit(),
    "stat": lambda limit: limit.stat("a"),
    "touch": lambda limit: limit.touch("a"),
    "rename": lambda limit: limit.rename("a", "a"),
    "delete": lambda limit: limit.delete("a"),
    "scan": lambda limit: limit.scan(""),
    "subdirectories": lambda limit: limit.subdirectories("", "mark"),
    "walk": lambda limit: list(limit.walk("")),
    "mkdir": lambda limit: limit.mkdir("d"),
    "rmdir": lambda limit: limit.rmdir("d"),
    "remove_tree": lambda limit: limit.remove_tree("d"),
    "lock": lambda limit: limit.lock("a", (), exclusive=True),
    "lock_store": lambda limit: limit.lock_store(),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_call_is_a_request(call: str) -> None:
    limit, clock = limited(requests_s=2)
    limit.inner.write("a", (b"1",))
    for _ in range(2):
        limit.stat("a")
    assert clock.waits == []
    CALLS[call](limit)
    assert clock.waits == [0.5]


@pytest.mark.parametrize(("names", "requests"), [(0, 1), (999, 1), (1000, 2), (1001, 2), (2500, 3)])
def test_a_walk_costs_a_request_for_each_thousand(names: int, requests: int) -> None:
    """And one to see that there are no more, as on S3, when the last thousand is whole."""
    limit, clock = limited(requests_s=1)
    limit.inner.mkdir("d")
    for number in range(names):
        limit.inner.write(f"d/{number:04}", ())
    assert len([*limit.walk("d")]) == names
    assert clock.waits == [1.0] * (requests - 1)
    clock.now += 1
    clock.waits.clear()
    assert len(limit.scan("d")) == names
    limit.stat("d")
    assert clock.waits == [max(1, -(-names // 1000))]


def test_first_come_first_served() -> None:
    """A small write that comes later does not pass a large one."""
    waits: list[float] = []

    def wait(_: threading.Event, seconds: float) -> bool:
        waits.append(seconds)
        if len(waits) < 3:  # meanwhile another thread comes
            limit.write("b", (bytes(10),))
        return False

    limit, _ = limited(write_bytes_s=10, burst_bytes=10, wait=wait)
    limit.write("a", (bytes(1000),))
    assert waits == [99.0, 100.0, 101.0]


@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(0, 5000)), max_size=40),
    st.integers(1, 1000),
    st.integers(1, 3000),
)
def test_no_stretch_of_time_has_more_than_its_rate_and_a_burst(
    writes: list[tuple[float, int]], rate: int, burst: int
) -> None:
    limit, clock = limited(write_bytes_s=rate, burst_bytes=burst)
    done = [(0.0, 0)]
    for pause, size in writes:
        clock.now += pause
        limit.write("a", (bytes(size),))
        done.append((clock.now, size))
    for first, last in itertools.combinations(range(len(done)), 2):
        sent = sum(size for _, size in done[first + 1 : last + 1])
        largest = max(size for _, size in done[first + 1 : last + 1])
        seconds = done[last][0] - done[first][0]
        assert sent <= seconds * rate + max(burst, largest) + 1e-3


@pytest.mark.parametrize("how", ["interrupt", "close"])
def test_an_interrupt_ends_the_waiting_and_takes_nothing(how: str) -> None:
    waiting = threading.Semaphore(0)

    def wait(event: threading.Event, _: float) -> bool:
        waiting.release()
        return event.wait(60)

    limit, _ = limited(write_bytes_s=10, burst_bytes=10, requests_s=1000, wait=wait)
    errors: list[BackendError] = []

    def write() -> None:
        try:
            limit.write("a", (bytes(1000),))
        except BackendError as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert waiting.acquire(timeout=10)
    getattr(limit, how)()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert [error.retryable for error in errors] == [False] * 4
    assert limit.stat("a") is None
    limit.write("a", (bytes(10),))  # the burst is whole: this one does not wait
    assert not waiting.acquire(blocking=False)


@pytest.mark.parametrize(
    "wrong", [{"read_bytes_s": 0}, {"requests_s": -1}, {"write_bytes_s": 1, "burst_bytes": 0}]
)
def test_a_limit_of_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidName, match="more than 0"):
        limited(**wrong)
