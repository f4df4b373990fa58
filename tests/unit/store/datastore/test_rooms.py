"""Memory for chunks that is used again, but never under anybody's eyes."""

from mmap import PAGESIZE

import pytest

from store.datastore.rooms import MOST_FREE, STEP, Rooms, room_of


def give_back(rooms: Rooms, views: list[memoryview]) -> None:
    left = [*filter(None, map(room_of, views))]
    views.clear()
    rooms.give_back(left)


def taken(rooms: Rooms, size: int) -> memoryview:
    view = rooms.take(size)
    assert view is not None
    assert len(view) == size
    return view


def test_little_is_not_worth_one() -> None:
    assert Rooms().take(STEP - 1) is None
    assert room_of(b"bytes") is None
    assert room_of(memoryview(b"bytes")) is None


def test_a_room_is_used_again() -> None:
    rooms = Rooms()
    view = taken(rooms, STEP + PAGESIZE + 1)
    view[0] = 7
    views = [view]
    del view
    give_back(rooms, views)
    assert len(rooms) == 1
    again = taken(rooms, 2 * STEP)
    assert (len(rooms), again[0]) == (0, 7)


def test_not_while_a_part_of_it_is_looked_at() -> None:
    rooms = Rooms()
    view = taken(rooms, STEP)
    part, views = view[10:20], [view]
    del view
    give_back(rooms, views)
    assert len(rooms) == 0
    assert bytes(part) == bytes(10)


@pytest.mark.parametrize("size", [STEP, 2 * STEP, 6 * STEP])
def test_not_one_of_another_size(size: int) -> None:
    rooms = Rooms()
    give_back(rooms, [taken(rooms, 5 * STEP)])
    taken(rooms, size)
    assert len(rooms) == 1


def test_only_a_few_are_kept() -> None:
    rooms = Rooms()
    give_back(rooms, [taken(rooms, STEP) for _ in range(MOST_FREE // STEP + 3)])
    assert len(rooms) == MOST_FREE // (STEP + PAGESIZE)


def test_the_smallest_that_fits_is_taken() -> None:
    rooms = Rooms()
    give_back(rooms, [taken(rooms, size * STEP) for size in (4, 3, 5)])
    for size in (3, 4, 5):
        assert room_size(taken(rooms, 3 * STEP)) == size * STEP + PAGESIZE
    assert len(rooms) == 0


def test_a_page_more_is_had_for_nothing() -> None:
    assert room_size(taken(Rooms(), 4 * STEP + PAGESIZE)) == 4 * STEP + PAGESIZE


def test_a_lent_one_comes_back() -> None:
    rooms = Rooms()
    for _ in range(3):
        with rooms.lent(4 * STEP) as room:
            assert room is not None
            room[:5] = b"bytes"
            assert len(rooms) == 0
        assert len(rooms) == 1
    with rooms.lent(100) as room:
        assert room is None


def test_a_lent_one_stays_with_who_has_a_view() -> None:
    rooms = Rooms()
    with rooms.lent(STEP) as room:
        assert room is not None
        part = room[:5]
    assert len(rooms) == 0
    assert bytes(part) == bytes(5)


def room_size(view: memoryview) -> int:
    return len(room_of(view) or b"")
