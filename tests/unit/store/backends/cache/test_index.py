"""Which chunks a cache keeps, and what its index makes of files it does not know."""

import bisect
import itertools
import random
import sqlite3
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from store.backends.cache import index as index_module
from store.backends.cache.database import CacheDatabase
from store.backends.cache.files import CacheFiles, cost
from store.backends.cache.index import CacheIndex, Unsettled
from tests.fakes.cache_checks import check_directory
from tests.machine import scratch_parent

SIZE = 1 << 20
BUDGET = 101 * cost(SIZE)  # a hundred, and the index


class Weightless(CacheFiles):
    """Files that take no disk: a set of keys."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.held: set[bytes] = set()

    def size(self, key: bytes) -> int | None:
        return SIZE if key in self.held else None

    def place(self, _: str, key: bytes) -> None:
        self.held.add(key)

    def remove(self, key: bytes) -> bool:
        self.held.discard(key)
        return True

    def spare(self) -> int:
        return 1 << 50


class Policy:
    """A cache of a hundred chunks of 1 MiB, asked by number."""

    def __init__(self, root: str) -> None:
        self.files = Weightless(root)
        self.database = CacheDatabase(self.files)
        self.index = CacheIndex(self.files, self.database)
        self.index.settle()
        self.touched: dict[bytes, None] = {}

    def ask(self, number: int) -> bool:
        """Whether it was there; it is afterwards."""
        key = number.to_bytes(40, "big")
        if key in self.files.held:
            self.touched[key] = None
            return True
        assert self.index.make_room(key, SIZE, BUDGET, list(self.touched))
        self.touched.clear()
        assert self.index.place("", key)
        return False


@pytest.fixture
def policy() -> Iterator[Policy]:
    with tempfile.TemporaryDirectory(dir=scratch_parent()) as root:
        made = Policy(root)
        yield made
        check_directory(Path(root))
        made.database.close()


class LeastRecentlyUsed:
    """What we do not do: the same hundred, the oldest goes."""

    def __init__(self) -> None:
        self.held: OrderedDict[int, None] = OrderedDict()

    def ask(self, number: int) -> bool:
        there = number in self.held
        self.held[number] = None
        self.held.move_to_end(number)
        if len(self.held) > 100:
            self.held.popitem(last=False)
        return there


def zipf(count: int, seed: int) -> Callable[[], int]:
    """Draws numbers below `count`, the first ones far more often: real disks and trees do so."""
    chance = random.Random(seed)
    heights = list(itertools.accumulate(1 / rank for rank in range(1, count + 1)))
    return lambda: bisect.bisect_left(heights, chance.random() * heights[-1])


def hit_ratio(cache: Policy | LeastRecentlyUsed, draw: Callable[[], int]) -> float:
    return sum(cache.ask(draw()) for _ in range(1500)) / 1500


@pytest.mark.parametrize("reads", [1, 2], ids=["read once", "read twice in a row"])
def test_a_pass_over_everything_leaves_the_working_set(policy: Policy, reads: int) -> None:
    """1,000 chunks, of which 100 fit; then a restore of 600 others."""

    def ratios(cache: Policy | LeastRecentlyUsed) -> tuple[float, float]:
        draw = zipf(1000, seed=1)
        for _ in range(3):
            before = hit_ratio(cache, draw)
        for number in range(5000, 5600):
            for _ in range(reads):
                cache.ask(number)
        return before, hit_ratio(cache, draw)

    before, after = ratios(policy)
    assert after >= before - 0.03
    plain_before, plain_after = ratios(LeastRecentlyUsed())
    assert before >= plain_before
    assert after >= plain_after + 0.03


def test_a_new_working_set_takes_over(policy: Policy) -> None:
    for start in (0, 10_000):
        draw = zipf(1000, seed=2)
        ratio = [hit_ratio(policy, lambda: start + draw()) for _ in range(3)][-1]  # noqa: B023
        assert ratio > 0.55


def test_the_sum_never_exceeds_the_budget(policy: Policy) -> None:
    for number in range(150):
        policy.ask(number)
        entries, size = policy.index.totals()
        assert size + policy.files.overhead() <= BUDGET
        assert entries == len(policy.files.held)
    assert entries > 95


def test_a_smaller_budget_is_reached_in_steps(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(90):
        policy.ask(number)
    monkeypatch.setattr(index_module, "MOST_STEPS", 30)
    room = [policy.index.make_room(b"new".rjust(40), SIZE, BUDGET // 10) for _ in range(3)]
    assert room == [False, False, True]
    assert policy.index.totals()[1] < BUDGET // 10


def test_a_chunk_evicted_before_it_was_written_gets_no_name(policy: Policy) -> None:
    key = b"slow".rjust(40)
    assert policy.index.make_room(key, SIZE, BUDGET)
    for number in range(120):
        policy.ask(number)
    assert not policy.index.place("", key)


def test_a_chunk_that_comes_back_soon_is_here_to_stay(policy: Policy) -> None:
    for number in range(105):
        policy.ask(number)
    assert not policy.ask(0)  # a ghost by now
    for number in range(200, 300):
        policy.ask(number)
    assert policy.ask(0)


def test_a_full_disk_is_given_back_to_others(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        policy.ask(number)
    monkeypatch.setattr(policy.files, "spare", lambda: -5 * SIZE)
    assert policy.index.make_room(b"new".rjust(40), SIZE, BUDGET)
    assert len(policy.files.held) == 14
    monkeypatch.setattr(policy.files, "spare", lambda: -500 * SIZE)
    assert not policy.index.make_room(b"other".rjust(40), SIZE, BUDGET)
    assert not policy.files.held
    with pytest.raises(OSError, match="full"):
        policy.index.make_room(b"other".rjust(40), SIZE, BUDGET)


class Disk:
    """Files and index of a real directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = CacheFiles(str(root))
        self.index = CacheIndex(self.files, CacheDatabase(self.files))
        self.index.settle()

    def add(self, key: bytes) -> None:
        assert self.index.make_room(key, 5000, BUDGET)
        with self.files.staged(key, bytes(5000)) as path:
            assert self.index.place(path, key)

    def orphan(self, key: bytes) -> None:
        """A file that the index does not know."""
        with self.files.staged(key, bytes(9000)) as path:
            self.files.place(path, key)


KEYS = [bytes(8) + bytes((number << 4,)) + b"\xff" * 31 for number in range(16)]


def test_after_a_restart_of_the_machine_index_and_files_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(tmp_path)
    for key in KEYS[:8]:
        disk.add(key)
    disk.index.note(KEYS[:2])
    for key in KEYS[4:8]:
        disk.files.remove(key)
    for key in KEYS[8:10]:
        disk.orphan(key)
    disk.orphan(b"\xff" * 40)
    monkeypatch.setattr(index_module, "_boot", lambda: "another")
    with pytest.raises(Unsettled):
        disk.index.make_room(KEYS[10], 5000, BUDGET)
    disk.index.settle(stopped=lambda: True)
    with pytest.raises(Unsettled):
        disk.index.make_room(KEYS[10], 5000, BUDGET)
    disk.index.settle()
    check_directory(tmp_path)
    assert disk.index.totals() == (7, 4 * cost(5000) + 3 * cost(9000))
    with sqlite3.connect(tmp_path / "index.sqlite") as db:
        assert db.execute("SELECT sum(hits) FROM chunks").fetchone() == (2,)
    db.close()


def test_a_read_file_that_the_index_does_not_know_is_entered(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.orphan(KEYS[0])
    disk.index.note(KEYS[:2])
    check_directory(tmp_path)
    assert disk.index.totals() == (1, cost(9000))


def test_an_index_of_another_version_is_made_anew(tmp_path: Path) -> None:
    Disk(tmp_path).add(KEYS[0])
    with sqlite3.connect(tmp_path / "index.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(sqlite3.DatabaseError, match="version"):
        Disk(tmp_path)
