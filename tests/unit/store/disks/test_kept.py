from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from store.disks.kept import Kept


def test_the_last_ones_stay() -> None:
    kept: Kept[int] = Kept(2)
    made: list[int] = []

    def make(value: int) -> int:
        made.append(value)
        return value

    for value in (1, 2, 1, 3, 1, 2):
        assert kept.get(value, lambda value=value: make(value)) == value  # type: ignore[misc]
    assert made == [1, 2, 3, 2]
    assert kept.peek(3) is None
    assert sorted(kept.clear()) == [1, 2]
    assert kept.peek(1) is None


def test_one_thread_makes_it() -> None:
    kept: Kept[object] = Kept(2)
    barrier = Barrier(8)
    made: list[int] = []

    def make() -> object:
        made.append(1)
        return object()

    def ask() -> object:
        barrier.wait()
        return kept.get("key", make)

    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(lambda _: ask(), range(8))]
    assert len(made) == 1
    assert len({id(value) for value in found}) == 1


def test_what_could_not_be_made_is_tried_again() -> None:
    kept: Kept[int] = Kept(2)

    def fail() -> int:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        kept.get("key", fail)
    assert kept.get("key", lambda: 5) == 5
