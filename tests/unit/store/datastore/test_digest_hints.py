"""Hints: kept between backups, and never in the way."""

import os
from array import array
from contextlib import suppress
from pathlib import Path

import pytest

from store.backends.base import Backend
from store.backends.memory import MemoryBackend
from store.datastore import digest_hints
from store.datastore.digest_hints import Candidates, HintFile, prefix_of
from store.errors import AlreadyExists
from store.names import Digest
from tests.fakes.datastores import open_on, snapshot, write_snapshot
from tests.fakes.object_store import ObjectStore


@pytest.fixture(autouse=True, params=["few", "many"])
def how_many(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are sorted in two ways."""
    if request.param == "many":
        monkeypatch.setattr(digest_hints, "FEW", 0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def digest(number: int) -> Digest:
    return Digest(number.to_bytes(8, "big") + bytes(24))


def prefixes(*numbers: int) -> "array[int]":
    return array("Q", numbers)


def test_what_was_used_is_a_candidate_next_time() -> None:
    Candidates("s3://a/b", lambda: ()).remember(prefixes(5, 3, 5, 1 << 63))
    again = Candidates("s3://a/b", lambda: ())
    assert [number for number in (3, 4, 5, 6, 1 << 63) if digest(number) in again] == [
        3,
        5,
        1 << 63,
    ]
    assert digest(5) not in Candidates("s3://other/b", lambda: ())


def test_the_previous_snapshot_is_asked_once() -> None:
    asked: list[int] = []

    def previous() -> list[Digest]:
        asked.append(1)
        return [digest(9), digest(2), digest(9)]

    candidates = Candidates("s3://a/b", previous)
    assert asked == []
    assert [number for number in range(12) if digest(number) in candidates] == [2, 9]
    assert asked == [1]


def test_backups_add_to_the_file(cache: Path) -> None:
    file = HintFile("s3://a/b")
    assert file.path.parent == cache / "vaultway/digests"
    file.add(prefixes(1, 7))
    file.add(prefixes(7, 4))
    assert list(file.read()) == [1, 4, 7]
    assert os.listdir(file.path.parent) == [file.path.name]


def test_the_file_is_bounded_and_keeps_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest_hints, "MAX_HINTS", 4)
    file = HintFile("s3://a/b")
    file.add(prefixes(1, 2, 3, 4))
    file.add(prefixes(8, 9))
    assert list(file.read()) == [1, 2, 8, 9]


@pytest.mark.parametrize("how", ["flipped", "short", "long", "empty", "foreign", "too many"])
def test_a_damaged_file_is_ignored(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = HintFile("s3://a/b")
    file.add(prefixes(1, 2, 3))
    raw = bytearray(file.path.read_bytes())
    if how == "flipped":
        raw[20] ^= 1
    elif how == "too many":
        monkeypatch.setattr(digest_hints, "MAX_HINTS", 1)
    else:
        raw = bytearray({"short": raw[:-1], "long": raw + b"x", "empty": b""}.get(how, b"x" * 100))
    file.path.write_bytes(raw)
    assert list(file.read()) == []
    monkeypatch.undo()
    file.add(prefixes(5))
    assert 5 in file.read()


@pytest.mark.parametrize("what", ["fifo", "directory", "symlink"])
def test_what_is_no_file_is_ignored(what: str) -> None:
    file = HintFile("s3://a/b")
    file.path.parent.mkdir(parents=True)
    if what == "fifo":
        os.mkfifo(file.path)
    elif what == "directory":
        file.path.mkdir()
    else:
        file.path.symlink_to("/dev/zero")
    assert list(file.read()) == []


def test_a_directory_that_cannot_be_written(cache: Path) -> None:
    cache.write_text("a file")
    file = HintFile("s3://a/b")
    file.add(prefixes(1))
    assert list(file.read()) == []


def test_prefixes_are_in_the_order_of_digests() -> None:
    assert prefix_of(b"") == 0
    assert prefix_of(digest(77)) == 77
    assert prefix_of(b"\xff" * 32) == (1 << 64) - 1


@pytest.mark.parametrize("kind", [MemoryBackend, ObjectStore])
def test_a_user_without_a_home_has_none(
    kind: type[Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(Path, "expanduser", lambda _: no_home())
    backend = kind()
    with suppress(AlreadyExists):
        backend.create()
    for day in (1, 2):
        write_snapshot(open_on(backend), snapshot(day))
    assert HintFile("s3://a/b").read() == ()
