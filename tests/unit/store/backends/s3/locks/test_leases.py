"""Locks on an object store: every order of two parties' requests, failures, time, real threads."""

import itertools
import math
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from store.backends.s3.locks import lease as lease_module
from store.backends.s3.locks import leases as leases_module
from store.backends.s3.locks.holder import Holder
from store.backends.s3.locks.lease import RENEW_S, SLACK_S, TTL_S, Lease
from store.backends.s3.locks.leases import Leases
from store.errors import BackendError, Locked, NotFound, PermissionDenied
from tests.fakes.s3_hosts import Clock
from tests.fakes.schedules import Choose, Moment, Party, every_schedule, play

GROUP = "host/web01"
PREFIX = "store/.vaultway/locks/"
DEAD_S = TTL_S + SLACK_S + 2


class Object(NamedTuple):
    body: bytes
    stored_s: float


class Listed(NamedTuple):
    key: str
    modified_s: float


class Page(NamedTuple):
    objects: list[Listed]
    server_time_s: float


class Bucket:
    """Objects, and a server's clock.

    `whole_seconds`: that is all it says, as S3's headers do; else no two objects are of one time.
    """

    def __init__(self, clock: Clock, *, whole_seconds: bool = True) -> None:
        self.clock, self.whole_seconds = clock, whole_seconds
        self.objects: dict[str, Object] = {}

    def time_s(self) -> float:
        now_s = 1_767_225_600.0 + self.clock()
        return float(math.floor(now_s)) if self.whole_seconds else now_s

    def put(self, key: str, body: bytes) -> None:
        self.objects[key] = Object(body, self.time_s())
        if not self.whole_seconds:
            self.clock.advance(0.001)


class Client:
    """One process's client: counts, can be stopped before each request, and can fail."""

    def __init__(self, bucket: Bucket, gate: Callable[[], None] = lambda: None) -> None:
        self.bucket = bucket
        self.gate = gate
        self.calls: list[str] = []
        self.fail_at: dict[int, BaseException] = {}
        self.is_answer_lost = False
        self.server_time_s = -math.inf

    def _request(self, kind: str, effect: Callable[[], Any]) -> Any:
        number = len(self.calls)
        self.calls.append(kind)
        self.gate()
        error = self.fail_at.get(number)
        if error is None or self.is_answer_lost:
            result = effect()
        if error is not None:
            raise error
        self.server_time_s = self.bucket.time_s()
        return result

    def get(self, key: str) -> bytes:
        def effect() -> bytes:
            if key not in self.bucket.objects:
                raise NotFound(key)
            return self.bucket.objects[key].body

        body: bytes = self._request("get", effect)
        return body

    def put(self, key: str, parts: Sequence[Any]) -> None:
        body = b"".join(parts)
        self._request("put", lambda: self.bucket.put(key, body))

    def delete(self, key: str) -> None:
        self._request("delete", lambda: self.bucket.objects.pop(key, None))

    def delete_many(self, keys: Sequence[str]) -> None:
        self._request("delete", lambda: [self.bucket.objects.pop(key, None) for key in keys])

    def list(self, prefix: str) -> Iterator[Page]:
        found = self._request(
            "list",
            lambda: [
                Listed(key, one.stored_s)
                for key, one in sorted(self.bucket.objects.items())
                if key.startswith(prefix)
            ],
        )
        now_s = self.bucket.time_s()
        yield Page(found[:2], now_s)  # small pages, so that there are several
        for start in range(2, len(found), 2):
            yield Page(found[start : start + 2], now_s)


class Process(Leases):
    """The leases of one process, whose clock is a fake and which renews when it is told to."""

    def __init__(
        self, bucket: Bucket, clock: Clock | None = None, party: Party | None = None
    ) -> None:
        self.own_clock = clock or bucket.clock
        self.party = party
        self.client = Client(bucket, party.gate if party else lambda: None)
        super().__init__(
            self.client, PREFIX, "s3://b/store", clock=self.own_clock, sleep=self._sleep
        )

    def _sleep(self, seconds: float) -> None:
        if self.party:
            self.party.gate(asleep=True)
        self.own_clock.advance(seconds)

    def _start_renewing(self) -> None:
        pass


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bucket(clock: Clock) -> Bucket:
    return Bucket(clock)


@pytest.fixture
def ours(bucket: Bucket) -> Process:
    return Process(bucket)


@pytest.fixture
def others(bucket: Bucket) -> Process:
    return Process(bucket)


@pytest.fixture(autouse=True)
def _short_waits_and_known_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two looks rather than six, and claims named by their party, so that a run can be repeated."""
    monkeypatch.setattr(leases_module, "YIELD_PAUSES_S", (0.5,))
    monkeypatch.setattr(leases_module, "SHARED_PATIENCE_S", 0.1)
    numbers = itertools.count()
    monkeypatch.setattr(
        lease_module.secrets,
        "token_hex",
        lambda _: f"{threading.current_thread().name}{next(numbers)}",
    )


def is_held(lock: Lease) -> bool:
    try:
        lock.check()
    except Locked:
        return False
    return True


# What it costs


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_lock_costs_two_requests_and_one(ours: Process, clock: Clock, exclusive: bool) -> None:
    lock = ours.acquire(GROUP, exclusive=exclusive)
    assert ours.client.calls == ["put", "list"]
    clock.advance(RENEW_S - 1)
    ours.renew_due()
    lock.release()
    lock.release()
    assert ours.client.calls == ["put", "list", "delete"]
    assert ours.client.bucket.objects == {}


def test_a_refusal_costs_two_more(ours: Process, others: Process) -> None:
    with ours.acquire(GROUP, exclusive=True), pytest.raises(Locked):
        others.acquire(GROUP, exclusive=True)
    assert others.client.calls == ["put", "list", "get", "delete"]


def test_a_renewal_costs_two(ours: Process, clock: Clock) -> None:
    ours.acquire(GROUP, exclusive=True)
    for _ in range(20):
        clock.advance(RENEW_S)
        ours.renew_due()
        ours.renew_due()
    assert ours.client.calls == ["put", "list"] * 21


# Who excludes whom


def test_exclusive_excludes_all_and_shared_the_exclusive(ours: Process, others: Process) -> None:
    with ours.acquire(GROUP, exclusive=True):
        for exclusive in (True, False):
            with pytest.raises(Locked):
                others.acquire(GROUP, exclusive=exclusive)
    with (
        ours.acquire(GROUP, exclusive=False),
        others.acquire(GROUP, exclusive=False),
        pytest.raises(Locked),
    ):
        ours.acquire(GROUP, exclusive=True)
    ours.acquire(GROUP, exclusive=True)


def test_a_lock_is_none_of_what_lies_below_or_has_a_like_name(ours: Process) -> None:
    names = (
        *("host/web01", "host/web01/2026-01-02T03:04:05Z", "host/web0", "host/web01.x", ".lock"),
        *("host/web01/2026-01-02T03:04:05Z/index.json.blob", "host,web01", "host/web01!x", "%2C"),
    )
    for name in names:
        ours.acquire(name, exclusive=True)
    assert "store/.vaultway/locks/host,web01!x." in " ".join(ours.client.bucket.objects)
    assert all(key.count("/") == 3 for key in ours.client.bucket.objects)


def test_the_message_names_the_holder(ours: Process, others: Process, clock: Clock) -> None:
    ours.acquire(GROUP, exclusive=True)
    clock.advance(10)
    with pytest.raises(
        Locked,
        match=r"s3://b/store/host/web01 is in use by process \d+ on \S+, since 20\S+Z; "
        r"if that is dead, it ends by itself in at most 120 s",
    ):
        others.acquire(GROUP, exclusive=True)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"pid": "1"}', b'{"pid": -1}', b"\xff"])
def test_a_claim_of_who_knows_whom_counts_until_it_is_old(
    ours: Process, clock: Clock, body: bytes
) -> None:
    key = f"{PREFIX}host,web01!x.1"
    ours.client.put(key, (body,))
    with pytest.raises(Locked, match="in use by an unknown process"):
        ours.acquire(GROUP, exclusive=True)
    clock.advance(DEAD_S)
    ours.acquire(GROUP, exclusive=True)
    assert key not in ours.client.bucket.objects


def test_a_lock_can_be_waited_for(ours: Process, others: Process, clock: Clock) -> None:
    lock = ours.acquire(GROUP, exclusive=True)
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        clock.advance(seconds)
        if len(naps) == 7:
            lock.release()

    waiting = Leases(others.client, PREFIX, "", clock=clock, sleep=sleep)
    waiting.acquire(GROUP, exclusive=True, timeout_s=5).release()
    waiting.close()
    assert naps == [0.05, 0.1, 0.2, 0.4, 0.8, 1, 1]


def test_waiting_ends(ours: Process, others: Process, clock: Clock) -> None:
    ours.acquire(GROUP, exclusive=True)
    began_s = clock()
    with pytest.raises(Locked):
        others.acquire(GROUP, exclusive=True, timeout_s=5)
    assert clock() - began_s == pytest.approx(5)


# Every order of two parties' requests


class Race:
    """Parties that want locks, step by step; after each step those held have to go together."""

    def __init__(self, *, whole_seconds: bool = True) -> None:
        self.clock = Clock()
        self.bucket = Bucket(self.clock, whole_seconds=whole_seconds)
        self.parties: list[Party | Moment] = []
        self.held: dict[tuple[str, bool], Lease] = {}
        self.won: list[str] = []

    def add(
        self, name: str, *, exclusive: bool, renews: bool = False, timeout_s: float = 0
    ) -> None:
        def program(party: Party) -> None:
            process = Process(self.bucket, party=party)
            try:
                lock = process.acquire(GROUP, exclusive=exclusive, timeout_s=timeout_s)
            except (Locked, BackendError):  # or paused so long that its claim was removed
                return
            self.won.append(name)
            self.held[name, exclusive] = lock
            party.gate()
            if renews:
                self.clock.advance(RENEW_S)
                process.renew_due()
                party.gate()
            del self.held[name, exclusive]
            lock.release()

        self.parties.append(Party(name, program))

    def add_pause(self, seconds: float) -> None:
        """At some time all parties are stopped for so long."""
        self.parties.append(Moment(lambda: self.clock.advance(seconds)))

    def check(self) -> None:
        held = [(name, alone) for (name, alone), lock in self.held.items() if is_held(lock)]
        assert len(held) < 2 or not any(alone for _, alone in held), held

    def play(self, choose: Choose, *, naps_are_long: bool = False) -> None:
        play(self.parties, choose, self.check, naps_are_long=naps_are_long)


EXCLUSIVE_OR_SHARED = pytest.mark.parametrize("exclusive", [True, False], ids=["x/x", "x/s"])
WHOLE_SECONDS = pytest.mark.parametrize("whole_seconds", [True, False], ids=["ties", "no ties"])


@EXCLUSIVE_OR_SHARED
@WHOLE_SECONDS
@pytest.mark.parametrize("naps_are_long", [True, False], ids=["patient", "impatient"])
def test_two_that_exclude_each_other_whatever_the_order(
    exclusive: bool, whole_seconds: bool, naps_are_long: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One wins at least, if it has time to wait for the other to give up."""
    if not naps_are_long:
        monkeypatch.setattr(leases_module, "SHARED_PATIENCE_S", 0)
    both = 0

    def run(choose: Choose) -> None:
        nonlocal both
        race = Race(whole_seconds=whole_seconds)
        race.add("a", exclusive=True)
        race.add("b", exclusive=exclusive)
        race.play(choose, naps_are_long=naps_are_long)
        assert race.won or not naps_are_long
        assert race.bucket.objects == {}
        both += len(race.won) == 2

    assert every_schedule(run) >= 45
    assert both  # one after the other


def test_two_sharers_never_refuse_each_other() -> None:
    def run(choose: Choose) -> None:
        race = Race()
        for name in "ab":
            race.add(name, exclusive=False)
        race.play(choose)
        assert sorted(race.won) == ["a", "b"]

    assert every_schedule(run) == 70


def test_a_sharer_is_not_refused_by_who_is_refused_itself() -> None:
    """A backup starts while another runs, and garbage collection tries: the backup goes on."""

    def run(choose: Choose) -> None:
        race = Race()
        running = Process(race.bucket).acquire(GROUP, exclusive=False)
        race.clock.advance(5)
        race.add("gc", exclusive=True)
        race.add("backup", exclusive=False)
        race.play(choose, naps_are_long=True)
        assert race.won == ["backup"]
        running.release()

    assert every_schedule(run) >= 45


@EXCLUSIVE_OR_SHARED
@WHOLE_SECONDS
@pytest.mark.expect_warnings
def test_who_is_paused_past_its_lease_has_lost_it_wherever_that_happens(
    exclusive: bool, whole_seconds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause comes before any request, between any two, and after: so do the other's steps."""
    monkeypatch.setattr(leases_module, "SHARED_PATIENCE_S", 0)

    def run(choose: Choose) -> None:
        race = Race(whole_seconds=whole_seconds)
        race.add("a", exclusive=True, renews=exclusive)
        race.add("b", exclusive=exclusive)
        race.add_pause(DEAD_S)
        race.play(choose)
        race.clock.advance(DEAD_S)
        Process(race.bucket).acquire(GROUP, exclusive=True)

    assert every_schedule(run) > (2000 if exclusive else 500)


@pytest.mark.expect_warnings
@pytest.mark.parametrize("count", [2, 8])
def test_seeded_races(count: int) -> None:
    """Any number of parties, any order, long pauses and lost answers."""
    wins = 0
    for seed in range(500):
        rng = random.Random(seed)
        race = Race()
        plain = seed % 2
        for number in range(count):
            exclusive = bool(plain) or rng.random() < 0.6
            renews = not plain and rng.random() < 0.3
            race.add(f"{number}.", exclusive=exclusive, renews=renews, timeout_s=rng.choice((0, 5)))
        if not plain:
            for _ in range(rng.randrange(3)):
                race.add_pause(rng.choice((RENEW_S, TTL_S, DEAD_S)))
        race.play(rng.randrange, naps_are_long=bool(plain))
        assert race.won or not plain
        wins += len(race.won)
    assert wins > 500


def test_threads_of_one_process_take_turns(bucket: Bucket) -> None:
    """Real threads, real time: a count that only a lock keeps right."""
    leases = Leases(Client(bucket), PREFIX, "", sleep=lambda _: time.sleep(0.001))
    count = 0

    def work() -> None:
        nonlocal count
        for _ in range(20):
            with leases.acquire(GROUP, exclusive=True, timeout_s=100):
                seen = count
                time.sleep(0)
                count = seen + 1

    threads = [threading.Thread(target=work, name=f"{number}.") for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    leases.close()
    assert count == 80
    assert bucket.objects == {}


# Time


def test_a_renewed_lock_lasts(ours: Process, others: Process, clock: Clock) -> None:
    lock = ours.acquire(GROUP, exclusive=True)
    for _ in range(100):
        clock.advance(RENEW_S)
        ours.renew_due()
        lock.check()
        with pytest.raises(Locked):
            others.acquire(GROUP, exclusive=True)


@pytest.mark.expect_warnings
@pytest.mark.parametrize("exclusive", [True, False])
def test_a_dead_holders_lock_ends_and_the_holder_knows_first(
    ours: Process, others: Process, clock: Clock, exclusive: bool
) -> None:
    lock = ours.acquire(GROUP, exclusive=exclusive)
    for _ in range(200):
        clock.advance(1)
        try:
            taken = others.acquire(GROUP, exclusive=True)
        except Locked:
            continue
        break
    assert TTL_S <= clock() - 1000 <= DEAD_S
    with pytest.raises(Locked, match="lost the lock of s3://b/store/host/web01"):
        lock.check()
    ours.renew_due()
    lock.release()
    taken.check()
    assert list(others.client.bucket.objects) == [taken.key]


@pytest.mark.expect_warnings
def test_a_pause_that_the_own_clock_missed_is_found_at_the_next_renewal(bucket: Bucket) -> None:
    """A virtual machine was stopped for three minutes; its clock goes on as if nothing was."""
    own_clock = Clock()
    ours, others = Process(bucket, own_clock), Process(bucket)
    lock = ours.acquire(GROUP, exclusive=True)
    bucket.clock.advance(180)
    taken = others.acquire(GROUP, exclusive=True)
    own_clock.advance(RENEW_S)
    ours.renew_due()
    with pytest.raises(Locked, match="lost"):
        lock.check()
    taken.check()
    assert list(bucket.objects) == [taken.key]


@pytest.mark.expect_warnings
def test_an_answer_that_takes_longer_than_a_lease_is_none(ours: Process, clock: Clock) -> None:
    """Once `check` has failed it goes on failing, and a lock that is lost already is not had."""

    def stall() -> None:
        if ours.client.calls[-1] == "list":
            clock.advance(stall_s)

    lock = ours.acquire(GROUP, exclusive=True)
    clock.advance(RENEW_S)
    ours.client.gate = stall
    stall_s = TTL_S - RENEW_S + 1
    ours.renew_due()
    assert not is_held(lock)
    stall_s = TTL_S + 1
    with pytest.raises(Locked, match="lost"):
        ours.acquire(GROUP, exclusive=True)
    assert ours.client.bucket.objects == {}


@pytest.mark.expect_warnings
def test_a_storage_that_fails_for_two_minutes_costs_the_lock(ours: Process, clock: Clock) -> None:
    lock = ours.acquire(GROUP, exclusive=True)
    ours.client.fail_at = dict.fromkeys(range(2, 1000), BackendError("down", retryable=True))
    for _ in range(24):
        lock.check()
        clock.advance(5)
        ours.renew_due()
    lock.check()
    clock.advance(1)
    with pytest.raises(Locked, match="lost"):
        lock.check()


def test_a_storage_that_fails_for_one_minute_does_not(ours: Process, clock: Clock) -> None:
    lock = ours.acquire(GROUP, exclusive=True)
    ours.client.fail_at = dict.fromkeys(range(2, 14), BackendError("down", retryable=True))
    for _ in range(60):
        clock.advance(5)
        ours.renew_due()
        lock.check()


def test_the_renewer_runs_and_ends(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real thread: its ticks are short here, and the clock has moved on."""
    monkeypatch.setattr(leases_module, "TICK_S", 0.001)
    client = Client(bucket)
    leases = Leases(client, PREFIX, "", clock=bucket.clock)
    assert threading.active_count() == 1
    leases.acquire(GROUP, exclusive=True)
    renewed = threading.Event()
    client.gate = renewed.set
    bucket.clock.advance(RENEW_S)
    assert renewed.wait(30)
    leases.close()
    assert threading.active_count() == 1
    assert bucket.objects == {}


# Failures


def scenario(process: Process) -> None:
    """Locks are taken, refused, renewed and given back."""
    with process.acquire(GROUP, exclusive=True), process.acquire(".lock", exclusive=False):
        with pytest.raises(Locked):
            process.acquire(GROUP, exclusive=False)
        process.own_clock.advance(RENEW_S)
        process.renew_due()


ERRORS = [
    BackendError("reset", retryable=True),
    BackendError("no", retryable=False),
    PermissionDenied("403"),
]


@pytest.mark.expect_warnings
@pytest.mark.parametrize("lost", [False, True], ids=["not done", "answer lost"])
@pytest.mark.parametrize("error", ERRORS, ids=["retryable", "final", "denied"])
@pytest.mark.parametrize("is_down", [False, True], ids=["once", "from then on"])
def test_a_failure_at_the_nth_request_leaves_nothing_held(
    lost: bool, error: Exception, is_down: bool
) -> None:
    """Not for ourselves, who try again at once, and not for others for longer than a lease."""
    bucket = Bucket(Clock())
    scenario(whole := Process(bucket))
    for number in range(len(whole.client.calls)):
        clock = Clock()
        bucket = Bucket(clock)
        ours, others = Process(bucket), Process(bucket)
        last = number + 1000 if is_down else number + 1
        ours.client.fail_at = dict.fromkeys(range(number, last), error)
        ours.client.is_answer_lost = lost
        try:
            scenario(ours)
        except (BackendError, PermissionDenied) as raised:
            assert raised is error  # noqa: PT017 - it may as well succeed
        ours.client.fail_at = {}
        if not (lost and isinstance(error, PermissionDenied)):  # who denies does nothing
            scenario(ours)
        clock.advance(DEAD_S)
        scenario(others)
        assert [key for key in bucket.objects if "host" in key] == []


@pytest.mark.expect_warnings
def test_who_dies_at_the_nth_request_leaves_nothing_held() -> None:
    class Died(BaseException):
        pass

    scenario(whole := Process(Bucket(Clock())))
    for number in range(len(whole.client.calls)):
        clock = Clock()
        bucket = Bucket(clock)
        ours, others = Process(bucket), Process(bucket)
        ours.client.fail_at = dict.fromkeys(range(number, 1000), Died())
        with pytest.raises(Died):
            scenario(ours)
        clock.advance(DEAD_S)
        scenario(others)


def test_an_error_is_passed_on_and_its_claim_taken_back(ours: Process, others: Process) -> None:
    error = BackendError("reset", retryable=True)
    ours.client.fail_at = {0: error}
    ours.client.is_answer_lost = True
    with pytest.raises(BackendError, match="reset"):
        ours.acquire(GROUP, exclusive=True)
    assert ours.client.calls == ["put", "delete"]
    others.acquire(GROUP, exclusive=True)


def test_a_refused_claim_is_not_taken_back(ours: Process) -> None:
    """With a key that may only read, each try would warn that nothing could be removed."""
    ours.client.fail_at = dict.fromkeys(range(10), PermissionDenied("403"))
    with pytest.raises(PermissionDenied):
        ours.acquire(GROUP, exclusive=False)
    assert ours.client.calls == ["put"]


def test_a_storage_whose_listings_lag_is_refused(ours: Process) -> None:
    ours.client.list = lambda _: iter([Page([], 0)])  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="listings are up to date"):
        ours.acquire(GROUP, exclusive=True)
    assert ours.client.bucket.objects == {}


def test_release_tries_again_then_says_when_it_ends(
    ours: Process, caplog: pytest.LogCaptureFixture
) -> None:
    lock = ours.acquire(GROUP, exclusive=True)
    ours.client.fail_at = dict.fromkeys(range(2, 4), BackendError("reset", retryable=True))
    lock.release()
    assert ours.client.calls == ["put", "list", "delete", "delete", "delete"]
    assert ours.client.bucket.objects == {}
    assert not caplog.records


@pytest.mark.expect_warnings
def test_a_release_that_failed_is_made_again_by_the_next_call(ours: Process) -> None:
    """An interrupt ends the requests of all other threads, those that give locks back, too."""
    lock = ours.acquire(GROUP, exclusive=True)
    ours.client.fail_at = dict.fromkeys(range(2, 5), BackendError("interrupted", retryable=True))
    lock.release()
    assert len(ours.client.bucket.objects) == 1
    with pytest.raises(Locked):
        lock.check()
    lock.release()
    assert ours.client.bucket.objects == {}
    calls = len(ours.client.calls)
    lock.release()
    assert len(ours.client.calls) == calls


def test_close_releases(ours: Process, others: Process) -> None:
    lock = ours.acquire(GROUP, exclusive=True)
    ours.close()
    assert not is_held(lock)
    others.acquire(GROUP, exclusive=True)


# Whose process is dead


def holder_of(process: "subprocess.Popen[bytes]") -> Holder:
    stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return replace(Holder.this_process(1), pid=process.pid, started=int(stat[19]))


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def test_a_killed_process_of_this_host_keeps_nobody_waiting(
    ours: Process, sleeper: "subprocess.Popen[bytes]"
) -> None:
    key = f"{PREFIX}host,web01!x.1"
    ours.client.put(key, (holder_of(sleeper).encode(),))
    with pytest.raises(Locked, match=f"process {sleeper.pid} on"):
        ours.acquire(GROUP, exclusive=True)
    sleeper.kill()
    sleeper.wait()
    with ours.acquire(GROUP, exclusive=True) as lock:
        assert list(ours.client.bucket.objects) == [lock.key]


def test_a_process_has_died_when_its_pid_is_free_a_zombies_or_another_ones(
    sleeper: "subprocess.Popen[bytes]",
) -> None:
    holder = holder_of(sleeper)
    assert not holder.has_died()
    assert replace(holder, started=holder.started - 1).has_died()
    sleeper.kill()
    while not holder.has_died():  # until it is a zombie
        time.sleep(0.001)
    sleeper.wait()
    assert holder.has_died()


@pytest.mark.parametrize("other", ["host", "boot_id", "namespaces"])
def test_of_other_hosts_and_containers_nobody_knows(other: str) -> None:
    dead = replace(Holder.this_process(1), started=1)
    assert dead.has_died()
    assert not replace(dead, **{other: "another"}).has_died()
    assert not replace(dead, **{other: ""}).has_died()


def test_a_process_hidden_in_proc_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc mounted with hidepid does not show other users' processes; kill does not hide them."""

    def kill(_pid: int, _signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr("os.kill", kill)
    assert not replace(Holder.this_process(1), pid=(1 << 22) - 1).has_died()


def test_a_forked_child_neither_renews_nor_releases(
    ours: Process, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = ours.acquire(GROUP, exclusive=True)
    with monkeypatch.context() as child:
        child.setattr("os.getpid", lambda: 1)
        with pytest.raises(Locked, match="belongs to process"):
            lock.check()
        clock.advance(RENEW_S)
        ours.renew_due()
        lock.release()
        ours.close()
    assert ours.client.calls == ["put", "list"]
    lock.check()


def test_holders_read_what_they_wrote() -> None:
    holder = Holder.this_process(1_767_225_600.5)
    assert Holder.decode(holder.encode()) == holder
    assert re.fullmatch(r"process \d+ on \S+, since 2026-01-01T00:00:00Z", str(holder))
    assert str(replace(holder, since=0)).startswith("process")
    assert "since" not in str(replace(holder, since=0))
