"""What a session knows of an object store's chunks: never wrong, and at few requests."""

import random
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.backends.base import Walked
from store.datastore import known_chunks
from store.datastore.chunk_store import name_below
from store.datastore.chunk_windows import LAST, OVERHEAD, ChunkWindows
from store.datastore.known_chunks import KnownChunks
from store.errors import BackendError
from store.names import Digest
from tests.fakes.interrupts import InterruptingLock

ENOUGH = 1 << 20


class Bucket:
    """Lists chunks, and counts the requests that S3 would see."""

    location = "s3://bucket/test"

    def __init__(self, chunks: Iterable[Digest] | dict[str, int]) -> None:
        names = chunks if isinstance(chunks, dict) else {name_below(one): 7 for one in chunks}
        self.names = sorted(names)
        self.sizes = names
        self.requests = 0
        self.before: Callable[[], None] = lambda: None

    def walk(self, name: str, after: str = "") -> Iterator[Walked]:
        assert name == ".chunks"
        first = bisect_right(self.names, after) if after else 0
        for start in range(first, len(self.names) + 1, known_chunks.PAGE):
            self.before()
            self.requests += 1
            page = self.names[start : start + known_chunks.PAGE]
            for found in page:
                yield Walked(found, self.sizes[found])
            if len(page) < known_chunks.PAGE:
                return


def known(bucket: Bucket, candidates: Iterable[Digest] = (), budget: int = ENOUGH) -> KnownChunks:
    return KnownChunks(bucket, frozenset(candidates), budget)  # type: ignore[arg-type]


def digests(count: int, seed: int = 1) -> list[Digest]:
    rng = random.Random(seed)
    return [Digest(rng.randbytes(32)) for _ in range(count)]


small_digests = st.tuples(st.integers(0, 6), st.integers(0, 9)).map(
    lambda parts: Digest(bytes([parts[0]]) + bytes(8) + bytes([parts[1]]) + bytes(22))
)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_chunks, "PAGE", 3)
    monkeypatch.setattr(known_chunks, "CELL", 2)


@pytest.mark.usefixtures("small_pages")
@given(
    there=st.dictionaries(small_digests, st.sampled_from([0, 7, 7, 7])),
    bad=st.sets(small_digests),
    candidates=st.sets(small_digests),
    asked=st.lists(st.tuples(small_digests, st.booleans()), max_size=40),
    budget=st.sampled_from([0, 2 * OVERHEAD, ENOUGH]),
)
def test_never_wrong(
    there: dict[Digest, int],
    bad: set[Digest],
    candidates: set[Digest],
    asked: list[tuple[Digest, bool]],
    budget: int,
) -> None:
    """Whatever is in the bucket, in whatever order it is asked, however little is remembered."""
    names = {name_below(digest): size for digest, size in there.items()}
    names |= {f"{name_below(digest)}.{number}.bad": 7 for digest in bad for number in range(3)}
    names |= {"0000/foreign": 7, "zz": 7}
    session = known(Bucket(names), candidates, budget)
    for digest, sure in asked:
        is_there = there.get(digest, 0) > 0
        if sure or digest in candidates:
            assert (session.confirm(digest) if sure else session.find(digest)) == is_there
        else:
            assert session.find(digest) in (is_there, False)


@given(
    st.lists(st.tuples(small_digests, small_digests, st.sets(small_digests))),
    st.sampled_from([0, 3 * OVERHEAD, ENOUGH]),
)
def test_windows_hold_their_budget(
    windows: list[tuple[Digest, Digest, set[Digest]]], budget: int
) -> None:
    noted = ChunkWindows(budget)
    for start, end, listed in windows:
        inside = sorted(digest for digest in listed if start < digest <= end)
        if start < end and noted.find(Digest(end)) is None:
            noted.add(start, end, inside)
        assert noted.used_bytes <= budget or len(noted) == 1


def test_a_small_store_costs_one_request() -> None:
    there, new = digests(900), digests(900, seed=2)
    bucket = Bucket(there)
    session = known(bucket, there)
    assert all(session.find(digest) for digest in there)
    assert not any(session.find(digest) for digest in new)
    assert bucket.requests == 1


def test_an_interrupt_before_a_request_leaves_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = known(Bucket([]))
    monkeypatch.setattr(session, "_lock", InterruptingLock())
    [digest] = digests(1)
    with pytest.raises(KeyboardInterrupt):
        session.confirm(digest)
    later = threading.Thread(target=session.confirm, args=(digest,), daemon=True)
    later.start()
    later.join(10)
    assert not later.is_alive()


def test_an_empty_store_costs_one_request() -> None:
    bucket = Bucket([])
    session = known(bucket)
    assert not any(session.find(digest) for digest in digests(100))
    assert bucket.requests == 1


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_all_of_a_large_store_costs_its_pages(order: str) -> None:
    there = digests(20_000)
    bucket = Bucket(there)
    session = known(bucket, there)
    asked = sorted(there) if order == "sorted" else there
    assert all(session.find(digest) for digest in asked)
    assert bucket.requests <= 20_000 / known_chunks.CELL + 5


def test_a_little_of_a_large_store_costs_a_request_each() -> None:
    there = digests(50_000)
    bucket = Bucket(there)
    session = known(bucket, there[:10])
    assert all(session.find(digest) for digest in there[:10])
    assert bucket.requests <= 1 + 10 + 2
    requests = bucket.requests
    assert not any(session.find(digest) for digest in digests(1000, seed=2))
    assert bucket.requests == requests


def test_what_was_stored_is_known() -> None:
    there = digests(5000)
    bucket = Bucket(there)
    session = known(bucket)
    new = [digest for digest in digests(100, seed=2) if not session.find(digest)]
    for digest in new:
        session.stored(digest, new=True)
    assert all(session.find(digest) and session.confirm(digest) for digest in new)
    assert len(session.used) == 3 * len(new)


def test_who_meets_chunks_begins_to_ask() -> None:
    """Another machine stored all this before: uploads that meet a chunk cost more than pages."""
    there = digests(20_000)
    bucket = Bucket(there)
    session = known(bucket)
    uploads = 0
    for digest in there:
        if not session.find(digest):
            session.stored(digest, new=False)
            uploads += 1
    assert uploads <= 1
    assert bucket.requests <= 20_000 / known_chunks.CELL + 5


def test_the_budget_forgets_the_oldest() -> None:
    there = digests(20_000)
    bucket = Bucket(there)
    session = known(bucket, there, budget=5 * (16 * 1000 + OVERHEAD))
    assert all(session.find(digest) for digest in sorted(there))
    assert session._windows.used_bytes <= 5 * (16 * 1000 + OVERHEAD)
    assert len(session._windows) == 5
    assert session.find(max(there))
    assert bucket.requests <= 20_000 / known_chunks.CELL + 5
    assert session.find(min(there))
    assert bucket.requests <= 20_000 / known_chunks.CELL + 6


def test_many_threads_ask_once() -> None:
    there = digests(800)
    bucket = Bucket(there)
    bucket.before = lambda: time.sleep(0.05)
    session, found = known(bucket, there), []
    started = threading.Barrier(8)

    def ask() -> None:
        started.wait()
        found.append([session.find(digest) for digest in there])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[True] * 800] * 8
    assert bucket.requests == 1


def test_threads_ask_for_different_pages_at_once() -> None:
    """Each waits in its request until the other is in its own."""
    there = sorted(digests(10_000))
    bucket = Bucket(there)
    session = known(bucket, there)
    session.find(there[0])
    both = threading.Barrier(2, timeout=10)
    bucket.before = lambda: both.wait()
    threads = [threading.Thread(target=session.confirm, args=(there[at],)) for at in (3000, 8000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bucket.requests == 3


def test_a_failed_request_is_made_again() -> None:
    there = digests(10)
    bucket = Bucket(there)

    def fail() -> None:
        bucket.before = lambda: None
        raise BackendError("500")

    bucket.before = fail
    session = known(bucket, there)
    with pytest.raises(BackendError):
        session.find(there[0])
    assert session.find(there[0])


def test_a_listing_in_no_order_is_refused() -> None:
    """What is missing in it could not be told."""
    bucket = Bucket(sorted(digests(10)))
    bucket.names.reverse()
    with pytest.raises(BackendError, match="s3://bucket/test: lists its objects in no order"):
        known(bucket).find(digests(1)[0])


def test_a_thousand_foreign_names_beside_a_chunk() -> None:
    chunk, after = Digest(bytes(31) + b"\1"), Digest(bytes(31) + b"\2")
    names = {f"{name_below(chunk)}.{number}.bad": 7 for number in range(3000)}
    session = known(Bucket(names | {name_below(after): 7}))
    assert not session.confirm(chunk)
    assert session.confirm(after)
    assert not session.confirm(Digest(LAST))
