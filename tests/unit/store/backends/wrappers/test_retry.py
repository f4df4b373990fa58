"""Which calls are made again, when, for how long, and what the second attempt's answer means."""

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from store.backends.memory import MemoryBackend
from store.backends.wrappers.retry import Retry
from store.errors import AlreadyExists, BackendError, NotFound, OutOfSpace, StoreError
from tests.fakes.clock import FakeClock
from tests.fakes.faults import RETRY_AFTER_S, Fault, Plan, PlannedFaults

pytestmark = pytest.mark.expect_warnings  # of what takes long

DONE_AND_LOST = [Fault.LOST_ANSWER]
NOT_DONE = [Fault.GLITCH]


def longest(_: float, high: float) -> float:
    return high


def in_turn(*faults: Fault | None) -> Plan:
    """One fault a call, then none."""
    return lambda number, _: faults[number] if number < len(faults) else None


def always(fault: Fault) -> Plan:
    return lambda *_: fault


class Setup:
    """Retry over faults over memory."""

    def __init__(self, *faults: Fault | None, plan: Plan | None = None, **options: Any) -> None:
        self.memory, self.clock = MemoryBackend(), FakeClock()
        self.memory.create()
        self.faulty = PlannedFaults(self.memory, plan or in_turn(*faults), self.clock)
        self.retry = Retry(
            self.faulty,
            **{"clock": self.clock, "wait": self.clock.wait, "draw": longest} | options,
        )


def test_a_call_is_made_again_until_it_succeeds() -> None:
    made = Setup(Fault.GLITCH, Fault.GLITCH, Fault.GLITCH)
    made.memory.write("a", (b"1",))
    assert made.retry.read("a") == b"1"
    assert made.clock.waits == [0.2, 0.4, 0.8]


def test_pauses_double_up_to_the_longest_and_end_in_time() -> None:
    made = Setup(plan=always(Fault.GLITCH), retry_for_s=100.0, longest_pause_s=20.0)
    with pytest.raises(BackendError, match=r"read fails .* \(tried 11 times in 85 s\)$") as caught:
        made.retry.read("a")
    assert made.clock.waits == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 20.0, 20.0, 20.0]
    assert caught.value.retryable
    assert made.faulty.calls == 11


def test_pauses_are_drawn_between_nothing_and_the_most() -> None:
    drawn: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        drawn.append((low, high))
        return high / 2

    made = Setup(Fault.GLITCH, Fault.GLITCH, draw=draw)
    made.retry.stat("a")
    assert drawn == [(0.0, 0.2), (0.0, 0.4)]
    assert made.clock.waits == [0.1, 0.2]


def test_the_storage_is_given_the_time_it_asks_for() -> None:
    made = Setup(Fault.SLOW_DOWN)
    made.retry.stat("a")
    assert made.clock.waits == [RETRY_AFTER_S + 0.2]
    made = Setup(Fault.SLOW_DOWN, retry_for_s=RETRY_AFTER_S)
    with pytest.raises(BackendError, match=r"\(tried once in 0 s\)") as caught:
        made.retry.stat("a")
    assert made.clock.waits == []
    assert caught.value.retry_after_s == RETRY_AFTER_S


def test_a_thousand_attempts_overflow_nothing() -> None:
    made = Setup(plan=always(Fault.GLITCH), longest_pause_s=0.1, retry_for_s=200.0)
    with pytest.raises(BackendError, match="tried 20"):
        made.retry.read("a")


@pytest.mark.parametrize("fault", [Fault.FAILURE, Fault.FULL, Fault.FORBIDDEN])
def test_what_is_for_good_is_raised_at_once(fault: Fault) -> None:
    made = Setup(fault)
    with pytest.raises(StoreError, match=r"\(0\)$"):
        made.retry.read("a")
    assert made.clock.waits == []


def test_no_room_is_not_retried_whatever_the_storage_thinks() -> None:
    made = Setup()

    def full(*_: object, **__: object) -> None:
        raise OutOfSpace("full", retryable=True)

    made.memory.write = full  # type: ignore[method-assign, assignment]
    with pytest.raises(OutOfSpace):
        made.retry.write("a", (b"1",))
    assert made.clock.waits == []


# What an answer means when an attempt before may have been done


def test_an_exclusive_write_that_was_done_is_a_success() -> None:
    made = Setup(*DONE_AND_LOST)
    made.retry.write("a", (b"12", b"3"), exclusive=True)
    assert made.memory.read("a") == b"123"
    assert [name for name, _ in made.faulty.history] == ["write", "write", "stat", "read"]


@pytest.mark.parametrize("theirs", [b"124", b"1234"], ids=["bytes", "size"])
def test_an_exclusive_write_does_not_take_anothers_object_for_its_own(theirs: bytes) -> None:
    made = Setup(*NOT_DONE)
    made.memory.write("a", (theirs,))
    with pytest.raises(AlreadyExists):
        made.retry.write("a", (b"123",), exclusive=True)
    assert made.memory.read("a") == theirs
    assert ("read", None) not in made.faulty.history or len(theirs) == 3


def test_the_read_back_is_made_again_too() -> None:
    faults = {0: Fault.LOST_ANSWER, 2: Fault.GLITCH, 5: Fault.LOST_ANSWER}
    made = Setup(plan=lambda number, _: faults.get(number))
    made.retry.write("a", (b"123",), exclusive=True)
    assert [name for name, fault in made.faulty.history if fault] == ["write", "stat", "read"]


def test_a_first_attempt_that_finds_something_says_so() -> None:
    made = Setup()
    made.memory.write("a", (b"1",))
    with pytest.raises(AlreadyExists):
        made.retry.write("a", (b"1",), exclusive=True)
    with pytest.raises(NotFound):
        made.retry.delete("b")
    made.memory.write("c", (b"1",))
    with pytest.raises(NotFound):
        made.retry.rename("b", "c")
    assert made.retry.mkdir("d")
    assert not made.retry.mkdir("d")


def test_a_delete_that_was_done_is_a_success() -> None:
    made = Setup(*DONE_AND_LOST)
    made.memory.write("a", (b"1",))
    made.retry.delete("a")
    assert made.memory.stat("a") is None


def test_a_rename_that_was_done_is_a_success() -> None:
    made = Setup(*DONE_AND_LOST)
    made.memory.write("a", (b"1",))
    made.retry.rename("a", "b")
    assert made.memory.read("b") == b"1"


def test_a_rename_of_nothing_to_nothing_is_none() -> None:
    made = Setup(*NOT_DONE)
    with pytest.raises(NotFound):
        made.retry.rename("a", "b")


def test_a_mkdir_that_was_done_has_made_it() -> None:
    assert Setup(*DONE_AND_LOST).retry.mkdir("d")


@pytest.mark.parametrize("durable", [False, True])
def test_what_was_found_done_is_made_durable(durable: bool) -> None:
    """The step that failed may have been the last one, that makes it so."""
    for call in (
        lambda made: made.retry.write("a", (b"1",), exclusive=True, durable=durable),
        lambda made: made.retry.mkdir("d", durable=durable),
    ):
        made = Setup(*DONE_AND_LOST)
        call(made)
        assert (("sync", None) in made.faulty.history) == durable


def test_a_lost_sync_is_not_asked_for_again() -> None:
    """The second one would say that all is well: the kernel reports a lost page once."""
    made = Setup(Fault.GLITCH)
    with pytest.raises(BackendError) as caught:
        made.retry.sync()
    assert not caught.value.retryable
    assert made.faulty.calls == 1
    made = Setup(Fault.FULL)
    with pytest.raises(OutOfSpace):
        made.retry.sync()


def test_a_write_whose_sync_is_lost_fails() -> None:
    made = Setup(Fault.LOST_ANSWER, None, None, None, Fault.GLITCH)
    with pytest.raises(BackendError, match="sync"):
        made.retry.write("a", (b"1",), exclusive=True, durable=True)


# Files, listings, locks


@pytest.mark.parametrize("is_object_store", [False, True], ids=["files", "objects"])
def test_a_commit_is_made_again_where_the_data_is_still_there(is_object_store: bool) -> None:
    made = Setup(plan=lambda number, _: Fault.GLITCH if number == 2 else None)
    made.memory.is_object_store = is_object_store
    file = made.retry.create_temporary("a", "a.tmp")
    file.write(b"body")
    if not is_object_store:
        with pytest.raises(BackendError):
            file.commit()
        file.discard()
        return
    file.commit(durable=True)
    assert made.memory.read("a") == b"body"


def test_a_walk_goes_on_from_the_last_name() -> None:
    made = Setup(*([Fault.LOST_ANSWER] * 4), Fault.GLITCH)
    for number in range(100):
        made.memory.write(f"{number:03}", (b"1",))
    asked: list[str] = []
    original = made.memory.walk

    def walk(name: str, after: str = "") -> Iterator[Any]:
        asked.append(after)
        return original(name, after)

    made.memory.walk = walk  # type: ignore[method-assign]
    names = [found.name for found in made.retry.walk("") if found.name != ".lock"]
    assert names == [f"{number:03}" for number in range(100)]
    assert asked == ["", "048", "073", "086", "092"]  # it is the half of what is left that came
    assert made.clock.waits == [0.2, 0.2, 0.2, 0.2, 0.4]  # each name is a new start


def test_a_walk_that_gets_nowhere_ends() -> None:
    made = Setup(plan=always(Fault.GLITCH))
    with pytest.raises(BackendError, match="tried"):
        list(made.retry.walk(""))


def test_the_look_for_a_mark_is_made_again() -> None:
    looks = iter([BackendError("glitch", retryable=True), True])

    class Lazy:
        name = "1"

        @property
        def is_marked(self) -> bool:
            answer = next(looks)
            if isinstance(answer, BackendError):
                raise answer
            return answer

    made = Setup()
    made.memory.subdirectories = lambda *_: [Lazy()]  # type: ignore[method-assign, assignment]
    found = made.retry.subdirectories("host/a", "mark")
    assert [(one.name, one.is_marked) for one in found] == [("1", True)]


def test_locks_are_acquired_again() -> None:
    made = Setup(Fault.LOST_ANSWER, Fault.GLITCH)
    with made.retry.lock("", (), exclusive=True) as lock:
        lock.check()
        assert made.faulty.calls == 3
    made.retry.lock("", (), exclusive=True).release()


# Interrupts


def blocked(call: Callable[[], object]) -> tuple[threading.Thread, list[BackendError]]:
    """A thread in a call that fails, and what it ends with."""
    errors: list[BackendError] = []

    def run() -> None:
        try:
            call()
        except BackendError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


@pytest.mark.parametrize("how", ["interrupt", "close"])
def test_an_interrupt_ends_all_waiting_calls_with_the_error_they_had(how: str) -> None:
    waiting = threading.Semaphore(0)

    def wait(event: threading.Event, _: float) -> bool:
        waiting.release()
        return event.wait(60)

    made = Setup(plan=always(Fault.GLITCH), wait=wait)
    calls = [
        blocked(lambda: made.retry.read("a")),
        blocked(lambda: list(made.retry.walk(""))),
        blocked(lambda: made.retry.write("a", (b"1",))),
    ]
    for _ in calls:
        assert waiting.acquire(timeout=10)
    getattr(made.retry, how)()
    for thread, errors in calls:
        thread.join(10)
        assert not thread.is_alive()
        assert [str(error).count("tried") for error in errors] == [0]


def test_a_call_that_was_inside_when_interrupted_is_not_made_again() -> None:
    made = Setup()

    def read(_: str) -> bytes:
        made.retry.interrupt()
        raise BackendError("cut off", retryable=True)

    made.memory.read = read  # type: ignore[method-assign]
    with pytest.raises(BackendError, match=r"^cut off$"):
        made.retry.read("a")
    assert made.clock.waits == []


def test_calls_after_an_interrupt_are_retried_as_before() -> None:
    made = Setup(Fault.GLITCH)
    made.retry.interrupt()
    assert made.retry.stat("a") is None
    assert made.clock.waits == [0.2]


# The log


def test_the_log_has_a_line_a_second_at_most(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "store.backends.wrappers.retry")
    made = Setup(*([Fault.GLITCH] * 8), longest_pause_s=0.5)
    made.retry.stat("a")
    assert made.clock.now == pytest.approx(3.6)
    assert [record.levelname for record in caplog.records] == ["INFO"] * 4
    assert caplog.messages[0] == "memory: stat fails (0); trying again in 0.2 s"


def test_what_takes_long_is_warned_of_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    made = Setup(plan=always(Fault.GLITCH), retry_for_s=100.0, longest_pause_s=2.0)
    with pytest.raises(BackendError):
        made.retry.stat("a")
    assert caplog.messages == [
        "memory: stat fails (4); trying for 97 s more",
        "memory: stat fails (34); trying for 37 s more",
    ]


# A storage that is away


def test_one_that_never_answered_is_tried_for_a_shorter_time() -> None:
    made = Setup(plan=always(Fault.GLITCH), open_for_s=10.0)
    with pytest.raises(BackendError, match="tried 6 times in 6 s"):
        made.retry.stat("a")
    made = Setup(None, *[Fault.GLITCH] * 8, open_for_s=10.0)
    with pytest.raises(NotFound):  # an answer, too
        made.retry.delete("a")
    assert made.retry.stat("a") is None
    assert made.clock.now > 10


def test_one_that_was_given_up_is_asked_once_a_call_until_it_answers() -> None:
    """Or those who clean up after the error would take five minutes for each step."""
    made = Setup(*[Fault.GLITCH] * 8, None, Fault.GLITCH, retry_for_s=10.0)
    for tried in ("tried 6 times in 6 s", "tried once in 0 s", "tried once in 0 s"):
        with pytest.raises(BackendError, match=tried):
            made.retry.stat("a")
    assert made.retry.stat("a") is None
    assert made.retry.stat("a") is None
    assert made.faulty.calls == 11


def test_one_object_that_stays_away_is_not_the_storage() -> None:
    made = Setup(plan=lambda _, name: Fault.GLITCH if name == "stat" else None, retry_for_s=10.0)
    made.memory.write("b", (b"1",))
    made.clock.during = lambda: made.retry.read("b")
    for _ in range(2):
        with pytest.raises(BackendError, match="tried 6 times"):
            made.retry.stat("a")


def test_who_cleans_up_after_an_interrupt_does_not_wait_long() -> None:
    """The interrupt may have come because the storage is away."""
    made = Setup(None, *[Fault.GLITCH] * 4)
    assert made.retry.stat("a") is None
    made.retry.interrupt()
    with pytest.raises(BackendError, match="tried 3 times in 1 s"):
        made.retry.stat("a")
    with pytest.raises(BackendError, match="tried once in 0 s"):
        made.retry.stat("a")
    assert made.retry.stat("a") is None
    assert made.clock.now < 1
