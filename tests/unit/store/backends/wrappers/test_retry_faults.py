"""Whatever fails, and whenever: success after retries or one clear error, and never a wrong byte.

A scenario over Retry(faults(memory)), once with every fault at every call, and 500 times with
seeded faults at random calls; as a file system and as an object store. After each run a clean
reader of the bare storage judges.
"""

from collections import Counter
from functools import lru_cache

import pytest

from store.backends.memory import MemoryBackend
from store.backends.wrappers.retry import Retry
from store.datastore import chunk_cache
from store.datastore.archives import ChunkCache, SnapshotReader
from store.datastore.datastore import Datastore
from store.errors import StoreError
from store.format.blob import decode_chunk
from store.names import Snapshot
from tests.fakes.clock import FakeClock
from tests.fakes.datastores import (
    DAY,
    GROUP,
    MIB,
    ROOT,
    encoded_pattern,
    open_on,
    pattern,
    snapshot,
    write_snapshot,
)
from tests.fakes.faults import (
    READS,
    SPOILED,
    Fault,
    Plan,
    PlannedFaults,
    fault_at,
    seeded_faults,
)

RETRY_FOR_S = 300.0
OVERCOME = (Fault.GLITCH, Fault.LOST_ANSWER, Fault.SLOW_DOWN, Fault.DELAY)
NOT_REPEATED = frozenset(("sync", "temporary.map", "temporary.write", "temporary.write_at"))
SEEDS = 500
SEEDS_A_TEST = 50

pytestmark = pytest.mark.expect_warnings  # what could not be removed is warned of


@pytest.fixture(autouse=True)
def decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes are decoded once in all these runs, which would be most of their time."""
    monkeypatch.setattr(
        chunk_cache, "decode_chunk", lambda *args, target, **named: decode_once(*args, **named)
    )


decode_once = lru_cache(maxsize=64)(decode_chunk)


class Run:
    """The scenario on an empty datastore: what was acknowledged, and what came of it."""

    def __init__(self, plan: Plan, *, is_object_store: bool) -> None:
        self.memory = MemoryBackend()
        self.memory.is_object_store = is_object_store
        self.memory.create()
        self.clock = FakeClock()
        self.faulty = PlannedFaults(self.memory, plan, self.clock)
        self.acknowledged: list[Snapshot] = []
        self.unsure: Snapshot | None = None
        self.error: StoreError | None = None
        try:
            self.play(
                open_on(
                    Retry(
                        self.faulty,
                        retry_for_s=RETRY_FOR_S,
                        clock=self.clock,
                        wait=self.clock.wait,
                        draw=lambda low, high: (low + high) / 2,
                    )
                )
            )
        except StoreError as error:
            self.error = error

    def play(self, store: Datastore) -> None:
        for day in (1, 2):
            self.unsure = snapshot(day)
            write_snapshot(store, snapshot(day))
            self.acknowledged.append(snapshot(day))
            self.unsure = None
        assert store.list_groups() == [GROUP]
        assert len([*store.chunks.iterate()]) == 4
        for found in store.list_snapshots(ROOT, GROUP):
            check_snapshot(store, found)
        self.unsure = snapshot(1)
        self.acknowledged.remove(snapshot(1))
        store.forget_snapshot(ROOT, snapshot(1))
        self.unsure = None

    def check(self) -> None:
        """All that was acknowledged is there and right, nothing else, and nothing is in the way."""
        store = open_on(self.memory)
        listed = store.list_snapshots(ROOT, GROUP)
        assert self.error is not None or self.unsure is None
        assert {*listed} - {self.unsure} == {*self.acknowledged}
        for found in listed:
            check_snapshot(store, found)
        write_snapshot(store, snapshot(9))
        check_snapshot(store, snapshot(9))
        directories = {entry.name for entry in self.memory.scan(GROUP.path(ROOT))}
        kept = {found.path(ROOT).rpartition("/")[2] for found in [*listed, snapshot(9)]}
        assert directories == {*kept, "owner"}
        assert not [name for name in self.memory.walk("") if "tmp_" in name.name]


def check_snapshot(store: Datastore, what: Snapshot) -> None:
    """Read all of a snapshot: it is what `write_snapshot` wrote, or a StoreError."""
    reader = SnapshotReader(store, ROOT, what, None, ChunkCache(0))
    assert reader.read_blob("qemu-server.conf") == b"a line of configuration\n"
    day = what.time // DAY
    for stream in (reader.open_image("disk.img"), reader.open_streams("data.pxar")[0]):
        assert [*stream.index.digests()] == [
            encoded_pattern(day + number, size)[0] for number, size in enumerate((4 * MIB, MIB))
        ]
        assert stream.read(0, 4 * MIB) == whole_pattern(day, 4 * MIB)
        assert stream.read(4 * MIB, MIB) == whole_pattern(day + 1, MIB)


whole_pattern = lru_cache(maxsize=64)(pattern)
kinds_of_storage = pytest.mark.parametrize(
    "is_object_store", [False, True], ids=["files", "objects"]
)


def calls(*, is_object_store: bool) -> list[str]:
    run = Run(lambda *_: None, is_object_store=is_object_store)
    assert run.error is None
    return [name for name, _ in run.faulty.history]


@kinds_of_storage
@pytest.mark.parametrize("fault", Fault)
def test_every_fault_at_every_call(fault: Fault, is_object_store: bool) -> None:
    for number, name in enumerate(calls(is_object_store=is_object_store)):
        if fault in SPOILED and name not in READS:
            continue
        run = Run(fault_at(number, fault), is_object_store=is_object_store)
        run.check()
        assert run.faulty.history[number] == (name, fault)
        repeated = name not in NOT_REPEATED and (is_object_store or name != "temporary.commit")
        if fault is Fault.DELAY or (fault in OVERCOME and repeated):
            assert run.error is None, (number, name)
        assert run.clock.now < RETRY_FOR_S


def random_run(seed: int) -> Run:
    """Faults at every hundredth call to every tenth; with every other seed only passing ones."""
    faults = OVERCOME if seed % 2 else tuple(Fault)
    plan = seeded_faults(seed, 0.01 + seed % 10 / 100, faults)
    return Run(plan, is_object_store=seed % 4 < 2)


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_A_TEST))
def test_random_runs(first: int) -> None:
    ends: Counter[str] = Counter()
    for seed in range(first, first + SEEDS_A_TEST):
        run = random_run(seed)
        run.check()
        assert run.clock.now < len(run.faulty.history) * RETRY_FOR_S
        ends["error" if run.error else "success"] += 1
    assert min(ends.values()) >= SEEDS_A_TEST // 10, ends


def test_the_same_seed_gives_the_same_run() -> None:
    once, again, other = random_run(7), random_run(7), random_run(17)
    assert once.faulty.history == again.faulty.history
    assert once.clock.waits == again.clock.waits
    assert once.faulty.history != other.faulty.history
    assert any(fault for _, fault in once.faulty.history)


@kinds_of_storage
def test_a_storage_that_stays_away_is_one_error(is_object_store: bool) -> None:
    healthy = len(calls(is_object_store=is_object_store))
    for first in range(0, healthy, 10):
        run = Run(
            lambda number, _, first=first: Fault.GLITCH if number >= first else None,
            is_object_store=is_object_store,
        )
        assert run.error is not None
        run.check()
