"""Memory for chunks that is used again, but never under anybody's eyes."""

import errno
from mmap import PAGESIZE

import pytest

from store.datastore import rooms as rooms_module
from store.datastore.rooms import HUGE_PAGE, LEAST, MOST_FREE, Rooms, room_of

MIB = 1 << 20


def give_back(rooms: Rooms, views: list[memoryview]) -> None:
    left = [*filter(None, map(room_of, views))]
    views.clear()
    rooms.give_back(left)


def taken(rooms: Rooms, size: int, slack: int = 0) -> memoryview:
    view = rooms.take(size, slack)
    assert view is not None
    assert len(view) == size + slack
    return view


def touched(view: memoryview) -> int:
    room = room_of(view)
    return room.touched if room else 0


def test_little_is_not_worth_one() -> None:
    assert Rooms().take(LEAST - 1) is None
    assert room_of(b"bytes") is None
    assert room_of(memoryview(b"bytes")) is None


def test_a_room_is_used_again() -> None:
    rooms = Rooms()
    view = taken(rooms, 3 * MIB)
    view[0] = 7
    views = [view]
    del view
    give_back(rooms, views)
    assert len(rooms) == 1
    again = taken(rooms, 4 * MIB)
    assert (len(rooms), again[0]) == (0, 7)


def test_not_while_a_part_of_it_is_looked_at() -> None:
    rooms = Rooms()
    view = taken(rooms, MIB)
    part, views = view[10:20], [view]
    del view
    give_back(rooms, views)
    assert len(rooms) == 0
    assert bytes(part) == bytes(10)


def test_it_counts_huge_pages_and_no_slack() -> None:
    for size, pages in ((1, 1), (2, 1), (3, 2), (4, 2), (16, 8)):
        for slack in (0, 15, PAGESIZE):
            assert touched(taken(Rooms(), size * MIB, slack)) == pages * HUGE_PAGE
    assert touched(taken(Rooms(), 4 * MIB + 44)) == 6 * MIB


def test_one_that_is_much_too_large_is_left() -> None:
    rooms = Rooms()
    give_back(rooms, [taken(rooms, 10 * MIB)])
    assert touched(taken(rooms, 4 * MIB)) == 4 * MIB
    assert len(rooms) == 1
    taken(rooms, 6 * MIB)
    assert len(rooms) == 0


def test_one_that_is_too_small_grows() -> None:
    rooms = Rooms()
    give_back(rooms, [taken(rooms, size * MIB) for size in (2, 4, 6)])
    assert touched(taken(rooms, 16 * MIB)) == 16 * MIB
    assert touched(taken(rooms, 4 * MIB)) == 4 * MIB
    assert len(rooms) == 1


def test_without_addresses_ordinary_memory_has_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> rooms_module.Room:
        raise OSError(errno.ENOMEM, "no")

    rooms = Rooms()
    give_back(rooms, [taken(rooms, 2 * MIB)])
    monkeypatch.setattr(rooms_module, "Room", refuse)
    taken(rooms, 2 * MIB)
    assert rooms.take(2 * MIB) is None


def test_only_a_few_are_kept() -> None:
    rooms = Rooms()
    give_back(rooms, [taken(rooms, 2 * MIB) for _ in range(MOST_FREE // (2 * MIB) + 3)])
    assert len(rooms) == MOST_FREE // (2 * MIB)


def test_the_longest_free_go() -> None:
    """Where sizes differ, those that are left over would else be in the way of all others."""
    rooms = Rooms(8 * MIB)
    give_back(rooms, [taken(rooms, size * MIB) for size in (6, 2, 4)])
    assert [room.touched // MIB for room in rooms._free] == [2, 6]
    give_back(rooms, [taken(rooms, 10 * MIB)])
    assert [room.touched // MIB for room in rooms._free] == [2]


def test_the_smallest_that_fits_is_taken() -> None:
    rooms = Rooms()
    give_back(rooms, [taken(rooms, size * MIB) for size in (6, 4, 8)])
    for size in (4, 6, 8):
        assert touched(taken(rooms, 4 * MIB)) == size * MIB
    assert len(rooms) == 0


def test_of_equals_the_latest() -> None:
    rooms = Rooms()
    views = [taken(rooms, 2 * MIB) for _ in range(3)]
    latest = id(room_of(views[0]))  # the list is emptied from its end
    give_back(rooms, views)
    assert id(room_of(taken(rooms, 2 * MIB))) == latest


def test_a_lent_one_comes_back() -> None:
    rooms = Rooms()
    for _ in range(3):
        with rooms.lent(4 * MIB) as room:
            assert room is not None
            room[:5] = b"bytes"
            assert len(rooms) == 0
        assert len(rooms) == 1
    with rooms.lent(100) as room:
        assert room is None


def test_a_lent_one_stays_with_who_has_a_view() -> None:
    rooms = Rooms()
    with rooms.lent(MIB) as room:
        assert room is not None
        part = room[:5]
    assert len(rooms) == 0
    assert bytes(part) == bytes(5)
